//! Queries of queues: getting messages and counting them.

use std::time::Instant;

use amiquip::Channel;
use crossbeam_channel::Sender;

use super::link_channel::LinkChannel;
use super::{Session, SessionEnd};
use crate::error::{Error, ErrorKind, Phase};
use crate::transport::QueueDepth;
use crate::transport::amqp::command::{GetResult, LinkId};
use crate::transport::amqp::convert::ChannelFailure;

/// AMQP's reply code `not-found`.
const NOT_FOUND: u16 = 404;

impl<'c> Session<'c> {
    /// Gets the first message of a queue, as a [`query`](Self::query).
    pub(super) fn get(
        &mut self,
        link: LinkId,
        queue: Option<&str>,
        done: &Sender<GetResult>,
    ) -> Result<(), SessionEnd> {
        // A message for which the caller does not wait any more is requeued as it is dropped.
        self.query(
            link,
            queue.unwrap_or("the link's own queue"),
            done,
            |link_channel| match queue {
                Some(queue) => link_channel.get(queue),
                None => link_channel.get_own(),
            },
        )
    }

    /// Runs a query on a link's channel and sends its result to `done`. A refused query, such as
    /// of a queue that does not exist, costs the channel. A link that loses nothing with it gets
    /// another; one that only gets messages ends, and the broker requeues them.
    fn query<T>(
        &mut self,
        link: LinkId,
        queue: &str,
        done: &Sender<Result<T, Error>>,
        query: impl FnOnce(&mut LinkChannel<'c>) -> Result<T, ChannelFailure>,
    ) -> Result<(), SessionEnd> {
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            let _ = done.try_send(Err(self.not_open(link)));
            return Ok(());
        };
        match query(link_channel) {
            Ok(result) => {
                let _ = done.try_send(Ok(result));
                Ok(())
            }
            Err(ChannelFailure::Refused(error)) => {
                let cause = error.to_string();
                let _ = done.try_send(Err(error));
                let is_replaceable = link_channel.is_replaceable();
                if !is_replaceable && !link_channel.only_gets() {
                    return Err(SessionEnd::Lost(cause));
                }
                let channel = link_channel.channel_id();
                self.link_channels.remove(&link);
                self.forget_channel(channel);
                if is_replaceable {
                    return self.open_link(link);
                }
                // Not replaced: the tags of its deliveries would be those of other messages.
                if let Some(registered) = self.io.link_table.remove(link) {
                    registered.sink.closed(&cause);
                }
                Ok(())
            }
            Err(ChannelFailure::Lost(cause)) => {
                let _ = done.try_send(Err(lost_while_read(queue, &cause)));
                Err(SessionEnd::Lost(cause))
            }
        }
    }

    /// Creates the error of a query on a link that is not open.
    fn not_open(&mut self, link: LinkId) -> Error {
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return Error::new(
                ErrorKind::Closed,
                "the broker has closed this link over a query that it refused",
            );
        };
        let reason = registered.refusal.lock().clone().unwrap_or_default();
        let fault = format!("the broker refuses to open this link: {reason}");
        Error::new(ErrorKind::Broker, fault)
    }

    /// Counts the messages and consumers of a queue on a channel that no link uses, and sends the
    /// result to `done`. A refused query costs that channel.
    pub(super) fn depth(
        &mut self,
        queue: &str,
        deadline: Instant,
        done: &Sender<Result<QueueDepth, Error>>,
    ) -> Result<(), SessionEnd> {
        if Instant::now() >= deadline {
            let fault = format!("the messages in {queue:?} were not counted in time");
            let _ = done.try_send(Err(Error::timed_out(Phase::Broker, fault)));
            return Ok(());
        }
        let idle = match self.open_channel(false) {
            Ok(idle) => idle,
            Err(ChannelFailure::Refused(error)) => {
                let _ = done.try_send(Err(error));
                return Ok(());
            }
            Err(ChannelFailure::Lost(cause)) => {
                let _ = done.try_send(Err(lost_while_read(queue, &cause)));
                return Err(SessionEnd::Lost(cause));
            }
        };
        match depth(idle.channel, queue) {
            Ok(depth) => {
                let _ = done.try_send(Ok(depth));
                self.idle_channels.push(idle);
                Ok(())
            }
            Err(ChannelFailure::Refused(error)) => {
                let _ = done.try_send(Err(error));
                self.forget_channel(idle.channel.channel_id());
                Ok(())
            }
            Err(ChannelFailure::Lost(cause)) => {
                let _ = done.try_send(Err(lost_while_read(queue, &cause)));
                Err(SessionEnd::Lost(cause))
            }
        }
    }
}

fn depth(channel: &Channel, queue: &str) -> Result<QueueDepth, ChannelFailure> {
    let declared = match channel.queue_declare_passive(queue) {
        Ok(declared) => declared,
        Err(amiquip::Error::ServerClosedChannel {
            code: NOT_FOUND, ..
        }) => return Err(ChannelFailure::Refused(QueueDepth::no_queue(queue))),
        Err(error) => return Err(error.into()),
    };
    let count =
        |count: Option<u32>| count.map_or(0, |it| usize::try_from(it).unwrap_or(usize::MAX));
    Ok(QueueDepth {
        messages: count(declared.declared_message_count()),
        consumers: count(declared.declared_consumer_count()),
    })
}

fn lost_while_read(queue: &str, cause: &str) -> Error {
    let fault = format!("the connection was lost while {queue:?} was read: {cause}");
    Error::new(ErrorKind::ConnectionLost, fault)
}
