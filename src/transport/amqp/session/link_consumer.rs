//! The consumer of a link's channel: its start and its stop, and the end of the channel.

use amiquip::{Consumer, ConsumerMessage, FieldTable, QueueDeleteOptions};

use super::declare::consume;
use super::idle_channel::IdleChannel;
use super::link_channel::LinkChannel;
use crate::transport::amqp::convert::ChannelFailure;
use crate::transport::amqp::frames::ReplyQueueName;
use crate::transport::{LinkSource, LinkSpec};

impl<'c> LinkChannel<'c> {
    /// Stops consuming, after all deliveries that arrived before have been passed on.
    pub(super) fn stop_consuming(&mut self) -> Result<(), ChannelFailure> {
        let Some(consumer) = self.consumer.take() else {
            return Ok(());
        };
        if let Some((queue, (exchange, key))) = &self.own_queue {
            let no_arguments = FieldTable::default();
            self.channel
                .queue_unbind(queue, exchange, key, no_arguments)?;
        }
        cancel(consumer)?;
        // The thread that read the broker's answer had passed on every delivery before it, as far
        // as these did not have to wait.
        self.route.pass_on_all();
        Ok(())
    }

    /// Starts consuming, unless it is started.
    pub(super) fn resume_consuming(&mut self, spec: &LinkSpec) -> Result<(), ChannelFailure> {
        if self.consumer.is_none() {
            let consumed = consume(self.channel, spec)?;
            self.consumer = consumed.consumer;
            let reply_queue = consumed.reply_queue.map(ReplyQueueName::new);
            self.registration.outlet.set_reply_queue(reply_queue);
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
    pub(super) fn end(mut self) -> Result<(), ChannelFailure> {
        if self.requeues_at_once {
            // Dropping the consumer would cancel it: the next consumer would receive later
            // messages before the broker has requeued the unsettled ones.
            std::mem::forget(self.consumer.take());
            return Ok(());
        }
        self.close().map(drop)
    }

    /// Closes the link in good order and returns its channel for reuse.
    pub(super) fn close(mut self) -> Result<IdleChannel<'c>, ChannelFailure> {
        self.stop_consuming()?;
        let (has_held, tags) = self.unsettled.take_all();
        if has_held {
            self.channel.nack_all(true)?;
        } else {
            tags.into_iter().try_for_each(|tag| self.requeue(tag))?;
        }
        // Nothing of this link follows on the channel, which the next link gets.
        self.registration.outlet.close();
        self.delete_own_queue()?;
        if let Some(queue) = self.exclusive_queue {
            self.channel
                .queue_delete(queue, QueueDeleteOptions::default())?;
        }
        // For the round trip only: the confirms and returns that the broker has sent
        // before its answer have arrived then.
        self.channel.qos(0, 1, false)?;
        self.pass_on_confirms(usize::MAX)?;
        // Dropped, as nothing is sent for a closed link.
        self.pass_on_returns(&mut Vec::new())?;
        Ok(IdleChannel::after(self.channel, self.confirm_state))
    }
}

/// Cancels a consumer and waits until it has ended.
pub(super) fn cancel(consumer: Consumer<'_>) -> Result<(), ChannelFailure> {
    consumer.cancel()?;
    // Up to the last message: amiquip sends it after it has answered the cancel,
    // and ends the whole connection if the receiver has been dropped by then.
    let mut messages = consumer.receiver().iter();
    while let Some(ConsumerMessage::Delivery(_)) = messages.next() {}
    Ok(())
}
