use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use typed_arena::Arena;

use super::command::CommandReceiver;
use super::config::Config;
use super::connect::{Connected, NotConnected, connect};
use super::link_table::LinkTable;
use super::session::{CONNECTION_ENDED, SWEEP_INTERVAL, Session, SessionContext, SessionEnd};
use super::state_listener::{ConnectionState, Listener, StateNotifier};
use super::watchdog::Watchdog;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Limits;

/// A session that lasted this long starts the reconnect delays anew; a shorter
/// one may be part of a loop of losses, and the delays go on growing.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// While nothing listens there, an attempt costs next to nothing: then the next one comes
/// after this at most, so that a broker that was away for long is used again soon.
const LONGEST_REFUSED: Duration = Duration::from_secs(1);

/// How long a failed attempt to connect waits for its threads: the listener may
/// still have to hear of it.
const LAST_CHANGES: Duration = Duration::from_secs(1);

/// The connection's I/O thread, and the state listener's, seen from outside.
pub(super) struct IoHandle {
    threads: Mutex<Vec<NamedThread>>,
    kill: Box<dyn Fn() + Send + Sync>,
}

impl IoHandle {
    /// Starts the thread and waits until it has connected or failed to.
    pub(super) fn start(
        config: Config,
        receiver: CommandReceiver,
        limits: Arc<Limits>,
        listener: Option<Listener>,
    ) -> Result<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let no_thread = |error: std::io::Error| {
            Error::new(ErrorKind::Connect, "cannot start the connection's threads")
                .with_source(error)
        };
        let watchdog = Watchdog::start(number).map_err(no_thread)?;
        let kill = Box::new(watchdog.killer());
        let (state_notifier, listener) =
            StateNotifier::start(number, listener).map_err(no_thread)?;
        let mut threads = Vec::from_iter(listener);
        let (started, first) = bounded(1);
        let mut io = IoThread {
            peer: config.address().into(),
            config,
            receiver,
            link_table: LinkTable::default(),
            watchdog,
            state_notifier,
            sessions: 0,
            limits,
        };
        let run = move || {
            // Nothing in there should panic; if it does, no caller must wait for ever.
            let run = || io.run(&started);
            if let Err(panic) = catch(run) {
                let cause = format!("the I/O thread panicked: {}", panic);
                let line = format_args!("{}: {cause}", io.peer);
                log_relay::log(log::Level::Error, "coney::amqp", line);
                io.closed(&cause);
            }
        };
        threads.push(NamedThread::spawn(format!("coney-io-{number}"), run).map_err(no_thread)?);
        // The thread answers within the connect timeout, or as long as it may
        // go on trying.
        let failed = match first.recv() {
            Ok(Ok(())) => {
                return Ok(Self {
                    threads: Mutex::new(threads),
                    kill,
                });
            }
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::Connect, "the connection's thread has died"),
        };
        let soon = deadline::after(LAST_CHANGES);
        for thread in threads.into_iter().rev() {
            let _ = thread.join_deadline(soon);
        }
        Err(failed)
    }

    /// Waits for the threads to end; false if they have not by `deadline`, in
    /// which case the socket is cut and they end by themselves.
    pub(super) fn join(&self, deadline: Instant) -> bool {
        let Some(mut threads) = self.threads.try_lock_until(deadline) else {
            return false; // another thread waits for them
        };
        while let Some(thread) = threads.pop() {
            if let Err(running) = thread.join_deadline(deadline) {
                (self.kill)();
                threads.push(running);
                return false;
            }
        }
        true
    }
}

struct IoThread {
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
        let give_up_at = deadline::after(self.config.first_connect);
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
            let line = format_args!("connected to {}", self.peer);
            log_relay::log(log::Level::Info, "coney::amqp", line);
            self.state_notifier.notify(ConnectionState::Connected);
            let since = Instant::now();
            match self.session(connected) {
                SessionEnd::Closed => return self.closed("the connection was closed"),
                SessionEnd::Lost(cause) => {
                    let line = format_args!("lost the connection to {}: {cause}", self.peer);
                    log_relay::log(log::Level::Warn, "coney::amqp", line);
                    self.link_table.lost(&cause);
                    self.state_notifier.notify(ConnectionState::Lost(cause));
                }
            }
            if since.elapsed() >= STABLE_AFTER {
                delays = self.delays();
            }
            // The delays never run out; the type cannot say so.
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
            transit,
        } = connected;
        self.sessions += 1;
        // It may be another broker, or one with other settings.
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
                transit,
                limits: &self.limits,
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
        if let SessionEnd::Lost(cause) = &mut end {
            if let Some((code, text)) = observed.server_close() {
                *cause = format!("the broker closed it: {code} {text}");
            } else if let Some(violation) = observed.violation() {
                *cause = violation;
            } else if let (Err(error), true) = (closing, cause == CONNECTION_ENDED) {
                *cause = error.to_string();
            }
        }
        end
    }

    /// Tries until connected, with growing delays in between. Gives up after
    /// `give_up_at`, after as many attempts as are allowed, and when the broker
    /// handle is closed.
    fn connect(
        &mut self,
        delays: &mut ExponentialBackoff,
        give_up_at: Option<Instant>,
    ) -> Result<Connected> {
        let mut attempts = 0;
        loop {
            self.state_notifier.notify(ConnectionState::Connecting);
            let NotConnected { error, was_refused } = match connect(&self.config, &self.watchdog) {
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
            let line = format_args!("attempt {attempts} to connect: {error}");
            log_relay::log(log::Level::Warn, "coney::amqp", line);
            self.state_notifier
                .notify(ConnectionState::Lost(error.to_string()));
            let mut delay = delays.next().unwrap_or(self.config.reconnect_max);
            if was_refused {
                delay = delay.min(LONGEST_REFUSED.mul_f64(0.5 + 0.5 * fastrand::f64()));
            }
            let next = deadline::after(delay);
            if self.closed_while_waiting(give_up_at.map_or(next, |at| at.min(next))) {
                return Err(was_closed());
            }
        }
    }

    /// Serves what can be served without a connection.
    fn closed_while_waiting(&mut self, until: Instant) -> bool {
        loop {
            let tick = until.min(Instant::now() + SWEEP_INTERVAL);
            match self.receiver.commands.recv_deadline(tick) {
                Ok(command) => {
                    if self.link_table.apply(command) {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.link_table
                        .keep_unsent(self.receiver.outgoing.try_iter());
                    if Instant::now() >= until {
                        return false;
                    }
                }
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

fn was_closed() -> Error {
    Error::new(ErrorKind::Closed, "the connection was closed")
}
