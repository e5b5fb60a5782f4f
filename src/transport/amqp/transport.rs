//! The transport over RabbitMQ: opens links on one connection.

use crate::transport::ConnectionState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::coalesce_buffer::CoalesceBuffer;
use super::command::{self, Command, Refusal, RegisteredLink, WaitingCount};
use super::command_port::CommandPort;
use super::config::Config;
use super::frame_max::FRAME_MAX;
use super::io_thread::IoHandle;
use super::link_handle::AmqpLinkHandle;
use super::state_listener::Listener;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, Phase, Result};
use crate::transport::{Limits, LinkHandle, LinkSpec, QueueDepth, Room, Settler, Sink, Transport};

/// A connection to RabbitMQ, on which links are opened.
pub(crate) struct AmqpTransport {
    port: CommandPort,
    io: IoHandle,
    last_link: AtomicU64,
    limits: Arc<Limits>,
    config: Config,
}

impl AmqpTransport {
    /// Starts the I/O thread and blocks until it has connected or failed to.
    pub(super) fn connect(config: Config, listener: Option<Listener>) -> Result<Self> {
        let (starting, first) = Self::start(config, listener)?;
        Ok(Self {
            io: starting.io.wait_until_connected(&first)?,
            ..starting
        })
    }

    /// Starts the I/O thread, which connects. The receiver gets the outcome.
    fn start(config: Config, listener: Option<Listener>) -> Result<(Self, Receiver<Result<()>>)> {
        let limits = Arc::new(Limits::new(
            config.max_body,
            config.max_dead_letter,
            FRAME_MAX as usize,
        ));
        let (sender, receiver) = command::channels(config.outgoing_bytes);
        let (io, first) = IoHandle::start(config.clone(), receiver, Arc::clone(&limits), listener)?;
        let starting = Self {
            port: CommandPort {
                sender,
                peer: Arc::from(config.address()),
                owner: OwnerProcess::current(),
            },
            io,
            last_link: AtomicU64::new(0),
            limits,
            config,
        };
        Ok((starting, first))
    }
}

impl Transport for AmqpTransport {
    fn open(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        deadline: Instant,
    ) -> Result<Arc<dyn LinkHandle>> {
        let handle = Arc::new(AmqpLinkHandle {
            link: self.last_link.fetch_add(1, Ordering::Relaxed) + 1,
            port: self.port.clone(),
            limits: Arc::clone(&self.limits),
            outlet: Arc::default(),
            waiting: WaitingCount::default(),
            coalesce_buffer: Arc::new(CoalesceBuffer::new(self.config.max_body)),
            refusal: Refusal::default(),
        });
        handle.port.check_thread()?;
        let (done, opened) = bounded(1);
        let settler = Arc::clone(&handle) as Arc<dyn Settler>;
        handle.port.command(Command::Open {
            link: handle.link,
            registered: Box::new(RegisteredLink {
                spec,
                sink,
                settler,
                outlet: Arc::clone(&handle.outlet),
                commands: self.port.sender.commands.clone(),
                coalesce_buffer: Arc::clone(&handle.coalesce_buffer),
                refusal: Arc::clone(&handle.refusal),
                opening: Some(done),
            }),
        })?;
        match opened.recv_deadline(deadline) {
            Ok(Ok(())) => Ok(handle),
            Ok(Err(error)) => Err(error),
            Err(error) => {
                handle.close();
                Err(handle.port.no_answer(
                    error.is_timeout(),
                    "declare the queues and exchanges of the link",
                ))
            }
        }
    }

    fn second_connection(&self, large: Option<usize>) -> Result<Option<Box<dyn Transport>>> {
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

    fn administration(&self) -> Result<Option<Arc<dyn Transport>>> {
        let (starting, _) = Self::start(self.config.administration(), None)?;
        Ok(Some(Arc::new(starting)))
    }

    fn queue_depth(&self, queue: &str, deadline: Instant) -> Result<QueueDepth> {
        let queue = queue.to_owned();
        self.port
            .query("count the messages in a queue", deadline, |done| {
                Command::Depth {
                    queue,
                    deadline,
                    done,
                }
            })
    }

    fn can_reconnect(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: usize, deadline: Option<Instant>) -> Result<Option<Arc<Room>>> {
        match self.port.sender.reserve(bytes, deadline) {
            Some(room) => Ok(Some(room)),
            None if self.port.sender.is_closed() => Err(self.port.closed()),
            None => Err(self.port.no_room()),
        }
    }

    /// Closes the connection. Does nothing in a forked child, as the connection is the parent's.
    fn close(&self, deadline: Instant) -> Result<()> {
        if self.port.owner.is_another() {
            return Ok(());
        }
        let _ = self.port.sender.commands.send(Command::Close);
        if self.io.join(deadline) {
            return Ok(());
        }
        Err(Error::timed_out(
            Phase::Shutdown,
            format!("the connection to {} did not close in time", self.port.peer),
        ))
    }

    fn state(&self) -> ConnectionState {
        self.io.state()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns zero: a call takes some hundred microseconds, too long to spin for.
    fn spin_for(&self) -> Duration {
        Duration::ZERO
    }

    fn address(&self) -> &str {
        &self.port.peer
    }
}

/// The time added to the operation timeout for each 256 KiB of a large message that has a
/// connection of its own.
const TIME_PER_LARGE: Duration = Duration::from_secs(1);
