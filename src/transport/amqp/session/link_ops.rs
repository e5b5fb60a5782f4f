//! Opening and closing the links of a session, and what is asked of one of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::idle_channel::IdleChannel;
use super::link_channel::{LinkChannel, Shared};
use super::state::lost;
use super::{Session, SessionEnd};
use crate::base::log_relay;
use crate::error::{Error, ErrorKind};
use crate::transport::amqp::command::{Got, LinkId};
use crate::transport::amqp::convert::Failure;

/// How long a link that the broker refuses to open again after a reconnect
/// waits for the next attempt.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

/// Whether a channel could be opened; if not, why.
pub(super) enum Opened<T> {
    Yes(T),
    Refused(String),
}

impl<'c> Session<'c> {
    /// Opens a channel, or takes one that is left.
    pub(super) fn open_channel(&mut self, confirms: bool) -> Result<IdleChannel<'c>, Failure> {
        let idle = self
            .idle_channels
            .iter()
            .position(|it| it.confirms == confirms);
        if let Some(at) = idle {
            return Ok(self.idle_channels.swap_remove(at));
        }
        // The broker would close the whole connection.
        if let Some(error) = self.io.link_table.no_more_channels(self.open_channels) {
            return Err(Failure::Refused(error));
        }
        self.is_opening_channel = true;
        let channel = self.connection.open_channel(None)?;
        self.is_opening_channel = false;
        self.open_channels += 1;
        Ok(IdleChannel::new(self.channels.alloc(channel), confirms))
    }

    /// The broker has closed a channel, and that has been dealt with.
    pub(super) fn channel_gone(&mut self, channel: u16) {
        self.io.observed.forget_channel_close(channel);
        self.io.transit.forget(channel);
        self.open_channels = self.open_channels.saturating_sub(1);
    }

    /// Opens a link's lane. A broker that refuses is its owner's error the
    /// first time; after a reconnect it is logged and tried again later.
    pub(super) fn open_link(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return Ok(());
        };
        // Each declaration is a round trip, and so are opening a channel, having
        // it confirm, setting its prefetch, and declaring and consuming a queue.
        let steps = registered.spec.topology.declarations() + 5;
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let limit = self.io.operation_timeout.saturating_mul(steps);
        let _armed = self.io.watchdog.arm(limit);
        let confirms = registered.spec.confirms;
        let channel = self.open_channel(confirms);
        let number = channel.as_ref().ok().map(|it| it.channel.channel_id());
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return Ok(());
        };
        let shared = Shared {
            observed: Arc::clone(self.io.observed),
            transit: Arc::clone(&self.io.transit),
        };
        match channel.and_then(|channel| LinkChannel::open(channel, registered, shared)) {
            Ok(link_channel) => {
                self.link_channels.insert(link, link_channel);
                if let Some(opening) = registered.opening.take() {
                    let _ = opening.try_send(Ok(()));
                }
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                let opening = registered.opening.take();
                number.into_iter().for_each(|it| self.channel_gone(it));
                if let Some(opening) = opening {
                    let _ = opening.try_send(Err(error));
                    self.io.link_table.remove(link);
                } else {
                    log_relay::log(
                        log::Level::Error,
                        "coney::amqp",
                        format_args!(
                            "a link cannot be opened again, next attempt in {REFUSED_RETRY:?}: \
                             {error}"
                        ),
                    );
                    self.retry_refused_at = Some(Instant::now() + REFUSED_RETRY);
                }
                Ok(())
            }
            Err(Failure::Lost(cause)) => Err(SessionEnd::Lost(cause)),
        }
    }

    pub(super) fn retry_refused(&mut self) -> Result<(), SessionEnd> {
        self.retry_refused_at = None;
        for link in self.io.link_table.ids() {
            if !self.link_channels.contains_key(&link) {
                self.open_link(link)?;
            }
        }
        Ok(())
    }

    /// Starts or stops the consumer of an open link.
    pub(super) fn consume(&mut self, link: LinkId, on: bool) -> Result<(), SessionEnd> {
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            return Ok(());
        };
        if !on {
            let mut fallbacks = Vec::new();
            let stopped = link_channel.stop_consuming(self.number, &mut fallbacks);
            self.io.link_table.send_first(link, fallbacks);
            return stopped.map_err(lost);
        }
        match self.io.link_table.get_mut(link) {
            Some(registered) => link_channel
                .resume_consuming(&registered.spec)
                .map_err(lost),
            None => Ok(()),
        }
    }

    /// Closes a link after sending what it was given before.
    pub(super) fn close_link(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        self.io.link_table.remove(link);
        self.flush()?;
        let link_channel = self.link_channels.remove(&link);
        let channel = link_channel.as_ref().map(LinkChannel::channel_id);
        match link_channel.map(|link_channel| link_channel.close(self.number)) {
            Some(Ok(idle)) => self.idle_channels.push(idle),
            // The broker has closed the channel: no loss now.
            Some(Err(Failure::Refused(_))) => {
                channel.into_iter().for_each(|it| self.channel_gone(it));
            }
            None => {}
            Some(Err(failure)) => return Err(lost(failure)),
        }
        Ok(())
    }

    /// Takes the first message off a queue. A queue that does not exist costs the
    /// channel; a link that has nothing else in it gets another.
    pub(super) fn get(
        &mut self,
        link: LinkId,
        queue: Option<&str>,
        done: &Sender<Got>,
    ) -> Result<(), SessionEnd> {
        let number = self.number;
        // One that is not waited for any more goes back as it is dropped.
        self.ask(
            link,
            queue.unwrap_or("a queue of our own"),
            done,
            |link_channel| match queue {
                Some(queue) => link_channel.get(queue, number),
                None => link_channel.get_own(number),
            },
        )
    }

    /// Asks something of a link's channel, and tells the answer. What the broker refuses
    /// costs the channel; a link that has nothing else in it gets another.
    pub(super) fn ask<T>(
        &mut self,
        link: LinkId,
        queue: &str,
        done: &Sender<Result<T, Error>>,
        ask: impl FnOnce(&mut LinkChannel<'c>) -> Result<T, Failure>,
    ) -> Result<(), SessionEnd> {
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            let refused = Error::new(ErrorKind::Broker, "the broker refuses to open this link");
            let _ = done.try_send(Err(refused));
            return Ok(());
        };
        match ask(link_channel) {
            Ok(answer) => {
                let _ = done.try_send(Ok(answer));
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                let cause = error.to_string();
                let _ = done.try_send(Err(error));
                if !link_channel.is_idle() {
                    return Err(SessionEnd::Lost(cause));
                }
                let channel = link_channel.channel_id();
                self.link_channels.remove(&link);
                self.channel_gone(channel);
                self.open_link(link)
            }
            Err(Failure::Lost(cause)) => {
                let lost = Error::new(
                    ErrorKind::ConnectionLost,
                    format!("the connection was lost while {queue:?} was read: {cause}"),
                );
                let _ = done.try_send(Err(lost));
                Err(SessionEnd::Lost(cause))
            }
        }
    }

    /// A link's channel does not work any more. If the broker has closed it, and the link
    /// consumes nothing, another channel is all that is needed: what was under way on it is
    /// told, and nothing else is lost. Else it is the connection that has to be replaced.
    pub(super) fn link_channel_failed(
        &mut self,
        link: LinkId,
        failure: Failure,
    ) -> Result<(), SessionEnd> {
        let Some(link_channel) = self
            .link_channels
            .get_mut(&link)
            .filter(|link_channel| link_channel.stands_alone())
        else {
            return Err(lost(failure));
        };
        let channel = link_channel.channel_id();
        let Some(reason) = self.io.observed.channel_close(channel) else {
            return Err(lost(failure));
        };
        log_relay::log(
            log::Level::Warn,
            "coney::amqp",
            format_args!("the broker closed a channel, which is replaced: {reason}"),
        );
        let fallbacks = link_channel.drain_after_loss(self.number);
        link_channel.refused(&reason.into());
        self.io.link_table.send_first(link, fallbacks);
        self.link_channels.remove(&link);
        self.channel_gone(channel);
        self.open_link(link)
    }
}
