//! The thread that watches the load of a server or a subscriber.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, select};

use super::estimate::QueueDepth;
use super::gate::LoadGate;
use super::options::LoadOptions;
use super::processor::{ProcessorMeter, WorkerClock};
use super::scaler::{Observation, Scaler};
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::consumer::pool_state::PoolStatus;
use crate::error::Result;

/// The log target. Lines go through the log thread: a logger that panics must not end this one.
const TARGET: &str = "coney::worker";

/// The longest time for one sample of the queues' depth, or one change of the prefetch.
const STEP_TIMEOUT: Duration = Duration::from_millis(400);

/// The shortest interval between two looks at workers that are all busy.
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// The interval while there are more workers than the lowest number: those that end are not
/// announced.
const SCALED_INTERVAL: Duration = Duration::from_millis(250);

/// The delay before another attempt to set the prefetch.
const PREFETCH_RETRY: Duration = Duration::from_secs(2);

/// The parts of a server or a subscriber that the thread reads and changes.
pub(crate) trait WatchedWorkers: Send + 'static {
    fn status(&self) -> PoolStatus;

    /// Starts workers until there are `workers`.
    fn grow(&self, workers: usize) -> std::io::Result<()>;

    /// Starts another worker in place of one whose handler does not return.
    fn replace_worker(&self) -> std::io::Result<()>;

    /// Sends a message to `sender`, once, when no worker is idle.
    fn notify_when_busy(&self, sender: Sender<()>);

    /// Counts the messages that wait at the broker. Blocks at most until `deadline`.
    fn depth(&self, deadline: Instant) -> Result<QueueDepth>;

    /// Sets the prefetch of each queue. Blocks at most until `deadline`.
    fn set_prefetch(&self, prefetch: u16, deadline: Instant) -> Result<()>;

    /// Returns the number of unsettled messages with which the prefetch of a queue may be full.
    fn full_at(&self, prefetch: u16) -> usize {
        prefetch.into()
    }
}

/// The thread that samples the depth of the queues while the workers are saturated, starts workers,
/// and looks for handlers that are overdue. It sleeps while workers are idle.
pub(crate) struct LoadThread {
    thread: NamedThread,
    /// Stops the thread when it is dropped.
    stop: Sender<()>,
}

/// The settings of the thread.
pub(crate) struct LoadThreadSetup<W> {
    pub(crate) owner: String,
    pub(crate) options: LoadOptions,
    pub(crate) gate: Arc<LoadGate>,
    pub(crate) workers: W,
    /// The processor clocks of new workers.
    pub(crate) clocks: Receiver<WorkerClock>,
    /// Receives a message when a handler calls its own service.
    pub(crate) nested_calls: Receiver<()>,
    /// Returns the number of handlers that wait for their own service.
    pub(crate) nested: Box<dyn Fn() -> usize + Send>,
}

struct Watch<W> {
    setup: LoadThreadSetup<W>,
    scaler: Option<Scaler>,
    meter: ProcessorMeter,
    /// The prefetch that was set last.
    prefetch: u16,
    /// True if the last sample failed.
    depth_failed: bool,
    /// The time before which the prefetch is not set again, as it could not be: while the broker
    /// blocks, each attempt is one more command that waits.
    prefetch_failed_until: Option<Instant>,
}

impl LoadThread {
    /// Starts the thread.
    pub(crate) fn start<W: WatchedWorkers>(setup: LoadThreadSetup<W>) -> std::io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let options = &setup.options;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let scales = !options.workers.is_fixed();
        let scaler = scales.then(|| Scaler::new(&options.scaling, options.workers, processors));
        let name = format!("coney-load-{}", setup.owner);
        let watch = Watch {
            prefetch: options.first_prefetch(),
            setup,
            scaler,
            meter: ProcessorMeter::default(),
            depth_failed: false,
            prefetch_failed_until: None,
        };
        let thread = NamedThread::spawn(name, move || watch.run(&stopped))?;
        Ok(Self { thread, stop })
    }

    /// Stops the thread. Blocks at most until `deadline`.
    pub(crate) fn stop(self, deadline: Instant) {
        drop(self.stop);
        let _ = self.thread.join_deadline(deadline);
    }
}

impl<W: WatchedWorkers> Watch<W> {
    fn run(mut self, stopped: &Receiver<()>) {
        // One slot: the workers are busy or not.
        let (busy_sender, busy) = bounded(1);
        loop {
            self.find_overdue();
            self.sample();
            self.scale();
            let now = Instant::now();
            let observes = self.setup.gate.observes_workers();
            let next_sample = self.setup.gate.next_sample().filter(|_| observes);
            let until = self.next_look(now, next_sample);
            if observes && next_sample.is_none() {
                self.setup.workers.notify_when_busy(busy_sender.clone());
            }
            let timeout = match until {
                Some(until) => crossbeam_channel::at(until),
                None => never(),
            };
            select! {
                recv(stopped) -> _ => return,
                recv(timeout) -> _ => {}
                recv(self.setup.nested_calls) -> _ => {}
                recv(busy) -> _ => {
                    // Busy workers whose prefetch is not full would be reported at once again.
                    if self.look().is_none()
                        && stopped.recv_timeout(BUSY_INTERVAL) != Err(RecvTimeoutError::Timeout)
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Reads the use of the workers. Returns the time of the next sample, if one is worth its cost.
    fn look(&self) -> Option<Instant> {
        let LoadThreadSetup { gate, workers, .. } = &self.setup;
        gate.estimate(Instant::now(), workers.status());
        gate.next_sample()
    }

    /// Returns the time of the next look, unless a message comes before.
    fn next_look(&self, now: Instant, next_sample: Option<Instant>) -> Option<Instant> {
        let LoadThreadSetup {
            gate,
            workers,
            options,
            ..
        } = &self.setup;
        let sample = next_sample.map(|at| at.max(now));
        let count = workers.status().workers;
        let is_changing =
            count > options.workers.least() || self.prefetch != options.prefetch_for(count);
        let scaled = is_changing.then(|| now + SCALED_INTERVAL);
        let overdue = gate.next_overdue(now);
        sample.into_iter().chain(scaled).chain(overdue).min()
    }

    fn sample(&mut self) {
        let now = Instant::now();
        if !self.setup.gate.observes_workers() || self.look().is_none_or(|at| at > now) {
            return;
        }
        let LoadThreadSetup {
            gate,
            workers,
            owner,
            ..
        } = &self.setup;
        gate.sampling(now);
        let depth = workers.depth(now + STEP_TIMEOUT);
        let failed = depth.is_err();
        match depth {
            Ok(depth) => gate.sampled(Instant::now(), &depth),
            Err(error) if !self.depth_failed => log_relay::log(
                log::Level::Warn,
                TARGET,
                format_args!(
                    "{owner}: the messages that wait cannot be counted, so calls are not refused \
                     for them and no workers started: {error}"
                ),
            ),
            Err(_) => {}
        }
        self.depth_failed = failed;
    }

    fn scale(&mut self) {
        for clock in self.setup.clocks.try_iter() {
            self.meter.add(clock, Instant::now());
        }
        let LoadThreadSetup {
            gate,
            workers,
            owner,
            options,
            nested,
            ..
        } = &self.setup;
        let status = workers.status();
        let mut count = status.workers;
        if let Some(scaler) = &mut self.scaler {
            let now = Instant::now();
            let (wait, is_saturated) = gate.estimate(now, status);
            let seen = Observation {
                is_saturated,
                wait,
                workers: status.workers,
                nested: nested(),
                // Read before the workers are saturated too, to have something to compare with then.
                demand: self.meter.read(now),
            };
            let wanted = scaler.observe(now, &seen);
            if wanted > count {
                match workers.grow(wanted) {
                    Ok(()) => count = wanted,
                    Err(error) => log_relay::log(
                        log::Level::Error,
                        TARGET,
                        format_args!("{owner}: cannot start {wanted} workers: {error}"),
                    ),
                }
            }
        }
        let prefetch = options.prefetch_for(count);
        // Each change replaces a consumer, so it is lowered once, when no more workers end.
        let is_ending = prefetch < self.prefetch && count > options.workers.least();
        let until = self.prefetch_failed_until;
        if prefetch == self.prefetch || is_ending || until.is_some_and(|it| Instant::now() < it) {
            return;
        }
        match workers.set_prefetch(prefetch, deadline::after(STEP_TIMEOUT)) {
            Ok(()) => {
                gate.set_prefetch(workers.full_at(prefetch));
                self.prefetch = prefetch;
                self.prefetch_failed_until = None;
                log_relay::log(
                    log::Level::Debug,
                    TARGET,
                    format_args!("{owner} has {count} workers and a prefetch of {prefetch}"),
                );
            }
            Err(error) => {
                self.prefetch_failed_until = Some(deadline::after(PREFETCH_RETRY));
                log_relay::log(
                    log::Level::Debug,
                    TARGET,
                    format_args!("{owner}: the prefetch cannot be set to {prefetch}: {error}"),
                );
            }
        }
    }

    /// Logs the handlers that have become overdue, and starts workers in place of theirs.
    fn find_overdue(&self) {
        let LoadThreadSetup {
            gate,
            workers,
            owner,
            ..
        } = &self.setup;
        let timeout = gate.handler_timeout().unwrap_or_default();
        for handler in gate.check_overdue(Instant::now()) {
            let replaced = handler.replace && workers.replace_worker().is_ok();
            let then = match replaced {
                true => "another worker is started in its place",
                false => {
                    "its worker is not replaced: too many are, or it is the only one for such messages"
                }
            };
            let level = match handler.is_new {
                true => log::Level::Warn,
                false => log::Level::Debug,
            };
            log_relay::log(
                level,
                TARGET,
                format_args!(
                    "{owner}.{}: the handler has run for {:?} on the thread {}, longer than \
                     handler_timeout ({timeout:?}); {then}",
                    handler.action, handler.running_for, handler.thread
                ),
            );
        }
    }
}
