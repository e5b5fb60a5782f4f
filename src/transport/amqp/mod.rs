//! RabbitMQ over amiquip.
//!
//! The way down: [`AmqpTransport`] hands commands to the `io_thread`, which
//! connects, runs a `session`, backs off and connects again; a session owns one
//! `lane` (an AMQP channel and its consumer) for each link; amiquip's own
//! socket thread runs below, on the `stream` that checks every byte.

mod builder;
mod command;
mod config;
mod confirms;
mod connect;
mod convert;
mod declare;
mod evidence;
mod gathering;
mod guard;
mod headers;
mod hello;
mod io_thread;
mod lane;
mod large;
mod links;
mod registry;
mod sanitize;
mod session;
mod spare;
mod states;
mod stream;
mod swallow;
mod transit;
mod url;
mod waiting;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

pub use self::builder::BrokerBuilder;
use self::command::{Command, Got, LinkId, Outbox, Outgoing, Registered};
use self::config::Config;
use self::guard::FRAME_MAX;

use self::io_thread::IoHandle;
pub use self::states::ConnectionState;
use self::states::Listener;
use self::waiting::{Added, Waiting};
use super::{
    Limits, LinkSpec, Outcome, PartialReply, Publication, Receipt, Room, Settle, Sink, Transport,
    Wire, is_large,
};
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::relay;

pub(crate) struct AmqpTransport {
    outbox: Outbox,
    io: IoHandle,
    last_link: AtomicU64,
    peer: Arc<str>,
    limits: Arc<Limits>,
    config: Config,
    /// The process that has made the connection. In one that was forked from it there are
    /// no threads to serve it, and its socket is the parent's.
    process: u32,
}

impl AmqpTransport {
    /// Starts the I/O thread and waits for its first connection.
    fn connect(config: Config, listener: Option<Listener>) -> Result<Self> {
        let peer = Arc::from(config.peer());
        let limits = Arc::new(Limits::new(
            config.max_body,
            config.max_dead_letter,
            FRAME_MAX as usize,
        ));
        let (outbox, inbox) = command::channels(config.outgoing_bytes);
        let io = IoHandle::start(config.clone(), inbox, Arc::clone(&limits), listener)?;
        Ok(Self {
            outbox,
            io,
            last_link: AtomicU64::new(0),
            peer,
            limits,
            config,
            process: std::process::id(),
        })
    }
}

impl Transport for AmqpTransport {
    fn open(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        deadline: Instant,
    ) -> Result<Arc<dyn Wire>> {
        let wire = Arc::new(AmqpWire {
            link: self.last_link.fetch_add(1, Ordering::Relaxed) + 1,
            outbox: self.outbox.clone(),
            peer: Arc::clone(&self.peer),
            limits: Arc::clone(&self.limits),
            waiting: Arc::new(Waiting::new(self.config.max_body)),
            process: self.process,
        });
        wire.check_thread()?;
        let (done, opened) = bounded(1);
        let settler = Arc::clone(&wire) as Arc<dyn Settle>;
        wire.command(Command::Open {
            link: wire.link,
            registered: Registered {
                spec,
                sink,
                settler,
                waiting: Arc::clone(&wire.waiting),
                opening: Some(done),
            },
        })?;
        match opened.recv_deadline(deadline) {
            Ok(Ok(())) => Ok(wire),
            Ok(Err(error)) => Err(error),
            Err(error) => {
                wire.close();
                Err(wire.no_answer(error.is_timeout(), "declare what the link needs"))
            }
        }
    }

    fn another(&self, large: Option<usize>) -> Result<Option<Box<dyn Transport>>> {
        let mut config = self.config.clone();
        if let Some(bytes) = large {
            config.max_body = bytes;
            config.outgoing_bytes = bytes;
            config.operation_timeout +=
                TIME_PER_LARGE * u32::try_from(bytes >> 18).unwrap_or(u32::MAX);
        }
        let another = Self::connect(config, None)?;
        Ok(Some(Box::new(another)))
    }

    fn has_sessions(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: usize, deadline: Option<Instant>) -> Result<Option<Arc<Room>>> {
        match self.outbox.reserve(bytes, deadline) {
            Some(room) => Ok(Some(room)),
            None if self.outbox.is_closed() => Err(closed(&self.peer)),
            None => Err(no_room(&self.peer)),
        }
    }

    /// In a forked process it does nothing: there the connection is another's.
    fn close(&self, deadline: Instant) -> Result<()> {
        if self.process != std::process::id() {
            return Ok(());
        }
        let _ = self.outbox.commands.send(Command::Close);
        if self.io.join(deadline) {
            return Ok(());
        }
        Err(Error::timed_out(
            Phase::Shutdown,
            format!("the connection to {} did not close in time", self.peer),
        ))
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A call takes some hundred microseconds, more than is worth it.
    fn awake(&self) -> Duration {
        Duration::ZERO
    }

    fn peer(&self) -> &str {
        &self.peer
    }
}

struct AmqpWire {
    link: LinkId,
    outbox: Outbox,
    peer: Arc<str>,
    limits: Arc<Limits>,
    waiting: Arc<Waiting>,
    process: u32,
}

/// For each 256 KiB of a message that goes out over a connection of its own.
const TIME_PER_LARGE: Duration = Duration::from_secs(1);

/// The thread on which amiquip runs, and with it a logger of the program's.
const AMIQUIP_THREAD: &str = "amiquip-io";

fn no_room(peer: &str) -> Error {
    Error::timed_out(
        Phase::Send,
        format!("timed out waiting for room among the messages for {peer}"),
    )
}

fn closed(peer: &str) -> Error {
    Error::new(
        ErrorKind::Closed,
        format!("the connection to {peer} has been closed"),
    )
    .with_nothing_ran(true)
}

impl AmqpWire {
    /// Fails where the operation could only wait for itself, or for threads that are not
    /// there.
    fn check_thread(&self) -> Result<()> {
        let misuse = |fault: String| Err(Error::new(ErrorKind::Misuse, fault));
        if std::process::id() != self.process {
            return misuse(format!(
                "the connection to {} belongs to the process {}, from which this one was forked; \
                 connect after the fork",
                self.peer, self.process
            ));
        }
        if std::thread::current().name() == Some(AMIQUIP_THREAD) {
            return misuse(format!(
                "a logger must not use the connection to {} from the thread {AMIQUIP_THREAD}: it \
                 would wait for itself; log amiquip at info",
                self.peer
            ));
        }
        Ok(())
    }

    /// Hands over a request that may share a message.
    fn publish_with_others(&self, mut request: Publication, deadline: Instant) -> Result<()> {
        if !self.outbox.make_room(&mut request, deadline) {
            return Err(match self.outbox.is_closed() {
                true => self.closed(),
                false => self.no_room(),
            });
        }
        let added = self
            .waiting
            .add(Box::new(request), deadline, || self.tell_of_waiting());
        match added {
            Added::Waits => Ok(()),
            Added::TooLate => Err(self.no_room()),
            Added::Closed => Err(self.closed()),
        }
    }

    /// Fails only after the end of the connection, which ends what waits.
    fn tell_of_waiting(&self) {
        let _ = self.command(Command::SendWaiting { link: self.link });
    }

    fn no_room(&self) -> Error {
        no_room(&self.peer)
    }

    fn command(&self, command: Command) -> Result<()> {
        self.outbox
            .commands
            .send(command)
            .map_err(|_| self.closed())
    }

    /// Has something done, and waits until it is.
    fn wait_for(
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

    fn get_from(&self, queue: Option<&str>, deadline: Instant) -> Got {
        self.ask("give out a message", deadline, |link, done| Command::Get {
            link,
            queue: queue.map(str::to_owned),
            done,
        })
    }

    /// Asks something, and waits for the answer.
    fn ask<T>(
        &self,
        what: &str,
        deadline: Instant,
        command: impl FnOnce(LinkId, Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        self.check_thread()?;
        let (done, answer) = bounded(1);
        self.command(command(self.link, done))?;
        match answer.recv_deadline(deadline) {
            Ok(answer) => answer,
            Err(error) => Err(self.no_answer(error.is_timeout(), what)),
        }
    }

    fn no_answer(&self, timed_out: bool, what: &str) -> Error {
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

impl Wire for AmqpWire {
    fn publish(
        &self,
        publication: Publication,
        receipt: Option<Receipt>,
        deadline: Instant,
    ) -> Result<()> {
        self.check_thread()?;
        publication.check(&self.limits)?;
        if publication.sharing.is_some() && !is_large(publication.body.len()) {
            return self.publish_with_others(publication, deadline);
        }
        let outgoing = Outgoing::new(self.link, publication, receipt);
        if self.outbox.send(outgoing, deadline) {
            return Ok(());
        }
        if self.outbox.is_closed() {
            return Err(self.closed());
        }
        Err(self.no_room())
    }

    fn get(&self, queue: &str, deadline: Instant) -> Got {
        self.get_from(Some(queue), deadline)
    }

    fn get_own(&self, deadline: Instant) -> Got {
        self.get_from(None, deadline)
    }

    fn backlog(&self, queue: &str, deadline: Instant) -> Result<usize> {
        self.ask("count messages", deadline, |link, done| Command::Backlog {
            link,
            queue: queue.to_owned(),
            done,
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
                 acknowledgements; what it has not is delivered again",
                self.peer
            ),
        ))
    }

    fn stop_consuming(&self, deadline: Instant) -> Result<()> {
        self.wait_for("stop consuming", deadline, |link, done| {
            let on = false;
            Command::Consume { link, on, done }
        })
    }

    fn resume_consuming(&self, deadline: Instant) -> Result<()> {
        self.wait_for("resume consuming", deadline, |link, done| {
            let on = true;
            Command::Consume { link, on, done }
        })
    }

    fn delete_own_queue(&self, deadline: Instant) -> Result<()> {
        self.wait_for("delete a queue", deadline, |link, done| {
            Command::DeleteOwnQueue { link, done }
        })
    }

    fn close(&self) {
        let _ = self.command(Command::CloseLink { link: self.link });
    }
}

impl Settle for AmqpWire {
    fn settle(&self, session: u64, tag: u64, outcome: Outcome) {
        let _ = self.command(Command::Settle {
            link: self.link,
            session,
            tag,
            outcome: outcome.checked(&self.limits),
        });
    }

    /// Over whatever connection there is when it is sent: if it is another one, what it
    /// answers is delivered again, and answered again, which its caller does not notice.
    fn reply(&self, _session: u64, _tag: u64, reply: PartialReply<'_>) {
        let added = self.waiting.add_reply(reply, || self.tell_of_waiting());
        if let Added::TooLate = added {
            let line = format_args!("a reply is dropped: it cannot be sent in time");
            relay::log(log::Level::Warn, "coney::amqp", line);
        }
    }
}
