//! The controller of the number of workers.

use std::time::{Duration, Instant};

use super::processor::ProcessorDemand;
use super::scaling::Scaling;
use super::worker_count::WorkerCount;

/// The shortest time between two steps up: by then the workers of the last one have begun.
const STEP_INTERVAL: Duration = Duration::from_millis(100);

/// The part of the interval by which a step may be early, because threads wake up at times that
/// are not exact.
const STEP_TOLERANCE: Duration = Duration::from_millis(10);

/// The number of workers that the processors can run, as a multiple: handlers also wait for locks
/// and messages, and the measurement is not exact.
const SPARE: f64 = 1.25;

/// The state of the workers, of which the number is to be decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    /// True if the workers are saturated.
    pub(crate) is_saturated: bool,
    /// The estimated time for which a request will wait.
    pub(crate) wait: Duration,
    pub(crate) workers: usize,
    /// The number of workers whose handlers wait for a call to their own service.
    pub(crate) nested: usize,
    /// The processors that a worker wanted in the last tenth of a second or so; `None` where that
    /// cannot be measured. Those that have just started did not take part.
    pub(crate) demand: Option<ProcessorDemand>,
}

/// The controller of the number of workers.
#[derive(Debug)]
pub(crate) struct Scaler {
    settings: Scaling,
    count: WorkerCount,
    processors: usize,
    stepped: Option<Instant>,
}

impl Scaler {
    /// Creates a controller for a machine with so many processors.
    pub(crate) fn new(settings: &Scaling, count: WorkerCount, processors: usize) -> Self {
        Self {
            settings: settings.clone(),
            count,
            processors: processors.max(1),
            stepped: None,
        }
    }

    /// Returns the number of workers that there should be: never fewer than there are, as idle
    /// workers end by themselves.
    pub(crate) fn observe(&mut self, now: Instant, seen: &Observation) -> usize {
        let is_due = self
            .stepped
            .is_none_or(|at| now.saturating_duration_since(at) + STEP_TOLERANCE >= STEP_INTERVAL);
        let mut workers = seen.workers;
        if is_due && seen.is_saturated && seen.wait > self.settings.wait() {
            let runnable = seen
                .demand
                .map_or(usize::MAX, |demand| most_runnable(self.processors, demand));
            workers = (2 * workers).min(runnable).max(workers);
        }
        workers = workers.max(self.for_nested(seen.nested));
        // A worker that has ended meanwhile may make this less than there are.
        let wanted = workers.clamp(self.count.least(), self.count.most());
        let wanted = wanted.max(seen.workers);
        if wanted > seen.workers {
            self.stepped = Some(now);
        }
        wanted
    }

    /// Returns the number of workers that there must be at least while so many of them wait for a
    /// call to their own service: these count as not there. To be asked at the beginning of each
    /// such call, which may wait for a worker.
    pub(crate) fn for_nested(&self, nested: usize) -> usize {
        (self.count.least() + nested).min(self.count.most())
    }
}

/// Returns the number of workers that the processors can run if each of them wants as much as those
/// that were measured.
fn most_runnable(processors: usize, demand: ProcessorDemand) -> usize {
    let most = processors as f64 * SPARE / demand.0;
    match most.is_finite() && most < usize::MAX as f64 {
        true => most as usize,
        false => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    const SEEN: Observation = Observation {
        is_saturated: true,
        wait: Duration::from_millis(51),
        workers: 2,
        nested: 0,
        demand: None,
    };

    fn scaler(count: impl Into<WorkerCount>) -> Scaler {
        Scaler::new(&Scaling::new(), count.into(), 2)
    }

    #[test]
    fn the_number_doubles_each_tenth_of_a_second_up_to_the_highest() {
        let (start, mut scaler) = (Instant::now(), scaler(2..=40));
        let mut workers = 2;
        let mut steps = vec![];
        for n in 0..10 {
            let seen = Observation { workers, ..SEEN };
            workers = scaler.observe(start + n * 50 * MS, &seen);
            steps.push(workers);
        }
        assert_eq!(steps, [4, 4, 8, 8, 16, 16, 32, 32, 40, 40]);
    }

    #[test]
    fn short_waits_and_free_workers_need_no_more() {
        let (now, mut scaler) = (Instant::now(), scaler(2..=32));
        let short = Observation {
            wait: 50 * MS,
            ..SEEN
        };
        assert_eq!(scaler.observe(now, &short), 2);
        let free = Observation {
            is_saturated: false,
            ..SEEN
        };
        assert_eq!(scaler.observe(now, &free), 2);
    }

    #[test]
    fn handlers_that_compute_get_no_more_workers_than_the_processors_can_run() {
        let (now, count) = (Instant::now(), WorkerCount::from(2..=32));
        for (processors, workers, demand, wanted) in [
            (2, 2, 1.0, 2),
            (2, 2, 0.5, 4),
            (2, 4, 0.3, 8),
            (2, 4, 0.4, 6),
            (2, 2, 0.0, 4),
            (8, 2, 1.0, 4),
            (1, 8, 1.0, 8),
        ] {
            let demand = Some(ProcessorDemand(demand));
            let seen = Observation {
                workers,
                demand,
                ..SEEN
            };
            let mut scaler = Scaler::new(&Scaling::new(), count, processors);
            assert_eq!(scaler.observe(now, &seen), wanted, "{seen:?}");
        }
    }

    #[test]
    fn a_worker_that_waits_for_its_own_service_counts_as_not_there() {
        let (now, mut scaler) = (Instant::now(), scaler(2..=5));
        for (nested, wanted) in [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5)] {
            let seen = Observation {
                is_saturated: false,
                nested,
                ..SEEN
            };
            assert_eq!(scaler.observe(now, &seen), wanted);
            assert_eq!(scaler.for_nested(nested), wanted);
        }
    }

    proptest! {
        #[test]
        fn the_number_stays_in_its_range_and_a_fixed_one_never_changes(
            least in 1..10_usize, more in 0..40_usize,
            seen in prop::collection::vec(
                (any::<bool>(), 0..200_u32, 0..50_usize, prop::option::of(0.0..100.0_f64), 0..200_u32),
                1..50,
            ),
        ) {
            let count = WorkerCount::from(least..=least + more);
            let mut scaler = Scaler::new(&Scaling::new(), count, 2);
            let (mut now, mut workers) = (Instant::now(), least);
            for (is_saturated, wait, nested, demand, passed) in seen {
                let demand = demand.map(ProcessorDemand);
                let wait = wait * MS;
                let seen = Observation { is_saturated, wait, workers, nested, demand };
                let wanted = scaler.observe(now, &seen);
                prop_assert!((workers..=least + more).contains(&wanted));
                prop_assert!(wanted <= (2 * workers).max(scaler.for_nested(nested)));
                workers = wanted;
                now += passed * MS;
            }
        }
    }
}
