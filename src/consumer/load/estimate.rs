//! The estimate of the time for which a request that arrives now will wait.

use std::time::{Duration, Instant};

use super::saturation::Occupancy;

/// The age above which a sample of the depth is ignored: the broker does not answer, and an
/// overload that has ended must not be seen for ever.
const LONGEST_AGE: Duration = Duration::from_millis(500);

/// The longest estimate, so that no sum overflows.
const LONGEST_WAIT: f64 = 60.0 * 60.0;

/// The depths of a server's queues at the broker: messages that no consumer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueDepth {
    /// The messages in the queue that all servers of the service share.
    pub(crate) shared: u64,
    /// The number of consumers of that queue.
    pub(crate) consumers: u64,
    /// The messages in the instance's own queue.
    pub(crate) own: u64,
}

/// The messages at the broker that this server will have to take, counted down between samples.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    messages: f64,
    sampled: Option<Instant>,
}

impl Backlog {
    /// Records a sample. Each consumer of the shared queue takes its share.
    pub(super) fn sampled(&mut self, now: Instant, depth: &QueueDepth) {
        let share = depth.shared as f64 / depth.consumers.max(1) as f64;
        self.messages = share + depth.own as f64;
        self.sampled = Some(now);
    }

    /// Records that a message has been taken, whether it runs or is refused: the broker sends the
    /// next one in its place.
    pub(super) fn taken(&mut self) {
        self.messages = (self.messages - 1.0).max(0.0);
    }

    /// Returns the number of messages; zero if the last sample is too old.
    fn messages(&self, now: Instant) -> f64 {
        match self.sampled.is_some_and(|at| is_fresh(now, at)) {
            true => self.messages,
            false => 0.0,
        }
    }

    /// Returns the estimated wait, by Little's law: the work that is ahead, divided among the
    /// workers. No clock but this process's is in it. While the workers are not saturated, nothing
    /// waits at the broker.
    pub(super) fn wait(
        &self,
        now: Instant,
        is_saturated: bool,
        occupancy: &Occupancy,
        means: Means,
    ) -> Duration {
        let remote = match is_saturated {
            true => self.messages(now),
            false => 0.0,
        };
        // While a worker is idle, what waits in the process waits for something else.
        let (waiting, batched) = match occupancy.busy >= occupancy.workers {
            true => (occupancy.waiting, occupancy.batched),
            false => (0, 0),
        };
        let messages = (remote + waiting as f64) * means.message.as_secs_f64();
        let batched = batched as f64 * means.request.as_secs_f64();
        let seconds = (messages + batched) / occupancy.workers.max(1) as f64;
        Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_WAIT))
    }
}

/// Returns true if what was seen at a moment still says something.
pub(super) fn is_fresh(now: Instant, at: Instant) -> bool {
    now.saturating_duration_since(at) <= LONGEST_AGE
}

/// The mean times for which a worker is busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Means {
    /// With one request.
    pub(super) request: Duration,
    /// With all requests of one message, which may be a batch.
    pub(super) message: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    const MEANS: Means = Means {
        request: Duration::from_millis(50),
        message: Duration::from_millis(50),
    };

    fn workers(workers: usize) -> Occupancy {
        Occupancy {
            busy: workers,
            workers,
            ..Occupancy::default()
        }
    }

    fn depth(shared: u64, consumers: u64, own: u64) -> QueueDepth {
        QueueDepth {
            shared,
            consumers,
            own,
        }
    }

    #[test]
    fn the_wait_is_the_work_ahead_divided_among_the_workers() {
        let (now, mut backlog) = (Instant::now(), Backlog::default());
        backlog.sampled(now, &depth(60, 3, 10));
        let wait = |occupancy: &Occupancy| backlog.wait(now, true, occupancy, MEANS);
        assert_eq!(wait(&workers(10)), 150 * MS);
        let waiting = Occupancy {
            waiting: 10,
            batched: 20,
            ..workers(10)
        };
        assert_eq!(wait(&waiting), 300 * MS);
        let means = Means {
            message: 100 * MS,
            ..MEANS
        };
        assert_eq!(backlog.wait(now, true, &workers(10), means), 300 * MS);
        let local = backlog.wait(now, false, &waiting, MEANS);
        assert_eq!(local, 150 * MS, "only what waits in the process");
        let idle = Occupancy { busy: 9, ..waiting };
        let none = backlog.wait(now, false, &idle, MEANS);
        assert_eq!(none, Duration::ZERO, "a worker is idle");
    }

    #[test]
    fn a_sample_counts_down_and_grows_old() {
        let (now, mut backlog) = (Instant::now(), Backlog::default());
        let wait = |backlog: &Backlog, now| backlog.wait(now, true, &workers(1), MEANS);
        assert_eq!(wait(&backlog, now), Duration::ZERO);
        backlog.sampled(now, &depth(2, 0, 0));
        backlog.taken();
        assert_eq!(wait(&backlog, now + 500 * MS), 50 * MS);
        assert_eq!(wait(&backlog, now + 501 * MS), Duration::ZERO);
        backlog.taken();
        backlog.taken();
        assert_eq!(wait(&backlog, now), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_depth_overflows_and_each_message_taken_lowers_the_wait(
            shared in any::<u64>(), consumers in any::<u64>(), own in any::<u64>(),
            workers_now in 0..100_usize, taken in 0..50_u32,
        ) {
            let (now, mut backlog) = (Instant::now(), Backlog::default());
            backlog.sampled(now, &depth(shared, consumers, own));
            let mut last = Duration::MAX;
            for _ in 0..taken {
                let wait = backlog.wait(now, true, &workers(workers_now), MEANS);
                prop_assert!(wait <= last);
                last = wait;
                backlog.taken();
            }
        }
    }
}
