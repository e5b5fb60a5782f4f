//! The consumer of a lane: starting it, stopping it, and the end of the lane.

use amiquip::{ConsumerMessage, FieldTable, QueueDeleteOptions};

use super::declare::consume;
use super::idle_channel::IdleChannel;
use super::link_channel::LinkChannel;
use crate::transport::amqp::convert::Failure;
use crate::transport::{LinkSpec, Publication, Source};

impl<'c> LinkChannel<'c> {
    /// Stops consuming. Deliveries that had arrived by then are passed on; adds to `fallbacks`
    /// the publications that the sink wants to be sent for them.
    pub(super) fn stop_consuming(
        &mut self,
        session: u64,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), Failure> {
        let Some(consumer) = self.consumer.take() else {
            return Ok(());
        };
        if let Some((queue, (exchange, key))) = &self.own_queue {
            let no_arguments = FieldTable::default();
            self.channel
                .queue_unbind(queue, exchange, key, no_arguments)?;
        }
        consumer.cancel()?;
        // Until the last message: amiquip sends it after it has answered the
        // cancel, and gives the whole connection up if the receiver is gone by then.
        for message in consumer.receiver() {
            match message {
                // The sink has it given back in good order, or handles it.
                ConsumerMessage::Delivery(delivery) if self.acknowledges => {
                    self.pass_on(delivery, session, fallbacks)?;
                }
                ConsumerMessage::Delivery(delivery) => {
                    // Its body must not be kept for it.
                    let tag = delivery.delivery_tag();
                    drop(self.take_oversized(tag));
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Consumes, or consumes again.
    pub(super) fn resume_consuming(&mut self, spec: &LinkSpec) -> Result<(), Failure> {
        if self.consumer.is_none() {
            let consumed = consume(self.channel, spec)?;
            self.consumer = consumed.consumer;
            self.reply_queue = consumed.reply_queue;
            if let (Some(queue), Source::OwnQueue { bind, .. }) = (consumed.own_queue, &spec.source)
            {
                self.own_queue = Some((queue, bind.clone()));
            }
        }
        Ok(())
    }

    /// Deletes the queue of the link's own.
    pub(super) fn delete_own_queue(&mut self) -> Result<(), Failure> {
        if let Some((queue, _)) = self.own_queue.take() {
            self.channel
                .queue_delete(queue, QueueDeleteOptions::default())?;
        }
        Ok(())
    }

    /// Ends the lane with its connection.
    pub(super) fn end(mut self, session: u64) -> Result<(), Failure> {
        if self.ends_at_once {
            // Dropped, it would be cancelled: the next consumer would get what comes later
            // before the broker has taken back what is unsettled.
            std::mem::forget(self.consumer.take());
            return Ok(());
        }
        self.close(session).map(drop)
    }

    /// Ends the lane in an orderly way and gives its channel back for reuse.
    pub(super) fn close(mut self, session: u64) -> Result<IdleChannel<'c>, Failure> {
        // The link is over: nothing is sent for it any more.
        let mut fallbacks = Vec::new();
        self.stop_consuming(session, &mut fallbacks)?;
        if std::mem::take(&mut self.holds) {
            self.channel.nack_all(true)?;
            self.unsettled.clear();
        }
        for (_, delivery) in self.unsettled.drain() {
            delivery.reject(self.channel, true)?;
        }
        self.delete_own_queue()?;
        if let Some(queue) = self.exclusively {
            self.channel
                .queue_delete(queue, QueueDeleteOptions::default())?;
        }
        // A round trip, whatever it asks: what the broker had to say about the
        // messages before, it has said now.
        self.channel.qos(0, 1, false)?;
        self.pass_on_confirms(usize::MAX)?;
        self.pass_on_returns(&mut fallbacks)?;
        Ok(IdleChannel::after(self.channel, self.confirm_state))
    }
}
