//! Opening and closing the links of a session, and what is asked of one of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::command::{Got, LinkId};
use super::convert::Failure;
use super::lane::{Lane, Shared};
use super::session::{End, Session, lost};
use super::spare::Spare;
use crate::error::{Error, ErrorKind};
use crate::relay;

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
    pub(super) fn open_channel(&mut self, confirms: bool) -> Result<Spare<'c>, Failure> {
        let spare = self.spare.iter().position(|it| it.confirms == confirms);
        if let Some(at) = spare {
            return Ok(self.spare.swap_remove(at));
        }
        // The broker would close the whole connection.
        if let Some(error) = self.io.registry.no_more_channels(self.open_channels) {
            return Err(Failure::Refused(error));
        }
        self.is_opening_channel = true;
        let channel = self.connection.open_channel(None)?;
        self.is_opening_channel = false;
        self.open_channels += 1;
        Ok(Spare::new(self.channels.alloc(channel), confirms))
    }

    /// The broker has closed a channel, and that has been dealt with.
    pub(super) fn channel_gone(&mut self, channel: u16) {
        self.io.evidence.forget_channel_close(channel);
        self.io.transit.forget(channel);
        self.open_channels = self.open_channels.saturating_sub(1);
    }

    /// Opens a link's lane. A broker that refuses is its owner's error the
    /// first time; after a reconnect it is logged and tried again later.
    pub(super) fn open_link(&mut self, link: LinkId) -> Result<(), End> {
        let Some(registered) = self.io.registry.get_mut(link) else {
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
        let Some(registered) = self.io.registry.get_mut(link) else {
            return Ok(());
        };
        let shared = Shared {
            evidence: Arc::clone(self.io.evidence),
            transit: Arc::clone(&self.io.transit),
        };
        match channel.and_then(|channel| Lane::open(channel, registered, shared)) {
            Ok(lane) => {
                self.lanes.insert(link, lane);
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
                    self.io.registry.remove(link);
                } else {
                    relay::log(
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
            Err(Failure::Lost(cause)) => Err(End::Lost(cause)),
        }
    }

    pub(super) fn retry_refused(&mut self) -> Result<(), End> {
        self.retry_refused_at = None;
        for link in self.io.registry.ids() {
            if !self.lanes.contains_key(&link) {
                self.open_link(link)?;
            }
        }
        Ok(())
    }

    /// Starts or stops the consumer of an open link.
    pub(super) fn consume(&mut self, link: LinkId, on: bool) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&link) else {
            return Ok(());
        };
        if !on {
            return lane.stop_consuming(self.number).map_err(lost);
        }
        match self.io.registry.get_mut(link) {
            Some(registered) => lane.resume_consuming(&registered.spec).map_err(lost),
            None => Ok(()),
        }
    }

    /// Closes a link after sending what it was given before.
    pub(super) fn close_link(&mut self, link: LinkId) -> Result<(), End> {
        self.io.registry.remove(link);
        self.flush()?;
        let lane = self.lanes.remove(&link);
        let channel = lane.as_ref().map(Lane::channel_id);
        match lane.map(|lane| lane.close(self.number)) {
            Some(Ok(spare)) => self.spare.push(spare),
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
    ) -> Result<(), End> {
        let number = self.number;
        // One that is not waited for any more goes back as it is dropped.
        self.ask(
            link,
            queue.unwrap_or("a queue of our own"),
            done,
            |lane| match queue {
                Some(queue) => lane.get(queue, number),
                None => lane.get_own(number),
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
        ask: impl FnOnce(&mut Lane<'c>) -> Result<T, Failure>,
    ) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&link) else {
            let refused = Error::new(ErrorKind::Broker, "the broker refuses to open this link");
            let _ = done.try_send(Err(refused));
            return Ok(());
        };
        match ask(lane) {
            Ok(answer) => {
                let _ = done.try_send(Ok(answer));
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                let cause = error.to_string();
                let _ = done.try_send(Err(error));
                if !lane.is_idle() {
                    return Err(End::Lost(cause));
                }
                let channel = lane.channel_id();
                self.lanes.remove(&link);
                self.channel_gone(channel);
                self.open_link(link)
            }
            Err(Failure::Lost(cause)) => {
                let lost = Error::new(
                    ErrorKind::ConnectionLost,
                    format!("the connection was lost while {queue:?} was read: {cause}"),
                );
                let _ = done.try_send(Err(lost));
                Err(End::Lost(cause))
            }
        }
    }

    /// A link's channel does not work any more. If the broker has closed it, and the link
    /// consumes nothing, another channel is all that is needed: what was under way on it is
    /// told, and nothing else is lost. Else it is the connection that has to be replaced.
    pub(super) fn lane_failed(&mut self, link: LinkId, failure: Failure) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&link).filter(|lane| lane.stands_alone()) else {
            return Err(lost(failure));
        };
        let channel = lane.channel_id();
        let Some(reason) = self.io.evidence.channel_close(channel) else {
            return Err(lost(failure));
        };
        relay::log(
            log::Level::Warn,
            "coney::amqp",
            format_args!("the broker closed a channel, which is replaced: {reason}"),
        );
        lane.pass_on_last_words(self.number);
        lane.refused(&reason.into());
        self.io.registry.send_instead(link, lane);
        self.lanes.remove(&link);
        self.channel_gone(channel);
        self.open_link(link)
    }
}
