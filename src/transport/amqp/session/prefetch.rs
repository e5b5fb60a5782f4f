//! The prefetch of a link's consumer.

use super::declare::consume_from;
use super::link_channel::LinkChannel;
use super::link_consumer::cancel;
use crate::transport::amqp::convert::ChannelFailure;
use crate::transport::{LinkSource, LinkSpec};

impl LinkChannel<'_> {
    /// Sets the prefetch to that of `spec`, and passes on the deliveries that it has room for.
    ///
    /// RabbitMQ applies a prefetch to new consumers only, so the consumer is replaced. Unsettled
    /// deliveries belong to the channel, and stay. The broker does not count them for the new
    /// consumer, so more deliveries arrive than the prefetch allows until the earlier ones are
    /// settled: the route lets them wait.
    pub(super) fn set_prefetch(&mut self, spec: &LinkSpec) -> Result<(), ChannelFailure> {
        let Some(prefetch) = spec.source.prefetch() else {
            return Ok(());
        };
        let before = self.route.set_prefetch(prefetch);
        // A single active consumer would lose its turn, and the order of its messages: there, the
        // broker's prefetch is changed by the next consumer.
        if before != prefetch && self.consumer.is_some() && !spec.is_single_active() {
            self.replace_consumer(spec)?;
        }
        self.route.pass_on_waiting();
        Ok(())
    }

    /// Starts another consumer and cancels the present one. In this order, because a queue that is
    /// deleted with its last consumer must not be without any.
    fn replace_consumer(&mut self, spec: &LinkSpec) -> Result<(), ChannelFailure> {
        let queue = match (&spec.source, &self.own_queue) {
            (LinkSource::Queue { name, .. }, _) => name.clone(),
            (LinkSource::OwnQueue { .. }, Some((name, _))) => name.clone(),
            _ => return Ok(()),
        };
        let next = consume_from(self.channel, &queue, self.route.prefetch())?;
        match std::mem::replace(&mut self.consumer, next.consumer) {
            Some(last) => cancel(last),
            None => Ok(()),
        }
    }
}
