//! The consumer of a link's channel: its start and its stop, and the end of the channel.

use amiquip::{ConsumerMessage, FieldTable, QueueDeleteOptions};

use super::declare::consume;
use super::idle_channel::IdleChannel;
use super::link_channel::LinkChannel;
use crate::transport::amqp::convert::ChannelFailure;
use crate::transport::{LinkSource, LinkSpec, Publication};

impl<'c> LinkChannel<'c> {
    /// Stops consuming. Passes on the deliveries that arrived before, and adds to `fallbacks`
    /// the publications that the sink returns for them.
    pub(super) fn stop_consuming(
        &mut self,
        session: u64,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), ChannelFailure> {
        let Some(consumer) = self.consumer.take() else {
            return Ok(());
        };
        if let Some((queue, (exchange, key))) = &self.own_queue {
            let no_arguments = FieldTable::default();
            self.channel
                .queue_unbind(queue, exchange, key, no_arguments)?;
        }
        for delivery in std::mem::take(&mut self.waiting) {
            self.pass_on(delivery, session, fallbacks)?;
        }
        consumer.cancel()?;
        // Up to the last message: amiquip sends it after it has answered the cancel,
        // and ends the whole connection if the receiver has been dropped by then.
        for message in consumer.receiver() {
            match message {
                // The sink handles it or hands it back to be requeued.
                ConsumerMessage::Delivery(delivery) if self.acknowledges => {
                    self.pass_on(delivery, session, fallbacks)?;
                }
                ConsumerMessage::Delivery(delivery) => {
                    // Frees the place of the one oversized body that is kept.
                    let tag = delivery.delivery_tag();
                    drop(self.take_oversized(tag));
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Starts consuming, unless it is started.
    pub(super) fn resume_consuming(&mut self, spec: &LinkSpec) -> Result<(), ChannelFailure> {
        if self.consumer.is_none() {
            let consumed = consume(self.channel, spec)?;
            self.consumer = consumed.consumer;
            self.reply_queue = consumed.reply_queue;
            if let (Some(queue), LinkSource::OwnQueue { bind, .. }) =
                (consumed.own_queue, &spec.source)
            {
                self.own_queue = Some((queue, bind.clone()));
            }
        }
        Ok(())
    }

    /// Deletes the link's own queue, if it has one.
    pub(super) fn delete_own_queue(&mut self) -> Result<(), ChannelFailure> {
        if let Some((queue, _)) = self.own_queue.take() {
            self.channel
                .queue_delete(queue, QueueDeleteOptions::default())?;
        }
        Ok(())
    }

    /// Ends the channel with its connection.
    pub(super) fn end(mut self, session: u64) -> Result<(), ChannelFailure> {
        if self.requeues_at_once {
            // Dropping the consumer would cancel it: the next consumer would receive later
            // messages before the broker has requeued the unsettled ones.
            std::mem::forget(self.consumer.take());
            return Ok(());
        }
        self.close(session).map(drop)
    }

    /// Closes the link in good order and returns its channel for reuse.
    pub(super) fn close(mut self, session: u64) -> Result<IdleChannel<'c>, ChannelFailure> {
        // Dropped, as nothing is sent for a closed link.
        let mut fallbacks = Vec::new();
        self.stop_consuming(session, &mut fallbacks)?;
        if std::mem::take(&mut self.has_held) {
            self.channel.nack_all(true)?;
            self.unsettled.clear();
        }
        for (_, delivery) in self.unsettled.drain() {
            delivery.reject(self.channel, true)?;
        }
        self.delete_own_queue()?;
        if let Some(queue) = self.exclusive_queue {
            self.channel
                .queue_delete(queue, QueueDeleteOptions::default())?;
        }
        // For the round trip only: the confirms and returns that the broker has sent
        // before its answer have arrived then.
        self.channel.qos(0, 1, false)?;
        self.pass_on_confirms(usize::MAX)?;
        self.pass_on_returns(&mut fallbacks)?;
        Ok(IdleChannel::after(self.channel, self.confirm_state))
    }
}
