//! The thread that pauses subscriptions whose attempts fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use super::running::Running;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::consumer::{FailurePause, Lifetime};

/// The log target. Lines go through the log thread: a logger that panics must not end this one.
const TARGET: &str = "coney::events";

/// The longest time that pausing or resuming a subscription may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The thread that stops and resumes consuming: neither may a worker, which would wait for itself,
/// nor the thread of the connection.
pub(super) struct PauseThread {
    thread: NamedThread,
    /// Stops the thread when it is dropped.
    stop: Sender<()>,
}

/// The state of the thread.
struct Pauses {
    subscriptions: Arc<Vec<Running>>,
    /// True for each of them that is paused.
    are_paused: Vec<bool>,
    lifetime: Arc<Lifetime>,
    /// Receives a message when one of the subscriptions is to pause. The meters of the
    /// subscriptions keep it connected.
    tripped: Receiver<()>,
}

impl PauseThread {
    /// Starts the thread.
    pub(super) fn start(
        service: &str,
        subscriptions: Arc<Vec<Running>>,
        lifetime: Arc<Lifetime>,
        tripped: Receiver<()>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let pauses = Pauses {
            are_paused: vec![false; subscriptions.len()],
            subscriptions,
            lifetime,
            tripped,
        };
        let name = format!("coney-pause-{service}");
        let thread = NamedThread::spawn(name, move || pauses.run(&stopped))?;
        Ok(Self { thread, stop })
    }

    /// Stops the thread; subscriptions that are paused stay so. Blocks at most until `deadline`.
    pub(super) fn stop(self, deadline: Instant) {
        drop(self.stop);
        let _ = self.thread.join_deadline(deadline);
    }
}

impl Pauses {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let timeout = match self.change() {
                Some(next) => crossbeam_channel::at(next),
                None => never(),
            };
            select! {
                recv(stopped) -> _ => return,
                recv(self.tripped) -> _ => {}
                recv(timeout) -> _ => {}
            }
        }
    }

    /// Pauses and resumes subscriptions. Returns the time at which the first pause ends.
    fn change(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let subscriptions = self.subscriptions.iter();
        let pauses: Vec<Option<FailurePause>> = subscriptions.map(|it| it.paused(now)).collect();
        let of_each = || self.subscriptions.iter().zip(&pauses);
        // At once, before the broker is waited for.
        for (running, _) in of_each().filter(|(_, pause)| pause.is_some()) {
            running.hold();
        }
        for ((running, pause), is_paused) in of_each().zip(&mut self.are_paused) {
            let queue = &running.queue;
            match (pause, *is_paused) {
                (Some(pause), false) => {
                    log_relay::log(
                        log::Level::Warn,
                        TARGET,
                        format_args!("{queue} is paused: {}", pause.reason),
                    );
                    running.stop(deadline::after(CHANGE_TIMEOUT));
                }
                (None, true) => {
                    log_relay::log(
                        log::Level::Info,
                        TARGET,
                        format_args!("{queue} is consumed again, on trial"),
                    );
                    running.resume(&self.lifetime, deadline::after(CHANGE_TIMEOUT));
                }
                (Some(_), true) | (None, false) => {}
            }
            *is_paused = pause.is_some();
        }
        pauses.into_iter().flatten().map(|it| it.until).min()
    }
}
