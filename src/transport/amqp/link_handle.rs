//! The handle through which other threads use an open link.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::bounded;

use super::coalesce_buffer::{Added, CoalesceBuffer};
use super::command::{Command, GetResult, LinkId, Outgoing, Refusal, WaitingCount, WaitingMark};
use super::command_port::CommandPort;
use super::link_outlet::{LinkOutlet, Settled};
use crate::base::log_relay;
use crate::error::{Error, Phase, Result};
use crate::transport::{
    ConfirmSender, Disposition, Limits, LinkHandle, PartialReply, Publication, Settler, is_large,
};

/// A handle to an open link of a connection.
pub(super) struct AmqpLinkHandle {
    pub(super) link: LinkId,
    pub(super) port: CommandPort,
    pub(super) limits: Arc<Limits>,
    pub(super) outlet: Arc<LinkOutlet>,
    pub(super) waiting: WaitingCount,
    pub(super) coalesce_buffer: Arc<CoalesceBuffer>,
    pub(super) refusal: Refusal,
}

impl AmqpLinkHandle {
    /// Adds a request to the coalesce buffer.
    fn publish_coalesced(&self, mut request: Publication, deadline: Instant) -> Result<()> {
        if !self.port.sender.make_room(&mut request, deadline) {
            return Err(match self.port.sender.is_closed() {
                true => self.port.closed(),
                false => self.port.no_room(),
            });
        }
        let added = self
            .coalesce_buffer
            .add(Box::new(request), deadline, || self.request_sending());
        match added {
            Added::Waits => Ok(()),
            Added::TooLate => Err(self.port.no_room()),
            Added::Closed => Err(self.port.closed()),
        }
    }

    /// Requests that the I/O thread send what is in the coalesce buffer. Fails only after the
    /// end of the connection, which drops what is in the buffer.
    fn request_sending(&self) {
        let _ = self
            .port
            .command(Command::SendCoalesced { link: self.link });
    }

    fn get_from(&self, queue: Option<&str>, deadline: Instant) -> GetResult {
        let (link, queue) = (self.link, queue.map(str::to_owned));
        self.port
            .query("return a message from a queue", deadline, |done| {
                Command::Get { link, queue, done }
            })
    }
}

impl LinkHandle for AmqpLinkHandle {
    fn publish(
        &self,
        mut publication: Publication,
        confirm: Option<ConfirmSender>,
        deadline: Instant,
    ) -> Result<()> {
        self.port.check_thread()?;
        publication.check(&self.limits)?;
        if !is_large(publication.body.len()) {
            if publication.coalesce.is_some() {
                return self.publish_coalesced(publication, deadline);
            }
            if confirm.is_none()
                && self.waiting.load(Ordering::SeqCst) == 0
                && self.outlet.try_publish(&mut publication)
            {
                return Ok(());
            }
        }
        let mut outgoing = Outgoing::new(self.link, publication, confirm);
        outgoing.waits = Some(WaitingMark::new(&self.waiting));
        if self.port.sender.send(outgoing, deadline) {
            return Ok(());
        }
        if self.port.sender.is_closed() {
            return Err(self.port.closed());
        }
        Err(self.port.no_room())
    }

    fn get(&self, queue: &str, deadline: Instant) -> GetResult {
        self.get_from(Some(queue), deadline)
    }

    fn get_own(&self, deadline: Instant) -> GetResult {
        self.get_from(None, deadline)
    }

    fn flush(&self, deadline: Instant) -> Result<()> {
        let (done, is_done) = bounded(1);
        self.port.command(Command::Flush {
            link: self.link,
            done,
        })?;
        let fault = match is_done.recv_deadline(deadline) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_timeout() => "did not confirm in time",
            Err(_) => "was lost before it could confirm",
        };
        Err(Error::timed_out(
            Phase::Shutdown,
            format!(
                "the connection to {} {fault} that the broker has the last replies and \
                 acknowledgements; requests without an acknowledgement are redelivered",
                self.port.peer
            ),
        ))
    }

    fn stop_consuming(&self, deadline: Instant) -> Result<()> {
        let (link, on) = (self.link, false);
        self.port
            .execute("stop consuming", deadline, |done| Command::Consume {
                link,
                on,
                done,
            })
    }

    fn resume_consuming(&self, deadline: Instant) -> Result<()> {
        let (link, on) = (self.link, true);
        self.port
            .execute("resume consuming", deadline, |done| Command::Consume {
                link,
                on,
                done,
            })
    }

    fn set_prefetch(&self, count: u16, deadline: Instant) -> Result<()> {
        let (link, count) = (self.link, count.max(1));
        self.port
            .execute("change a prefetch", deadline, |done| Command::SetPrefetch {
                link,
                count,
                done,
            })
    }

    fn delete_own_queue(&self, deadline: Instant) -> Result<()> {
        let link = self.link;
        self.port
            .execute("delete a queue", deadline, |done| Command::DeleteOwnQueue {
                link,
                done,
            })
    }

    fn refusal(&self) -> Option<String> {
        match self.port.owner.is_another() {
            true => None,
            false => self.refusal.lock().clone(),
        }
    }

    fn close(&self) {
        if self.port.owner.is_another() {
            return;
        }
        let _ = self.port.command(Command::CloseLink { link: self.link });
    }
}

impl Settler for AmqpLinkHandle {
    fn settle(&self, session: u64, tag: u64, outcome: Disposition) {
        if self.port.owner.is_another() {
            return; // the connection is the parent's
        }
        let (link, outcome) = (self.link, outcome.checked(&self.limits));
        let settled = match self.coalesce_buffer.has_unsent_replies() {
            true => Settled::NotNow(outcome),
            false => self.outlet.try_settle(session, tag, outcome),
        };
        let command = match settled {
            Settled::Done => return,
            Settled::MakesRoom => Command::PassOnWaiting { link },
            Settled::NotNow(outcome) => Command::Settle {
                link,
                session,
                tag,
                outcome,
            },
        };
        let _ = self.port.command(command);
    }

    /// Adds a reply to the coalesce buffer. It leaves over the connection that is up when it is
    /// sent: if that is another one than the request came over, the request is redelivered and
    /// replied to again, which its caller does not notice.
    fn reply(&self, _session: u64, _tag: u64, reply: PartialReply<'_>) {
        let to = reply.to;
        let added = self
            .coalesce_buffer
            .add_reply(reply, || self.request_sending());
        if let Added::TooLate = added {
            log_relay::log(
                log::Level::Warn,
                "coney::amqp",
                format_args!("a reply to {to:?} is dropped: it cannot be sent in time"),
            );
        }
    }
}
