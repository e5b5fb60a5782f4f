//! The sending side of a session: messages and settlements, while they can be sent.

use super::command::{LinkId, Outgoing};
use super::large::LargeMessage;
use super::session::{End, Session, lost};
use crate::relay;
use crate::transport::{Outcome, is_large};

impl Session<'_> {
    /// Settles a delivery. A large reply goes out first, and is confirmed.
    pub(super) fn settle(&mut self, link: LinkId, tag: u64, outcome: Outcome) -> Result<(), End> {
        let outcome = match outcome {
            Outcome::Ack { reply: Some(reply) } if is_large(reply.body.len()) => {
                self.large.add(LargeMessage {
                    link,
                    publication: *reply,
                    receipt: None,
                    reply_queue: None,
                    answers: Some(tag),
                });
                return self.send_large();
            }
            outcome => outcome,
        };
        match self.lanes.get_mut(&link) {
            Some(lane) => lane.settle(tag, outcome).map_err(lost),
            None => Ok(()),
        }
    }

    /// Something may be handed to amiquip: the broker reads it, or will soon.
    pub(super) fn may_publish(&self) -> bool {
        !self.blocked && !self.io.evidence.is_blocked() && self.io.transit.has_room()
    }

    /// Carries out the commands that had to wait.
    pub(super) fn deferred(&mut self) -> Result<(), End> {
        while self.may_publish() {
            let Some(command) = self.held.pop_front() else {
                return Ok(());
            };
            self.command(command)?;
        }
        Ok(())
    }

    /// Sends what was accepted before, so that closing loses nothing.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        let waiting = self.io.registry.again.len() + self.io.inbox.outgoing.len();
        if self.blocked || waiting == 0 {
            return Ok(());
        }
        self.send_all(waiting)
    }

    /// Carries out and sends all that was accepted before the end of the connection, as far as
    /// the broker takes it: each operation for at most the operation timeout.
    pub(super) fn finish(&mut self) -> Result<(), End> {
        if self.blocked {
            return Ok(());
        }
        for command in std::mem::take(&mut self.held) {
            self.command(command)?;
        }
        for link in self.io.registry.ids() {
            self.send_waiting(link)?;
        }
        self.flush()?;
        self.finish_large()
    }

    /// Sends up to `budget` messages, while they can be sent.
    pub(super) fn outgoing(&mut self, budget: usize) -> Result<(), End> {
        for _ in 0..budget {
            // Before each: the broker may have said meanwhile that it reads no more.
            if !self.may_publish() {
                return Ok(());
            }
            self.send_all(1)?;
        }
        Ok(())
    }

    fn send_all(&mut self, count: usize) -> Result<(), End> {
        for _ in 0..count {
            let again = self.io.registry.again.pop_front();
            let Some(next) = again.or_else(|| self.io.inbox.outgoing.try_recv().ok()) else {
                return Ok(());
            };
            self.publish(next)?;
        }
        Ok(())
    }

    pub(super) fn publish(&mut self, outgoing: Outgoing) -> Result<(), End> {
        let Outgoing {
            link,
            mut publication,
            receipt,
            ..
        } = outgoing;
        if is_large(publication.body.len())
            && let Some(lane) = self.lanes.get(&link)
        {
            self.large.add(LargeMessage {
                link,
                publication,
                receipt,
                reply_queue: lane.reply_queue(),
                answers: None,
            });
            return self.send_large();
        }
        let Some(lane) = self.lanes.get_mut(&link) else {
            self.cannot_send(link);
            return Ok(());
        };
        if publication.start_sending() {
            let _armed = self.io.watchdog.arm(self.io.operation_timeout);
            let published = lane.publish(publication, receipt);
            return published.or_else(|failure| self.lane_failed(link, failure));
        }
        Ok(())
    }

    pub(super) fn cannot_send(&mut self, link: LinkId) {
        if self.io.registry.get_mut(link).is_some() {
            relay::log(
                log::Level::Warn,
                "coney::amqp",
                format_args!("a message is dropped: the broker refuses to open its link"),
            );
        }
    }
}
