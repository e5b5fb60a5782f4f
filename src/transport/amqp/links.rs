//! Opening and closing the links of a session, and what is asked of one of them.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::command::{Got, LinkId};
use super::convert::Failure;
use super::lane::Lane;
use super::session::{End, Session, lost};
use super::spare::Spare;
use crate::error::{Error, ErrorKind};

/// How long a link that the broker refuses to open again after a reconnect
/// waits for the next attempt.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

impl Session<'_> {
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
        let spare = self
            .spare
            .iter()
            .position(|spare| spare.confirms == confirms);
        let channel = match spare {
            Some(at) => Ok(self.spare.swap_remove(at)),
            None => match self.connection.open_channel(None) {
                Ok(channel) => Ok(Spare::new(self.channels.alloc(channel), confirms)),
                Err(error) => Err(Failure::from(error)),
            },
        };
        match channel.and_then(|channel| Lane::open(channel, registered)) {
            Ok(lane) => {
                self.lanes.insert(link, lane);
                if let Some(opening) = registered.opening.take() {
                    let _ = opening.try_send(Ok(()));
                }
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                self.io.evidence.forget_channel_close();
                if let Some(opening) = registered.opening.take() {
                    let _ = opening.try_send(Err(error));
                    self.io.registry.remove(link);
                } else {
                    log::error!(
                        target: "coney::amqp",
                        "a link cannot be opened again, next attempt in {REFUSED_RETRY:?}: {error}"
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
            return lane.stop_consuming().map_err(lost);
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
        match self.lanes.remove(&link).map(Lane::close) {
            Some(Ok(spare)) => self.spare.push(spare),
            // The broker has closed the channel: nobody's loss now.
            Some(Err(Failure::Refused(_))) => self.io.evidence.forget_channel_close(),
            None => {}
            Some(Err(failure)) => return Err(lost(failure)),
        }
        Ok(())
    }

    /// Takes the first message off a queue. A queue that does not exist costs the
    /// channel; a link that has nothing else in it gets another.
    pub(super) fn get(&mut self, link: LinkId, queue: &str, done: &Sender<Got>) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&link) else {
            let refused = Error::new(ErrorKind::Broker, "the broker refuses to open this link");
            let _ = done.try_send(Err(refused));
            return Ok(());
        };
        match lane.get(queue, self.number) {
            // One that nobody waits for any more goes back as it is dropped.
            Ok(got) => {
                let _ = done.try_send(Ok(got));
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                let cause = error.to_string();
                let _ = done.try_send(Err(error));
                if !lane.is_idle() {
                    return Err(End::Lost(cause));
                }
                self.lanes.remove(&link);
                self.io.evidence.forget_channel_close();
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
}
