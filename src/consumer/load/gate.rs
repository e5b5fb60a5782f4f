//! The admission of requests by the workers of a server or a subscriber.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::admission::{Admitted, Arrival, LoadControl, LoadSettings, RunTicket};
use super::estimate::QueueDepth;
use super::overdue_watch::{OverdueHandler, OverdueWatch};
use super::saturation::Occupancy;
use super::worker_load::WorkerLoad;
use crate::consumer::pool_state::PoolStatus;
use crate::consumer::turn::Turn;

/// The load of a server or a subscriber, which its workers and its load thread share.
pub(crate) struct LoadGate {
    control: Mutex<LoadControl>,
    /// True if the use of the workers matters: calls are shed, or the number of workers changes.
    observes_workers: bool,
    /// True if handling times matter: calls are shed, the number of workers changes, or actions
    /// have bounds. To measure them costs some 0.5 µs a request.
    measures: bool,
    /// The number of messages that the broker sends ahead, over all queues.
    prefetch: AtomicUsize,
    /// The number of requests that wait in batches.
    batched: AtomicUsize,
    overdue: Option<OverdueWatch>,
}

/// A request that runs. Its end is recorded when it is dropped.
pub(crate) struct RunningRequest<'a> {
    gate: &'a LoadGate,
    turn: &'a dyn Turn,
    ticket: RunTicket,
    pub(crate) has_run: bool,
}

/// The decision about a request.
pub(crate) enum Entrance<'a> {
    Run(RunningRequest<'a>),
    /// The request runs, and its time is not measured.
    Admitted,
    /// The call is refused, and may be repeated after that time.
    Busy(Duration),
    /// The call has less time left than its action takes.
    Expired,
}

impl LoadGate {
    pub(crate) fn new(
        settings: &LoadSettings,
        scales: bool,
        prefetch: usize,
        overdue: Option<OverdueWatch>,
    ) -> Self {
        let control = LoadControl::new(settings);
        Self {
            observes_workers: control.sheds() || scales,
            measures: control.sheds() || scales || settings.has_bounds,
            control: Mutex::new(control),
            prefetch: AtomicUsize::new(prefetch),
            batched: AtomicUsize::new(0),
            overdue,
        }
    }

    /// Returns true if the use of the workers matters.
    pub(crate) fn observes_workers(&self) -> bool {
        self.observes_workers
    }

    /// Returns true if the timeouts of calls matter.
    pub(crate) fn uses_timeouts(&self) -> bool {
        self.observes_workers
    }

    /// Decides about a request that a worker has taken.
    pub(crate) fn admit<'a>(&'a self, turn: &'a dyn Turn, arrival: &Arrival) -> Entrance<'a> {
        if !self.measures {
            return Entrance::Admitted;
        }
        let occupancy = self.occupancy(turn);
        let admitted = self
            .control
            .lock()
            .admit(Instant::now(), arrival, &occupancy);
        match admitted {
            Admitted::Run(ticket) => Entrance::Run(RunningRequest {
                gate: self,
                turn,
                ticket,
                has_run: false,
            }),
            Admitted::Busy { after } => Entrance::Busy(after),
            Admitted::Expired => Entrance::Expired,
        }
    }

    /// Runs a handler under the watch for those that take too long.
    pub(crate) fn watched<T>(
        &self,
        turn: &dyn Turn,
        action: &str,
        handler: impl FnOnce() -> T,
    ) -> T {
        match &self.overdue {
            Some(overdue) => overdue.run(turn, action, handler),
            None => handler(),
        }
    }

    /// Returns the handlers that have become overdue since the last check.
    pub(crate) fn check_overdue(&self, now: Instant) -> Vec<OverdueHandler> {
        let overdue = self.overdue.as_ref();
        overdue.map_or_else(Vec::new, |overdue| overdue.check(now))
    }

    /// Returns the time at which a handler may next be overdue.
    pub(crate) fn next_overdue(&self, now: Instant) -> Option<Instant> {
        Some(self.overdue.as_ref()?.next_check(now))
    }

    /// Returns the time after which a handler is overdue, if it is set.
    pub(crate) fn handler_timeout(&self) -> Option<Duration> {
        self.overdue.as_ref().map(OverdueWatch::timeout)
    }

    /// Returns the number of handlers that are overdue now, and of those that ever were.
    pub(crate) fn overdue(&self) -> (usize, u64) {
        let overdue = self.overdue.as_ref();
        overdue.map_or((0, 0), OverdueWatch::counts)
    }

    /// Adds requests of a batch that no worker has taken.
    pub(crate) fn add_batched(&self, requests: usize) {
        self.batched.fetch_add(requests, Ordering::Relaxed);
    }

    /// Removes requests of a batch that a worker has taken, or that are not run.
    pub(crate) fn remove_batched(&self, requests: usize) {
        self.batched.fetch_sub(requests, Ordering::Relaxed);
    }

    /// Sets the number of messages that the broker sends ahead.
    pub(crate) fn set_prefetch(&self, prefetch: usize) {
        self.prefetch.store(prefetch, Ordering::Relaxed);
    }

    /// Returns the estimated wait of a request that arrives now, and whether the workers are
    /// saturated.
    pub(crate) fn estimate(&self, now: Instant, status: PoolStatus) -> (Duration, bool) {
        let occupancy = self.occupancy_of(status);
        let mut control = self.control.lock();
        control.update(now, &occupancy);
        let is_saturated = control.saturated_since(now).is_some();
        (control.wait(now, &occupancy), is_saturated)
    }

    /// Returns the load of the workers now.
    pub(crate) fn load(&self, status: PoolStatus) -> WorkerLoad {
        let (estimated_wait, is_saturated) = self.estimate(Instant::now(), status);
        // Otherwise nothing is seen between two calls of this.
        let is_saturated = is_saturated && self.observes_workers;
        let (overdue, overdue_total) = self.overdue();
        WorkerLoad {
            workers: status.workers,
            running: status.running,
            waiting: status.waiting,
            estimated_wait,
            is_saturated,
            overdue,
            overdue_total,
        }
    }

    /// Returns the moment of the next sample of the queues' depth, if one is worth its cost.
    pub(crate) fn next_sample(&self) -> Option<Instant> {
        self.control.lock().next_sample()
    }

    /// Records that a sample is being taken.
    pub(crate) fn sampling(&self, now: Instant) {
        self.control.lock().sampling(now);
    }

    /// Records a sample of the queues' depth.
    pub(crate) fn sampled(&self, now: Instant, depth: &QueueDepth) {
        self.control.lock().sampled(now, depth);
    }

    /// Returns the median time of an action, if it has run often enough.
    pub(crate) fn median(&self, action: usize) -> Option<Duration> {
        self.control.lock().median(action)
    }

    fn occupancy(&self, turn: &dyn Turn) -> Occupancy {
        match self.observes_workers {
            true => self.occupancy_of(turn.status()),
            false => Occupancy::default(),
        }
    }

    fn occupancy_of(&self, status: PoolStatus) -> Occupancy {
        Occupancy {
            busy: status.running,
            workers: status.workers,
            unsettled: status.running + status.waiting,
            prefetch: self.prefetch.load(Ordering::Relaxed),
            waiting: status.ready,
            batched: self.batched.load(Ordering::Relaxed),
        }
    }
}

impl Drop for RunningRequest<'_> {
    fn drop(&mut self) {
        let occupancy = self.gate.occupancy(self.turn);
        let mut control = self.gate.control.lock();
        control.finished(Instant::now(), self.ticket, self.has_run, &occupancy);
    }
}
