//! The health checks of a server: an unhealthy one stops consuming.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::sources::Consumers;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::registry::Registration;

/// The longest time for which starting a server waits for the first verdict.
const FIRST_VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

/// The shortest interval between two rounds of checks: a shorter one would use up a core.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The log target. Lines go through the log thread: a logger that panics must not end this one.
const TARGET: &str = "coney::server";

/// The longest time that pausing or resuming the consumers may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// A check of something that a server needs.
pub(super) struct Check {
    pub(super) name: String,
    /// The check; its error says what is wrong.
    pub(super) run: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// True if a single failure makes the server unhealthy, as the check waits for some time before
    /// it fails.
    pub(super) fails_at_once: bool,
}

/// The result of all checks: the name and the error of a failed check, or `None` if the server is
/// healthy.
pub(super) type HealthVerdict = Option<String>;

/// The parts of a server that follow the verdict.
pub(super) struct CheckedServer {
    /// The verdict that the server was started with.
    pub(super) verdict: HealthVerdict,
    pub(super) consumers: Arc<Consumers>,
    pub(super) registration: Option<Arc<Registration>>,
}

/// The thread that runs a server's checks.
pub(super) struct Health {
    thread: NamedThread,
    verdict: Receiver<HealthVerdict>,
    watched: Sender<CheckedServer>,
}

impl Health {
    /// Starts the thread that runs the checks. It ends with [`stop`](Health::stop).
    pub(super) fn start(
        service: &str,
        checks: Vec<Check>,
        interval: Duration,
        failures: u32,
    ) -> std::io::Result<Self> {
        let (first, verdict) = bounded(1);
        // One slot, for the one server. Dropping the sender stops the thread.
        let (watched, watched_receiver) = bounded(1);
        let name = format!("coney-health-{service}");
        let checking = Checking {
            service: service.to_owned(),
            failed: vec![0; checks.len()],
            checks,
            interval: interval.max(MIN_INTERVAL),
            failures: failures.max(1),
        };
        let thread = NamedThread::spawn(name, move || checking.run(&first, &watched_receiver))?;
        Ok(Self {
            thread,
            verdict,
            watched,
        })
    }

    /// Returns the first verdict. Blocks until all checks have run, at most 10 s.
    pub(super) fn first_verdict(&self) -> HealthVerdict {
        self.verdict
            .recv_timeout(FIRST_VERDICT_TIMEOUT)
            .unwrap_or_else(|_| {
                Some(format!(
                    "the checks take longer than {FIRST_VERDICT_TIMEOUT:?}"
                ))
            })
    }

    /// Applies changes of the verdict to `watched` from now on.
    pub(super) fn watch(&self, watched: CheckedServer) {
        let _ = self.watched.try_send(watched);
    }

    /// Stops the checks. Blocks until a running check has ended, at most until `deadline`.
    pub(super) fn stop(self, deadline: Instant) {
        drop(self.watched);
        let _ = self.thread.join_deadline(deadline);
    }
}

/// The state of the thread.
struct Checking {
    service: String,
    checks: Vec<Check>,
    /// The number of times that each check has failed in a row.
    failed: Vec<u32>,
    interval: Duration,
    /// The number of failures in a row that make the server unhealthy.
    failures: u32,
}

impl Checking {
    fn run(mut self, first: &Sender<HealthVerdict>, watched: &Receiver<CheckedServer>) {
        let mut now = self.check(1);
        let _ = first.try_send(now.clone());
        let Ok(server) = watched.recv() else { return };
        // This differs from `now` if the first checks took too long.
        let mut verdict = server.verdict.clone();
        loop {
            if now != verdict {
                server.consumers.unhealthy.lock().clone_from(&now);
            }
            if now.is_some() != verdict.is_some() {
                self.change(&server, &now);
            } else if let (Some(registration), true) = (&server.registration, now != verdict) {
                registration.set_unhealthy(now.as_deref());
            }
            verdict = now;
            match watched.recv_timeout(self.interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
            }
            // An unhealthy server stays so until all checks pass.
            let failures = if verdict.is_some() { 1 } else { self.failures };
            now = self.check(failures);
        }
    }

    /// Runs all checks up to the first one that has failed `failures` times in a row, and returns
    /// its name and error.
    fn check(&mut self, failures: u32) -> HealthVerdict {
        let mut checks = self.checks.iter().zip(&mut self.failed);
        checks.find_map(|(check, failed)| {
            let result = catch(&check.run);
            let fault = match result {
                Ok(Ok(())) => {
                    *failed = 0;
                    return None;
                }
                Ok(Err(fault)) => fault,
                Err(_) => "it panicked".to_owned(),
            };
            *failed = failed.saturating_add(1);
            if *failed < failures && !check.fails_at_once {
                log_relay::log(
                    log::Level::Info,
                    TARGET,
                    format_args!(
                        "{}: the health check {} failed, {failed} of {failures} times: {fault}",
                        self.service, check.name
                    ),
                );
                return None;
            }
            Some(format!("{}: {fault}", check.name))
        })
    }

    /// Pauses or resumes consuming, and notes the verdict in the registry.
    fn change(&self, watched: &CheckedServer, verdict: &HealthVerdict) {
        let service = &self.service;
        let update_registration = || {
            if let Some(registration) = &watched.registration {
                registration.set_unhealthy(verdict.as_deref());
            }
        };
        let deadline = deadline::after(CHANGE_TIMEOUT);
        match verdict {
            Some(fault) => {
                log_relay::log(
                    log::Level::Warn,
                    TARGET,
                    format_args!("{service} is unhealthy and stopped consuming: {fault}"),
                );
                update_registration();
                watched.consumers.pause(deadline);
            }
            None => {
                log_relay::log(
                    log::Level::Info,
                    TARGET,
                    format_args!("{service} is healthy and consumes again"),
                );
                watched.consumers.resume(deadline);
                update_registration();
            }
        }
    }
}
