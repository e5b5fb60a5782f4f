//! The sending side of a session: messages and settlements, as far as they can be sent.

use super::large::LargeMessage;
use super::state::lost;
use super::{Session, SessionEnd};
use crate::base::log_relay;
use crate::transport::amqp::command::{LinkId, Outgoing};
use crate::transport::amqp::link_outlet::ChannelClosed;
use crate::transport::{ConfirmSender, Disposition, Publication, Refused, is_large};

impl Session<'_> {
    /// Settles a delivery. A large reply is published first; the acknowledgement waits for its
    /// publisher confirm.
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
                    replies_to: Some(tag),
                });
                return self.send_large();
            }
            outcome => outcome,
        };
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            return Ok(());
        };
        link_channel.settle(tag, outcome).map_err(lost)?;
        link_channel.route.pass_on_waiting();
        Ok(())
    }

    /// Returns true if more may be sent: the broker is not blocked, and the writer has
    /// room.
    pub(super) fn may_publish(&self) -> bool {
        !self.blocked && !self.io.observed.is_blocked() && self.io.writer.has_room_or_wakes()
    }

    /// Executes the deferred commands, as far as possible.
    pub(super) fn run_deferred(&mut self) -> Result<(), SessionEnd> {
        while self.may_publish() {
            let Some(command) = self.deferred.pop_front() else {
                return Ok(());
            };
            self.command(command)?;
        }
        Ok(())
    }

    /// Sends the messages that were accepted before, so that closing loses none.
    pub(super) fn flush(&mut self) -> Result<(), SessionEnd> {
        let waiting = self.io.link_table.waiting() + self.io.receiver.outgoing.len();
        if self.blocked || waiting == 0 {
            return Ok(());
        }
        self.send_all(waiting)
    }

    /// Executes and sends everything that was accepted before the end of the connection, as far
    /// as the broker accepts it. Each operation takes at most the operation timeout.
    pub(super) fn finish(&mut self) -> Result<(), SessionEnd> {
        if self.blocked {
            return Ok(());
        }
        for command in std::mem::take(&mut self.deferred) {
            self.command(command)?;
        }
        for link in self.io.link_table.ids() {
            self.send_coalesced(link)?;
        }
        self.flush()?;
        self.finish_large()
    }

    /// Sends up to `budget` messages, as far as they can be sent.
    pub(super) fn outgoing(&mut self, budget: usize) -> Result<(), SessionEnd> {
        for _ in 0..budget {
            // Checked before each: the broker may have blocked publishing meanwhile.
            if !self.may_publish() {
                return Ok(());
            }
            self.send_all(1)?;
        }
        Ok(())
    }

    fn send_all(&mut self, count: usize) -> Result<(), SessionEnd> {
        for _ in 0..count {
            let first = self.io.link_table.next();
            let Some(next) = first.or_else(|| self.io.receiver.outgoing.try_recv().ok()) else {
                return Ok(());
            };
            self.publish(next)?;
        }
        Ok(())
    }

    pub(super) fn publish(&mut self, outgoing: Outgoing) -> Result<(), SessionEnd> {
        let link = outgoing.link;
        if let Some(link_channel) = self.link_channels.get_mut(&link)
            && !link_channel.is_open()
        {
            let _armed = self.io.watchdog.arm(self.io.operation_timeout);
            let failure = link_channel.ended(ChannelClosed);
            // Not sent, so it goes first on the next channel.
            self.io.link_table.resend.push_front(outgoing);
            return self.link_channel_failed(link, failure);
        }
        let Outgoing {
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
                replies_to: None,
            });
            return self.send_large();
        }
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            self.refuse_unopened(link, publication, confirm);
            return Ok(());
        };
        if publication.start_sending() {
            let _armed = self.io.watchdog.arm(self.io.operation_timeout);
            let published = link_channel.publish(&publication, confirm);
            return published.or_else(|failure| self.link_channel_failed(link, failure));
        }
        Ok(())
    }

    /// Drops a message for a link that the broker refuses to open. The reason is logged, and is the
    /// error of a call.
    pub(super) fn refuse_unopened(
        &mut self,
        link: LinkId,
        publication: Publication,
        confirm: Option<ConfirmSender>,
    ) {
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return; // closed by its owner
        };
        let refusal = registered.refusal.lock().clone().unwrap_or_default();
        let reason = format!("the broker refuses to open its link: {refusal}");
        log_relay::log(
            log::Level::Warn,
            "coney::amqp",
            format_args!("a message is dropped: {reason}"),
        );
        // Settled as dropped: it was not sent, while a refused message was.
        if confirm.is_some() {
            return;
        }
        // The outcome of a message that was sent before is unknown: its call ends at its deadline.
        let send_state = publication.send_state.as_ref();
        if send_state.is_some_and(|it| it.was_resent()) {
            return;
        }
        let refused = Refused {
            correlation_id: publication.properties.correlation_id.as_deref(),
            bytes: publication.body.len(),
            limit: None,
            reason: Some(&reason),
        };
        self.io.link_table.refused(link, refused);
    }
}
