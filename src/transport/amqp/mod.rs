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
mod links;
mod registry;
mod sanitize;
mod session;
mod spare;
mod states;
mod stream;
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

use self::io_thread::IoHandle;
pub use self::states::ConnectionState;
use self::states::Listener;
use self::waiting::{Added, Waiting};
use super::{LinkSpec, Outcome, PartialReply, Publication, Receipt, Settle, Sink, Transport, Wire};
use crate::error::{Error, ErrorKind, Phase, Result};

pub(crate) const DEFAULT_MAX_BODY: usize = 16 << 20;

pub(crate) struct AmqpTransport {
    outbox: Outbox,
    io: IoHandle,
    last_link: AtomicU64,
    peer: Arc<str>,
    max_body: usize,
    config: Config,
}

impl AmqpTransport {
    /// Starts the I/O thread and waits for its first connection.
    fn connect(config: Config, listener: Option<Listener>) -> Result<Self> {
        let peer = Arc::from(config.peer());
        let max_body = config.max_body;
        let (outbox, inbox) = command::channels();
        let io = IoHandle::start(config.clone(), inbox, listener)?;
        Ok(Self {
            outbox,
            io,
            last_link: AtomicU64::new(0),
            peer,
            max_body,
            config,
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
            max_body: self.max_body,
            waiting: Arc::new(Waiting::new(self.max_body)),
        });
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

    fn another(&self) -> Result<Option<Box<dyn Transport>>> {
        let another = Self::connect(self.config.clone(), None)?;
        Ok(Some(Box::new(another)))
    }

    fn close(&self, deadline: Instant) -> Result<()> {
        let _ = self.outbox.commands.send(Command::Close);
        if self.io.join(deadline) {
            return Ok(());
        }
        Err(Error::timed_out(
            Phase::Shutdown,
            format!("the connection to {} did not close in time", self.peer),
        ))
    }

    fn max_body(&self) -> usize {
        self.max_body
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
    max_body: usize,
    waiting: Arc<Waiting>,
}

impl AmqpWire {
    /// Hands over a request that may share a message.
    fn publish_with_others(&self, request: Publication, deadline: Instant) -> Result<()> {
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
        Error::timed_out(
            Phase::Send,
            format!(
                "timed out waiting for room among the messages for {}",
                self.peer
            ),
        )
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
        let (done, is_done) = bounded(1);
        self.command(command(self.link, done))?;
        is_done
            .recv_deadline(deadline)
            .map_err(|error| self.no_answer(error.is_timeout(), what))
    }

    fn closed(&self) -> Error {
        Error::new(
            ErrorKind::Closed,
            format!("the connection to {} has been closed", self.peer),
        )
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
        publication.check(self.max_body)?;
        if publication.sharing.is_some() {
            return self.publish_with_others(publication, deadline);
        }
        let outgoing = Outgoing {
            link: self.link,
            publication,
            receipt,
        };
        if self.outbox.send(outgoing, deadline) {
            return Ok(());
        }
        if self.outbox.is_closed() {
            return Err(self.closed());
        }
        Err(self.no_room())
    }

    fn get(&self, queue: &str, deadline: Instant) -> Got {
        let (done, got) = bounded(1);
        self.command(Command::Get {
            link: self.link,
            queue: queue.to_owned(),
            done,
        })?;
        match got.recv_deadline(deadline) {
            Ok(got) => got,
            Err(error) => Err(self.no_answer(error.is_timeout(), "give out a message")),
        }
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
            outcome: outcome.checked(self.max_body),
        });
    }

    /// Over whatever connection there is when it is sent: if it is another one, what it
    /// answers is delivered again, and answered again, which its caller does not notice.
    fn reply(&self, _session: u64, _tag: u64, reply: PartialReply<'_>) {
        let added = self.waiting.add_reply(reply, || self.tell_of_waiting());
        if let Added::TooLate = added {
            log::warn!(target: "coney::amqp", "a reply is dropped: it cannot be sent in time");
        }
    }
}
