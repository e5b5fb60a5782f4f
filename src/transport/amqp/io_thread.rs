use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use typed_arena::Arena;

use super::command::Inbox;
use super::config::Config;
use super::connect::{Connected, connect};
use super::registry::Registry;
use super::session::{CONNECTION_ENDED, End, Io, Session};
use super::watchdog::Watchdog;
use crate::deadline;
use crate::error::{Error, ErrorKind, Result};

/// A session that lasted this long starts the reconnect delays anew; a shorter
/// one may be part of a loop of losses, and the delays go on growing.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// The connection's I/O thread, seen from outside.
pub(super) struct IoHandle {
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
    kill: Box<dyn Fn() + Send + Sync>,
}

impl IoHandle {
    /// Starts the thread and waits until it has connected or failed to.
    pub(super) fn start(config: Config, inbox: Inbox) -> Result<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let no_thread = |error: std::io::Error| {
            Error::new(ErrorKind::Connect, "cannot start the connection's threads")
                .with_source(error)
        };
        let watchdog = Watchdog::start(number).map_err(no_thread)?;
        let kill = Box::new(watchdog.killer());
        let (started, first) = bounded(1);
        let (alive, ended) = bounded(0);
        let io = IoThread {
            peer: config.peer().into(),
            config,
            inbox,
            registry: Registry::default(),
            watchdog,
            sessions: 0,
        };
        let thread = thread::Builder::new()
            .name(format!("coney-io-{number}"))
            .spawn(move || {
                let _alive: Sender<()> = alive;
                io.run(&started);
            })
            .map_err(no_thread)?;
        // The thread answers within the connect timeout.
        match first.recv() {
            Ok(Ok(())) => Ok(Self {
                thread: Mutex::new(Some(thread)),
                ended,
                kill,
            }),
            Ok(Err(error)) => {
                let _ = thread.join();
                Err(error)
            }
            Err(_) => Err(Error::new(
                ErrorKind::Connect,
                "the connection's thread has died",
            )),
        }
    }

    /// Waits for the thread to end; false if it has not by `deadline`, in
    /// which case the socket is cut and the thread ends by itself.
    pub(super) fn join(&self, deadline: Instant) -> bool {
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            (self.kill)();
            return false;
        }
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        true
    }
}

struct IoThread {
    peer: Arc<str>,
    config: Config,
    inbox: Inbox,
    registry: Registry,
    watchdog: Watchdog,
    sessions: u64,
}

impl IoThread {
    fn run(mut self, started: &Sender<Result<()>>) {
        let mut connected = match connect(&self.config, &self.watchdog) {
            Ok(connected) => connected,
            Err(error) => {
                let _ = started.try_send(Err(error));
                return;
            }
        };
        let _ = started.try_send(Ok(()));
        let mut delays = self.delays();
        loop {
            log::info!(target: "coney::amqp", "connected to {}", self.peer);
            let since = Instant::now();
            match self.session(connected) {
                End::Closed => return self.registry.closed("the connection was closed"),
                End::Lost(cause) => {
                    log::warn!(target: "coney::amqp", "lost the connection to {}: {cause}", self.peer);
                    self.registry.lost(&cause);
                }
            }
            if since.elapsed() >= STABLE_AFTER {
                delays = self.delays();
            }
            connected = match self.reconnect(&mut delays) {
                Ok(connected) => connected,
                Err(cause) => return self.registry.closed(&cause),
            };
        }
    }

    fn session(&mut self, connected: Connected) -> End {
        let Connected {
            mut connection,
            evidence,
        } = connected;
        self.sessions += 1;
        let mut end = {
            let channels = Arena::new();
            let io = Io {
                inbox: &self.inbox,
                registry: &mut self.registry,
                watchdog: &self.watchdog,
                operation_timeout: self.config.operation_timeout,
            };
            let end = match Session::start(self.sessions, &mut connection, &channels, io) {
                Ok(session) => session.run(),
                Err(end) => end,
            };
            // Each channel closes with a round trip as it is dropped.
            let _armed = self.watchdog.arm(self.config.operation_timeout);
            drop(channels);
            end
        };
        // amiquip tells the cause of a connection's death only here.
        let armed = self.watchdog.arm(self.config.operation_timeout);
        let closing = connection.close();
        drop(armed);
        if let End::Lost(cause) = &mut end {
            if let Some((code, text)) = evidence.server_close() {
                *cause = format!("the broker closed it: {code} {text}");
            } else if let Some(violation) = evidence.violation() {
                *cause = violation;
            } else if let (Err(error), true) = (closing, cause == CONNECTION_ENDED) {
                *cause = error.to_string();
            }
        }
        end
    }

    /// Tries again until connected, after growing delays. The error says why
    /// it gave up: the limit was reached, or the broker handle was closed.
    fn reconnect(
        &mut self,
        delays: &mut ExponentialBackoff,
    ) -> std::result::Result<Connected, String> {
        let mut attempts = 0;
        loop {
            if self.config.reconnect_limit == Some(attempts) {
                return Err(format!("gave up reconnecting after {attempts} attempts"));
            }
            // The delays never run out; the type cannot say so.
            let delay = delays.next().unwrap_or(self.config.reconnect_max);
            if self.closed_while_waiting(deadline::after(delay)) {
                return Err("the connection was closed".to_owned());
            }
            attempts += 1;
            match connect(&self.config, &self.watchdog) {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    log::warn!(target: "coney::amqp", "attempt {attempts} to reconnect: {error}");
                }
            }
        }
    }

    /// Serves what can be served without a connection.
    fn closed_while_waiting(&mut self, until: Instant) -> bool {
        loop {
            match self.inbox.commands.recv_deadline(until) {
                Ok(command) => {
                    if self.registry.apply(command) {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn delays(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.config.reconnect_min)
            .with_max_delay(self.config.reconnect_max)
            .with_jitter()
            .without_max_times()
            .build()
    }
}
