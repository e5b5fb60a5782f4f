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
mod lane_consumer;
mod large;
mod links;
mod publish;
mod registry;
mod sanitize;
mod sending;
mod session;
mod spare;
mod states;
mod stream;
mod swallow;
mod transit;
mod url;
mod waiting;
mod wake;
mod watchdog;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

pub use self::builder::BrokerBuilder;
use self::command::{Command, Outbox, Registered};
use self::config::Config;
use self::guard::FRAME_MAX;

use self::io_thread::IoHandle;
pub use self::states::ConnectionState;
use self::states::Listener;
use self::waiting::Waiting;
use self::wire::{AmqpWire, closed, no_room};
use super::{Limits, LinkSpec, Room, Settle, Sink, Transport, Wire};
use crate::error::{Error, Phase, Result};
use crate::running::Home;

pub(crate) struct AmqpTransport {
    outbox: Outbox,
    io: IoHandle,
    last_link: AtomicU64,
    peer: Arc<str>,
    limits: Arc<Limits>,
    config: Config,
    /// The process that has made the connection. In one that was forked from it there are
    /// no threads to serve it, and its socket is the parent's.
    home: Home,
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
            home: Home::here(),
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
            home: self.home,
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
        if self.home.is_elsewhere() {
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

/// For each 256 KiB of a message that goes out over a connection of its own.
const TIME_PER_LARGE: Duration = Duration::from_secs(1);
