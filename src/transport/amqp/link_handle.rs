//! The handle through which other threads use an open link.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::coalesce_buffer::{Added, CoalesceBuffer};
use super::command::{Command, CommandSender, GetResult, LinkId, Outgoing, Refusal};
use crate::base::log_relay;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::transport::{
    ConfirmSender, Disposition, Limits, LinkHandle, PartialReply, Publication, Settler, is_large,
};

/// A handle to an open link of a connection.
pub(super) struct AmqpLinkHandle {
    pub(super) link: LinkId,
    pub(super) sender: CommandSender,
    pub(super) peer: Arc<str>,
    pub(super) limits: Arc<Limits>,
    pub(super) coalesce_buffer: Arc<CoalesceBuffer>,
    pub(super) refusal: Refusal,
    pub(super) owner: OwnerProcess,
}

/// The name prefixes of the threads on which amiquip runs, and so the program's logger may.
const AMIQUIP_THREADS: [&str; 2] = ["amiquip-io", "coney-io-"];

pub(super) fn no_room(peer: &str) -> Error {
    Error::timed_out(
        Phase::Send,
        format!("timed out waiting for room among the messages to be sent to {peer}"),
    )
}

pub(super) fn closed(peer: &str) -> Error {
    Error::new(
        ErrorKind::Closed,
        format!("the connection to {peer} has been closed"),
    )
    .with_nothing_ran(true)
}

impl AmqpLinkHandle {
    /// Returns an error where an operation would wait for its own thread, or, in a forked
    /// child, for threads that do not exist there.
    pub(super) fn check_thread(&self) -> Result<()> {
        self.owner.check(&self.peer)?;
        let misuse =
            |fault: String| Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(true));
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        if AMIQUIP_THREADS.iter().any(|it| name.starts_with(it)) {
            return misuse(format!(
                "a logger must not use the connection to {} from the thread {name}: it would wait \
                 for itself; set the log level of amiquip to info",
                self.peer
            ));
        }
        Ok(())
    }

    /// Adds a request to the coalesce buffer.
    fn publish_coalesced(&self, mut request: Publication, deadline: Instant) -> Result<()> {
        if !self.sender.make_room(&mut request, deadline) {
            return Err(match self.sender.is_closed() {
                true => self.closed(),
                false => self.no_room(),
            });
        }
        let added = self
            .coalesce_buffer
            .add(Box::new(request), deadline, || self.request_sending());
        match added {
            Added::Waits => Ok(()),
            Added::TooLate => Err(self.no_room()),
            Added::Closed => Err(self.closed()),
        }
    }

    /// Requests that the I/O thread send what is in the coalesce buffer. Fails only after the
    /// end of the connection, which drops what is in the buffer.
    fn request_sending(&self) {
        let _ = self.command(Command::SendCoalesced { link: self.link });
    }

    fn no_room(&self) -> Error {
        no_room(&self.peer)
    }

    pub(super) fn command(&self, command: Command) -> Result<()> {
        self.sender
            .commands
            .send(command)
            .map_err(|_| self.closed())
    }

    /// Sends a command and blocks until it is executed, at most until `deadline`.
    fn execute(
        &self,
        what: &str,
        deadline: Instant,
        command: impl FnOnce(LinkId, Sender<()>) -> Command,
    ) -> Result<()> {
        self.check_thread()?;
        let (done, is_done) = bounded(1);
        self.command(command(self.link, done))?;
        is_done
            .recv_deadline(deadline)
            .map_err(|error| self.no_answer(error.is_timeout(), what))
    }

    fn closed(&self) -> Error {
        closed(&self.peer)
    }

    fn get_from(&self, queue: Option<&str>, deadline: Instant) -> GetResult {
        self.query("return a message from a queue", deadline, |link, done| {
            Command::Get {
                link,
                queue: queue.map(str::to_owned),
                done,
            }
        })
    }

    /// Sends a command and blocks until its result arrives, at most until `deadline`.
    fn query<T>(
        &self,
        what: &str,
        deadline: Instant,
        command: impl FnOnce(LinkId, Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        self.check_thread()?;
        let (done, result) = bounded(1);
        self.command(command(self.link, done))?;
        match result.recv_deadline(deadline) {
            Ok(result) => result,
            Err(error) => Err(self.no_answer(error.is_timeout(), what)),
        }
    }

    pub(super) fn no_answer(&self, timed_out: bool, what: &str) -> Error {
        if timed_out {
            Error::timed_out(
                Phase::Broker,
                format!("{} did not {what} in time", self.peer),
            )
        } else {
            self.closed()
        }
    }
}

impl LinkHandle for AmqpLinkHandle {
    fn publish(
        &self,
        publication: Publication,
        confirm: Option<ConfirmSender>,
        deadline: Instant,
    ) -> Result<()> {
        self.check_thread()?;
        publication.check(&self.limits)?;
        if publication.coalesce.is_some() && !is_large(publication.body.len()) {
            return self.publish_coalesced(publication, deadline);
        }
        let outgoing = Outgoing::new(self.link, publication, confirm);
        if self.sender.send(outgoing, deadline) {
            return Ok(());
        }
        if self.sender.is_closed() {
            return Err(self.closed());
        }
        Err(self.no_room())
    }

    fn get(&self, queue: &str, deadline: Instant) -> GetResult {
        self.get_from(Some(queue), deadline)
    }

    fn get_own(&self, deadline: Instant) -> GetResult {
        self.get_from(None, deadline)
    }

    fn backlog(&self, queue: &str, deadline: Instant) -> Result<usize> {
        self.query("count the messages in a queue", deadline, |link, done| {
            Command::Backlog {
                link,
                queue: queue.to_owned(),
                done,
            }
        })
    }

    fn flush(&self, deadline: Instant) -> Result<()> {
        let (done, is_done) = bounded(1);
        self.command(Command::Flush {
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
                self.peer
            ),
        ))
    }

    fn stop_consuming(&self, deadline: Instant) -> Result<()> {
        self.execute("stop consuming", deadline, |link, done| {
            let on = false;
            Command::Consume { link, on, done }
        })
    }

    fn resume_consuming(&self, deadline: Instant) -> Result<()> {
        self.execute("resume consuming", deadline, |link, done| {
            let on = true;
            Command::Consume { link, on, done }
        })
    }

    fn delete_own_queue(&self, deadline: Instant) -> Result<()> {
        self.execute("delete a queue", deadline, |link, done| {
            Command::DeleteOwnQueue { link, done }
        })
    }

    fn refusal(&self) -> Option<String> {
        match self.owner.is_another() {
            true => None,
            false => self.refusal.lock().clone(),
        }
    }

    fn close(&self) {
        if self.owner.is_another() {
            return;
        }
        let _ = self.command(Command::CloseLink { link: self.link });
    }
}

impl Settler for AmqpLinkHandle {
    fn settle(&self, session: u64, tag: u64, outcome: Disposition) {
        let _ = self.command(Command::Settle {
            link: self.link,
            session,
            tag,
            outcome: outcome.checked(&self.limits),
        });
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
