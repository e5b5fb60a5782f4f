//! The health of a server: one whose checks or attempts fail stops consuming.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use super::health_rounds::{Fault, HealthRounds, HealthVerdict};
use super::sources::Consumers;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::consumer::FailureMeter;
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

/// The sources of a server's health.
pub(super) struct HealthSetup<'a> {
    pub(super) service: &'a str,
    pub(super) checks: Vec<Check>,
    pub(super) interval: Duration,
    pub(super) failures: u32,
    pub(super) successes: u32,
    /// The meter of failed attempts, if the server pauses on failures, and its signal.
    pub(super) meter: Option<(Arc<FailureMeter>, Receiver<()>)>,
}

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
    pub(super) fn start(setup: HealthSetup<'_>) -> std::io::Result<Self> {
        let (first, verdict) = bounded(1);
        // One slot, for the one server. Dropping the sender stops the thread.
        let (watched, watched_receiver) = bounded(1);
        let name = format!("coney-health-{}", setup.service);
        let checks = setup.checks;
        let (meter, tripped) = setup.meter.unzip();
        let checking = Checking {
            service: setup.service.to_owned(),
            rounds: HealthRounds::new(checks.len(), setup.failures, setup.successes),
            checks,
            interval: setup.interval.max(MIN_INTERVAL),
            meter,
            tripped: tripped.unwrap_or_else(never),
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
    rounds: HealthRounds,
    interval: Duration,
    meter: Option<Arc<FailureMeter>>,
    /// The meter's signal. It stays connected as long as the meter is here.
    tripped: Receiver<()>,
}

impl Checking {
    fn run(mut self, first: &Sender<HealthVerdict>, watched: &Receiver<CheckedServer>) {
        self.check();
        let mut now = self.rounds.verdict();
        let _ = first.try_send(now.clone());
        let Ok(server) = watched.recv() else { return };
        // This differs from `now` if the first checks took too long.
        let mut verdict = server.verdict.clone();
        let mut next_round = Instant::now() + self.interval;
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
            let pause = self.meter.as_ref().and_then(|it| it.paused(Instant::now()));
            let next = pause.map_or(next_round, |pause| pause.until.min(next_round));
            select! {
                recv(watched) -> _ => return,
                recv(self.tripped) -> _ => {}
                default(next.saturating_duration_since(Instant::now())) => {}
            }
            if Instant::now() >= next_round {
                self.check();
                next_round = Instant::now() + self.interval;
            }
            now = self.rounds.verdict().or_else(|| {
                let pause = self.meter.as_ref()?.paused(Instant::now())?;
                Some(pause.reason)
            });
        }
    }

    /// Runs all checks, up to the first one that makes the server unhealthy.
    fn check(&mut self) {
        let mut found = None;
        for (number, check) in self.checks.iter().enumerate() {
            let fault = match catch(&check.run) {
                Ok(Ok(())) => {
                    self.rounds.passed(number);
                    continue;
                }
                Ok(Err(fault)) => fault,
                Err(_) => "it panicked".to_owned(),
            };
            let Some(failed) = self.rounds.failed(number, check.fails_at_once) else {
                found = Some(Fault {
                    text: format!("{}: {fault}", check.name),
                    is_immediate: check.fails_at_once,
                });
                break;
            };
            log_relay::log(
                log::Level::Info,
                TARGET,
                format_args!(
                    "{}: the health check {} failed, {failed} of {} times: {fault}",
                    self.service,
                    check.name,
                    self.rounds.failures()
                ),
            );
        }
        self.rounds.end(found);
        if let Some((passed, needed)) = self.rounds.recovering() {
            log_relay::log(
                log::Level::Info,
                TARGET,
                format_args!(
                    "{}: all health checks passed, {passed} of {needed} times",
                    self.service
                ),
            );
        }
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
