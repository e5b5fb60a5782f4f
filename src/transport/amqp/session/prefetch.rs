//! The prefetch of a link's consumer, and the deliveries beyond it.

use amiquip::{ConsumerMessage, Delivery as AmqpDelivery};

use super::declare::consume_from;
use super::link_channel::LinkChannel;
use crate::transport::amqp::convert::{self, ChannelFailure};
use crate::transport::{LinkSource, LinkSpec, Publication};

impl LinkChannel<'_> {
    /// Sets the prefetch to that of `spec`. Passes on the deliveries that it has room for, and adds
    /// to `fallbacks` the publications that the sink returns for them.
    ///
    /// RabbitMQ applies a prefetch to new consumers only, so the consumer is replaced. Unsettled
    /// deliveries belong to the channel, and stay. The broker does not count them for the new
    /// consumer, so more deliveries arrive than the prefetch allows until the earlier ones are
    /// settled: they [wait](Self::pass_on_waiting) here.
    pub(super) fn set_prefetch(
        &mut self,
        spec: &LinkSpec,
        session: u64,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), ChannelFailure> {
        let Some(prefetch) = spec.source.prefetch() else {
            return Ok(());
        };
        let before = std::mem::replace(&mut self.prefetch, prefetch);
        // A single active consumer would lose its turn, and the order of its messages: there, the
        // broker's prefetch is changed by the next consumer.
        if before != prefetch && self.consumer.is_some() && !spec.is_single_active() {
            self.replace_consumer(spec)?;
        }
        self.pass_on_waiting(session, fallbacks)
    }

    /// Starts another consumer and cancels the present one. In this order, because a queue that is
    /// deleted with its last consumer must not be without any.
    fn replace_consumer(&mut self, spec: &LinkSpec) -> Result<(), ChannelFailure> {
        let queue = match (&spec.source, &self.own_queue) {
            (LinkSource::Queue { name, .. }, _) => name.clone(),
            (LinkSource::OwnQueue { .. }, Some((name, _))) => name.clone(),
            _ => return Ok(()),
        };
        let next = consume_from(self.channel, &queue, self.prefetch)?;
        let Some(last) = std::mem::replace(&mut self.consumer, next.consumer) else {
            return Ok(());
        };
        last.cancel()?;
        // Up to the last message, as when consuming stops.
        let mut arrived = Vec::new();
        for message in last.receiver() {
            let ConsumerMessage::Delivery(delivery) = message else {
                break;
            };
            arrived.push(delivery);
        }
        // Meanwhile the broker has delivered to both in turn.
        while let Some(Ok(message)) = self.deliveries().map(|receiver| receiver.try_recv()) {
            arrived.push(convert::delivery_of(message)?);
        }
        arrived.sort_by_key(AmqpDelivery::delivery_tag);
        self.waiting.extend(arrived);
        Ok(())
    }

    /// Returns true if the next delivery may be passed on.
    pub(super) fn has_room(&self) -> bool {
        !self.acknowledges
            || (self.waiting.is_empty() && self.unsettled.len() < usize::from(self.prefetch))
    }

    /// Passes on the deliveries that wait, as far as the prefetch has room for them, and adds to
    /// `fallbacks` the publications that the sink returns for them.
    pub(super) fn pass_on_waiting(
        &mut self,
        session: u64,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), ChannelFailure> {
        while self.unsettled.len() < usize::from(self.prefetch) {
            let Some(delivery) = self.waiting.pop_front() else {
                return Ok(());
            };
            self.pass_on(delivery, session, fallbacks)?;
        }
        Ok(())
    }
}
