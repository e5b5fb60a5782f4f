//! The sending side of a session: messages and settlements, while they can be sent.

use super::large::LargeMessage;
use super::state::lost;
use super::{Session, SessionEnd};
use crate::base::log_relay;
use crate::transport::amqp::command::{LinkId, Outgoing};
use crate::transport::{Disposition, is_large};

impl Session<'_> {
    /// Settles a delivery. A large reply goes out first, and is confirmed.
    pub(super) fn settle(
        &mut self,
        link: LinkId,
        tag: u64,
        outcome: Disposition,
    ) -> Result<(), SessionEnd> {
        let outcome = match outcome {
            Disposition::Ack { reply: Some(reply) } if is_large(reply.body.len()) => {
                self.large.add(LargeMessage {
                    link,
                    publication: *reply,
                    confirm: None,
                    reply_queue: None,
                    answers: Some(tag),
                });
                return self.send_large();
            }
            outcome => outcome,
        };
        match self.link_channels.get_mut(&link) {
            Some(link_channel) => link_channel.settle(tag, outcome).map_err(lost),
            None => Ok(()),
        }
    }

    /// Something may be handed to amiquip: the broker reads it, or will soon.
    pub(super) fn may_publish(&self) -> bool {
        !self.blocked && !self.io.observed.is_blocked() && self.io.transit.has_room()
    }

    /// Carries out the commands that had to wait.
    pub(super) fn run_deferred(&mut self) -> Result<(), SessionEnd> {
        while self.may_publish() {
            let Some(command) = self.deferred.pop_front() else {
                return Ok(());
            };
            self.command(command)?;
        }
        Ok(())
    }

    /// Sends what was accepted before, so that closing loses nothing.
    pub(super) fn flush(&mut self) -> Result<(), SessionEnd> {
        let waiting = self.io.link_table.resend.len() + self.io.receiver.outgoing.len();
        if self.blocked || waiting == 0 {
            return Ok(());
        }
        self.send_all(waiting)
    }

    /// Carries out and sends all that was accepted before the end of the connection, as far as
    /// the broker takes it: each operation for at most the operation timeout.
    pub(super) fn finish(&mut self) -> Result<(), SessionEnd> {
        if self.blocked {
            return Ok(());
        }
        for command in std::mem::take(&mut self.deferred) {
            self.command(command)?;
        }
        for link in self.io.link_table.ids() {
            self.send_waiting(link)?;
        }
        self.flush()?;
        self.finish_large()
    }

    /// Sends up to `budget` messages, while they can be sent.
    pub(super) fn outgoing(&mut self, budget: usize) -> Result<(), SessionEnd> {
        for _ in 0..budget {
            // Before each: the broker may have said meanwhile that it reads no more.
            if !self.may_publish() {
                return Ok(());
            }
            self.send_all(1)?;
        }
        Ok(())
    }

    fn send_all(&mut self, count: usize) -> Result<(), SessionEnd> {
        for _ in 0..count {
            let resend = self.io.link_table.resend.pop_front();
            let Some(next) = resend.or_else(|| self.io.receiver.outgoing.try_recv().ok()) else {
                return Ok(());
            };
            self.publish(next)?;
        }
        Ok(())
    }

    pub(super) fn publish(&mut self, outgoing: Outgoing) -> Result<(), SessionEnd> {
        let Outgoing {
            link,
            mut publication,
            confirm,
            ..
        } = outgoing;
        if is_large(publication.body.len())
            && let Some(link_channel) = self.link_channels.get(&link)
        {
            self.large.add(LargeMessage {
                link,
                publication,
                confirm,
                reply_queue: link_channel.reply_queue(),
                answers: None,
            });
            return self.send_large();
        }
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            self.cannot_send(link);
            return Ok(());
        };
        if publication.start_sending() {
            let _armed = self.io.watchdog.arm(self.io.operation_timeout);
            let published = link_channel.publish(publication, confirm);
            return published.or_else(|failure| self.link_channel_failed(link, failure));
        }
        Ok(())
    }

    pub(super) fn cannot_send(&mut self, link: LinkId) {
        if self.io.link_table.get_mut(link).is_some() {
            log_relay::log(
                log::Level::Warn,
                "coney::amqp",
                format_args!("a message is dropped: the broker refuses to open its link"),
            );
        }
    }
}
