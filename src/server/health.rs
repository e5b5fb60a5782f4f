//! Whether a server is healthy, and what follows if it is not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::sources::Consumers;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::registry::Registration;

/// How long starting waits for the first verdict.
const FIRST_VERDICT: Duration = Duration::from_secs(10);

/// A shorter one would take a core for itself.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// How long a change of the consumers may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// A check of something a server needs: its name, and what is wrong with it.
pub(super) struct Check {
    pub(super) name: String,
    pub(super) run: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// It fails only after a time of its own: once is enough.
    pub(super) is_patient: bool,
}

/// What is wrong; nothing if all is well.
pub(super) type HealthVerdict = Option<String>;

/// What changes with the verdict.
pub(super) struct Watched {
    /// What the server has begun with.
    pub(super) verdict: HealthVerdict,
    pub(super) consumers: Arc<Consumers>,
    pub(super) registration: Option<Arc<Registration>>,
}

/// The thread that runs a server's checks.
pub(super) struct Health {
    thread: NamedThread,
    verdict: Receiver<HealthVerdict>,
    watched: Sender<Watched>,
}

impl Health {
    /// Starts checking. The thread ends when this is stopped.
    pub(super) fn start(
        service: &str,
        checks: Vec<Check>,
        interval: Duration,
        failures: u32,
    ) -> std::io::Result<Self> {
        let (first, verdict) = bounded(1);
        // One slot: there is one thing to watch. Its end stops the thread.
        let (watched, inbox) = bounded(1);
        let name = format!("coney-health-{service}");
        let checking = Checking {
            service: service.to_owned(),
            failed: vec![0; checks.len()],
            checks,
            interval: interval.max(SHORTEST_INTERVAL),
            failures: failures.max(1),
        };
        let thread = NamedThread::spawn(name, move || checking.run(&first, &inbox))?;
        Ok(Self {
            thread,
            verdict,
            watched,
        })
    }

    /// The first verdict. Blocks until all checks have run, at most 10 s.
    pub(super) fn first_verdict(&self) -> HealthVerdict {
        self.verdict
            .recv_timeout(FIRST_VERDICT)
            .unwrap_or_else(|_| Some(format!("the checks take longer than {FIRST_VERDICT:?}")))
    }

    /// From now on a change of the verdict, which was `first`, has consequences.
    pub(super) fn watch(&self, watched: Watched) {
        let _ = self.watched.try_send(watched);
    }

    /// Checks no more. Waits for a check that runs, at most until `deadline`.
    pub(super) fn stop(self, deadline: Instant) {
        drop(self.watched);
        let _ = self.thread.join_deadline(deadline);
    }
}

struct Checking {
    service: String,
    checks: Vec<Check>,
    /// The number of times that each has failed in a row.
    failed: Vec<u32>,
    interval: Duration,
    /// The number of failures in a row that make the server unhealthy.
    failures: u32,
}

impl Checking {
    fn run(mut self, first: &Sender<HealthVerdict>, inbox: &Receiver<Watched>) {
        let mut now = self.check(1);
        let _ = first.try_send(now.clone());
        let Ok(watched) = inbox.recv() else { return };
        // Which may be another than the first one here, if that took too long.
        let mut verdict = watched.verdict.clone();
        loop {
            if now.is_some() != verdict.is_some() {
                self.change(&watched, &now);
            } else if let (Some(registration), true) = (&watched.registration, now != verdict) {
                registration.set_unhealthy(now.as_deref());
            }
            verdict = now;
            match inbox.recv_timeout(self.interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
            }
            // What has made it unhealthy keeps it so until it passes.
            let failures = if verdict.is_some() { 1 } else { self.failures };
            now = self.check(failures);
        }
    }

    /// The first check that has failed so many times in a row, and how.
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
            if *failed < failures && !check.is_patient {
                log::info!(
                    target: "coney::server",
                    "{}: the check {} failed, {failed} of {failures} times: {fault}",
                    self.service, check.name
                );
                return None;
            }
            Some(format!("{}: {fault}", check.name))
        })
    }

    fn change(&self, watched: &Watched, verdict: &HealthVerdict) {
        let service = &self.service;
        watched.consumers.unhealthy.lock().clone_from(verdict);
        let tell = || {
            if let Some(registration) = &watched.registration {
                registration.set_unhealthy(verdict.as_deref());
            }
        };
        let deadline = deadline::after(CHANGE_TIMEOUT);
        match verdict {
            Some(fault) => {
                log::warn!(target: "coney::server", "{service} is unhealthy and stopped consuming: {fault}");
                tell();
                watched.consumers.pause(deadline);
            }
            None => {
                log::info!(target: "coney::server", "{service} is healthy and consumes again");
                watched.consumers.resume(deadline);
                tell();
            }
        }
    }
}
