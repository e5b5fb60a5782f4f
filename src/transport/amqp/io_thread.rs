//! The I/O thread of a connection, which connects, runs a session, backs off and reconnects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use typed_arena::Arena;

use super::command::CommandReceiver;
use super::config::Config;
use super::connect::{Connected, NotConnected, connect};
use super::convert::CONNECTION_ENDED;
use super::link_table::LinkTable;
use super::session::{SWEEP_INTERVAL, Session, SessionContext, SessionEnd};
use super::state_listener::{CurrentState, Listener, StateNotifier};
use super::watchdog::Watchdog;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::ConnectionState;
use crate::transport::Limits;

/// The duration of a session after which the reconnect delays start anew. A shorter session
/// may be one of a series of losses, over which the delays go on growing.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// The longest delay after a refused connection. While no process listens at the address, an
/// attempt costs next to nothing, so a broker that was down for long is used again soon.
const LONGEST_REFUSED_DELAY: Duration = Duration::from_secs(1);

/// The time for which a connection that could not be made waits for its threads to end: the
/// listener may not have been called for the last state changes yet.
const JOIN_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A handle to the I/O thread of a connection and to the thread of its state listener.
pub(super) struct IoHandle {
    threads: Mutex<Vec<NamedThread>>,
    kill: Box<dyn Fn() + Send + Sync>,
    state: CurrentState,
}

impl IoHandle {
    /// Starts the threads; does not wait for the connection. The receiver gets the outcome of the
    /// first attempt.
    pub(super) fn start(
        config: Config,
        receiver: CommandReceiver,
        limits: Arc<Limits>,
        listener: Option<Listener>,
    ) -> Result<(Self, Receiver<Result<()>>)> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let no_thread = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "cannot start the connection's threads").with_source(error)
        };
        let watchdog = Watchdog::start(number).map_err(no_thread)?;
        let kill = Box::new(watchdog.killer());
        let state = CurrentState::new();
        let (state_notifier, listener) =
            StateNotifier::start(number, listener, state.clone()).map_err(no_thread)?;
        let mut threads = Vec::from_iter(listener);
        let (started, first) = bounded(1);
        let mut io = IoThread {
            number,
            peer: config.log_name().into(),
            config,
            receiver,
            link_table: LinkTable::default(),
            watchdog,
            state_notifier,
            sessions: 0,
            limits,
        };
        let run = move || {
            // Not expected to panic; if it does, no caller must wait for ever.
            let run = || io.run(&started);
            if let Err(panic) = catch(run) {
                let cause = format!("the I/O thread panicked: {panic}");
                log_relay::log(
                    log::Level::Error,
                    "coney::amqp",
                    format_args!("{}: {cause}", io.peer),
                );
                io.closed(&cause);
            }
        };
        threads.push(NamedThread::spawn(format!("coney-io-{number}"), run).map_err(no_thread)?);
        let handle = Self {
            threads: Mutex::new(threads),
            kill,
            state,
        };
        Ok((handle, first))
    }

    /// Blocks until the connection is made or has failed: no longer than the connect timeout plus
    /// the time for retries.
    pub(super) fn wait_until_connected(self, first: &Receiver<Result<()>>) -> Result<Self> {
        let failed = match first.recv() {
            Ok(Ok(())) => return Ok(self),
            Ok(Err(error)) => error,
            Err(_) => Error::new(
                ErrorKind::Connect,
                "the connection's I/O thread ended before it had connected",
            ),
        };
        let soon = deadline::after(JOIN_AFTER_FAILURE);
        for thread in self.threads.into_inner().into_iter().rev() {
            let _ = thread.join_deadline(soon);
        }
        Err(failed)
    }

    /// Returns the latest state of the connection.
    pub(super) fn state(&self) -> ConnectionState {
        self.state.get()
    }

    /// Blocks until the threads have ended. Returns false if they have not by `deadline`: the
    /// socket is then shut down, and they end by themselves.
    pub(super) fn join(&self, deadline: Instant) -> bool {
        // Without the lock: the listener may close the connection while another thread does.
        let ends: Vec<_> = self
            .threads
            .lock()
            .iter()
            .filter_map(NamedThread::end)
            .collect();
        for end in ends {
            if end.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
                (self.kill)();
                return false;
            }
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join_deadline(deadline);
        }
        true
    }
}

struct IoThread {
    number: u64,
    peer: Arc<str>,
    config: Config,
    receiver: CommandReceiver,
    link_table: LinkTable,
    watchdog: Watchdog,
    state_notifier: StateNotifier,
    sessions: u64,
    limits: Arc<Limits>,
}

impl IoThread {
    fn run(&mut self, started: &Sender<Result<()>>) {
        let mut delays = self.delays();
        let give_up_at = deadline::after(self.config.initial_connect_timeout);
        let mut connected = match self.connect(&mut delays, Some(give_up_at)) {
            Ok(connected) => connected,
            Err(error) => {
                self.closed(&error.to_string());
                let _ = started.try_send(Err(error));
                return;
            }
        };
        let _ = started.try_send(Ok(()));
        loop {
            log_relay::log(
                log::Level::Info,
                "coney::amqp",
                format_args!("connected to {}", self.peer),
            );
            self.state_notifier.notify(ConnectionState::Connected);
            let since = Instant::now();
            match self.session(connected) {
                SessionEnd::Closed => return self.closed("the connection was closed"),
                SessionEnd::Lost(cause) => {
                    log_relay::log(
                        log::Level::Warn,
                        "coney::amqp",
                        format_args!("lost the connection to {}: {cause}", self.peer),
                    );
                    if self.config.idle_timeout.is_some() {
                        return self.closed(&cause); // another is made when it is needed
                    }
                    self.link_table.lost(&cause);
                    self.state_notifier.notify(ConnectionState::Lost(cause));
                }
            }
            if since.elapsed() >= STABLE_AFTER {
                delays = self.delays();
            }
            // The delays have no end, which their type does not show.
            let delay = delays.next().unwrap_or(self.config.reconnect_max);
            let reconnected = match self.closed_while_waiting(deadline::after(delay)) {
                true => Err(was_closed()),
                false => self.connect(&mut delays, None),
            };
            connected = match reconnected {
                Ok(connected) => connected,
                Err(error) => return self.closed(&error.to_string()),
            };
        }
    }

    fn closed(&mut self, cause: &str) {
        self.receiver.close();
        self.link_table.closed(cause);
        self.state_notifier
            .notify(ConnectionState::Closed(cause.to_owned()));
    }

    fn session(&mut self, connected: Connected) -> SessionEnd {
        let Connected {
            mut connection,
            observed,
            writer,
            routes,
        } = connected;
        self.sessions += 1;
        // The broker may be another one, or have other settings.
        self.limits.forget_broker();
        self.limits.set_frame_max(observed.frame_max() as usize);
        let mut end = {
            let channels = Arena::new();
            let io = SessionContext {
                receiver: &self.receiver,
                link_table: &mut self.link_table,
                watchdog: &self.watchdog,
                state_notifier: &self.state_notifier,
                observed: &observed,
                writer: writer.writer(),
                routes: &routes,
                limits: &self.limits,
                operation_timeout: self.config.operation_timeout,
                idle_timeout: self.config.idle_timeout,
            };
            let end = match Session::start(self.sessions, &mut connection, &channels, io) {
                Ok(session) => session.run(),
                Err(end) => end,
            };
            // Dropping a channel closes it, with a round trip.
            let _armed = self.watchdog.arm(self.config.operation_timeout);
            drop(channels);
            end
        };
        // amiquip returns the cause of a lost connection only here.
        let armed = self.watchdog.arm(self.config.operation_timeout);
        let closing = connection.close();
        drop(armed);
        if let SessionEnd::Lost(cause) = &mut end {
            if let Some((code, text)) = observed.server_close() {
                *cause = format!("the broker closed the connection: {code} {text}");
            } else if let Some(violation) = observed.violation() {
                *cause = violation;
            } else if let (Err(error), true) = (closing, cause == CONNECTION_ENDED) {
                *cause = error.to_string();
            }
        }
        end
    }

    /// Retries until connected, with growing delays in between. Gives up at
    /// `give_up_at`, after the allowed number of attempts, and when the broker
    /// handle is closed.
    fn connect(
        &mut self,
        delays: &mut ExponentialBackoff,
        give_up_at: Option<Instant>,
    ) -> Result<Connected> {
        let mut attempts = 0;
        loop {
            self.state_notifier.notify(ConnectionState::Connecting);
            let connected = connect(self.number, &self.config, &self.watchdog);
            let NotConnected { error, was_refused } = match connected {
                Ok(connected) => return Ok(connected),
                Err(failed) => failed,
            };
            attempts += 1;
            let late = give_up_at.is_some_and(|at| at <= Instant::now());
            if late
                || self
                    .config
                    .reconnect_limit
                    .is_some_and(|limit| attempts >= limit)
            {
                let fault = match attempts {
                    1 => error.to_string(),
                    _ => format!("gave up after {attempts} attempts to connect: {error}"),
                };
                return Err(Error::new(ErrorKind::Connect, fault));
            }
            log_relay::log(
                log::Level::Warn,
                "coney::amqp",
                format_args!("attempt {attempts} to connect failed: {error}"),
            );
            self.state_notifier
                .notify(ConnectionState::Lost(error.to_string()));
            let mut delay = delays.next().unwrap_or(self.config.reconnect_max);
            if was_refused {
                delay = delay.min(LONGEST_REFUSED_DELAY.mul_f64(0.5 + 0.5 * fastrand::f64()));
            }
            let next = deadline::after(delay);
            if self.closed_while_waiting(give_up_at.map_or(next, |at| at.min(next))) {
                return Err(was_closed());
            }
        }
    }

    /// Executes commands without a session until `until`; returns true if the broker handle
    /// is closed meanwhile.
    fn closed_while_waiting(&mut self, until: Instant) -> bool {
        let mut next_sweep = Instant::now();
        loop {
            match self.receiver.commands.recv_deadline(until.min(next_sweep)) {
                Ok(command) => {
                    if self.link_table.apply(command) {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
            }
            // Checked after commands too: many of them delay neither.
            let now = Instant::now();
            if now >= next_sweep {
                let new = self.receiver.outgoing.try_iter();
                self.link_table.keep_unsent(new);
                next_sweep = now + SWEEP_INTERVAL;
            }
            if now >= until {
                return false;
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

fn was_closed() -> Error {
    Error::new(ErrorKind::Closed, "the connection was closed")
}
