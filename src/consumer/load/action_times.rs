//! The handling times of a server's actions, and the calls that have too little time left.

use std::time::{Duration, Instant};

use super::decayed_mean::DecayedMean;
use super::estimate::Means;
use crate::base::recent_times::RecentTimes;

/// The shortest time between two calls of an action that run although they have too little time
/// left.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The number of the action's medians between two such calls: they take at most a tenth of one
/// worker's time.
const PROBE_MEDIANS: u32 = 10;

/// The latest handling times of one action.
#[derive(Debug, Default)]
struct ActionRecord {
    times: RecentTimes,
    /// The moment of the last call that ran although it had too little time left.
    probed: Option<Instant>,
}

impl ActionRecord {
    fn median(&mut self) -> Option<Duration> {
        let median = self.times.median()?;
        Some(Duration::from_micros(median.into()))
    }
}

/// The answer to whether a call can be handled in the time that it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeLeft {
    Enough,
    /// Less than the action takes: the call runs nonetheless, to find out whether that is still so.
    Probe,
    TooLittle,
}

/// The handling times of all actions: their mean, and the median of each.
///
/// Actions have numbers: a server knows them when it starts, so a look-up is none.
#[derive(Debug)]
pub(super) struct ActionTimes {
    requests: DecayedMean,
    messages: DecayedMean,
    actions: Box<[ActionRecord]>,
}

impl ActionTimes {
    pub(super) fn new(actions: usize) -> Self {
        Self {
            requests: DecayedMean::default(),
            messages: DecayedMean::default(),
            actions: (0..actions).map(|_| ActionRecord::default()).collect(),
        }
    }

    /// Adds the time for which a handler ran. `opens_message` is true for one request of each
    /// message. A probe that took less than half of the median shows that the record is out of
    /// date: it starts over.
    pub(super) fn add(
        &mut self,
        now: Instant,
        action: usize,
        took: Duration,
        opens_message: bool,
        was_probe: bool,
    ) {
        self.requests.add(now, took, 1);
        self.messages.add(now, took, u32::from(opens_message));
        let Some(record) = self.actions.get_mut(action) else {
            return;
        };
        if was_probe && record.median().is_some_and(|median| took < median / 2) {
            *record = ActionRecord::default();
        }
        record.times.add(took);
    }

    /// Returns the mean times of a request and of a message, if any has ended.
    pub(super) fn means(&self) -> Option<Means> {
        let request = self.requests.get()?;
        Some(Means {
            request,
            message: self.messages.get().unwrap_or(request),
        })
    }

    /// Returns the median time of an action, if it has run often enough.
    pub(super) fn median(&mut self, action: usize) -> Option<Duration> {
        self.actions.get_mut(action)?.median()
    }

    /// Returns whether a call that has `left` can be handled in time. Without enough evidence it
    /// can.
    pub(super) fn check(&mut self, now: Instant, action: usize, left: Duration) -> TimeLeft {
        let Some(record) = self.actions.get_mut(action) else {
            return TimeLeft::Enough;
        };
        let Some(median) = record.median().filter(|median| left < *median) else {
            return TimeLeft::Enough;
        };
        let interval = (PROBE_MEDIANS * median).max(PROBE_INTERVAL);
        let passed = record.probed.map(|at| now.saturating_duration_since(at));
        if passed.is_some_and(|passed| passed < interval) {
            return TimeLeft::TooLittle;
        }
        record.probed = Some(now);
        TimeLeft::Probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn ran(times: &mut ActionTimes, now: Instant, action: usize, took: Duration, runs: usize) {
        for _ in 0..runs {
            times.add(now, action, took, true, false);
        }
    }

    #[test]
    fn a_call_with_less_time_than_the_median_is_too_late_once_there_is_evidence() {
        let (now, mut times) = (Instant::now(), ActionTimes::new(2));
        ran(&mut times, now, 0, 50 * MS, 9);
        assert_eq!(times.check(now, 0, MS), TimeLeft::Enough);
        ran(&mut times, now, 0, 50 * MS, 1);
        assert_eq!(times.median(0), Some(50 * MS));
        assert_eq!(times.check(now, 0, 49 * MS), TimeLeft::Probe);
        assert_eq!(times.check(now, 0, 49 * MS), TimeLeft::TooLittle);
        assert_eq!(times.check(now, 0, 50 * MS), TimeLeft::Enough);
        assert_eq!(times.check(now, 1, MS), TimeLeft::Enough, "another action");
        assert_eq!(times.check(now, 9, MS), TimeLeft::Enough, "an unknown one");
        assert_eq!(times.median(1), None);
    }

    #[test]
    fn probes_take_a_tenth_of_one_worker() {
        let (start, mut times) = (Instant::now(), ActionTimes::new(1));
        ran(&mut times, start, 0, 200 * MS, 16);
        let probes =
            (0..60_000).filter(|n| times.check(start + *n * MS, 0, 100 * MS) == TimeLeft::Probe);
        assert_eq!(probes.count(), 30, "of 200 ms each, in a minute");
    }

    /// The action took 2 s, no call has so much time, and now it takes 10 ms.
    #[test]
    fn an_action_that_was_slow_runs_again_after_one_quick_probe() {
        let (start, mut times) = (Instant::now(), ActionTimes::new(1));
        ran(&mut times, start, 0, 2_000 * MS, 16);
        assert_eq!(times.check(start, 0, 1_000 * MS), TimeLeft::Probe);
        times.add(start + 2_000 * MS, 0, 2_000 * MS, true, true);
        let mut refused = 0;
        for n in 0..30_000 {
            let now = start + n * MS;
            match times.check(now, 0, 1_000 * MS) {
                TimeLeft::TooLittle => refused += 1,
                TimeLeft::Probe => times.add(now + 10 * MS, 0, 10 * MS, true, true),
                TimeLeft::Enough => break,
            }
        }
        assert_eq!(refused, 20_000, "until the next probe");
        for _ in 0..100 {
            times.add(start, 0, 10 * MS, true, false);
            assert_eq!(times.check(start, 0, 1_000 * MS), TimeLeft::Enough);
        }
        assert_eq!(times.median(0), Some(10 * MS));
    }

    #[test]
    fn a_slow_probe_confirms_the_median() {
        let (start, mut times) = (Instant::now(), ActionTimes::new(1));
        ran(&mut times, start, 0, 100 * MS, 16);
        assert_eq!(times.check(start, 0, MS), TimeLeft::Probe);
        times.add(start, 0, 60 * MS, true, true);
        assert_eq!(times.check(start, 0, MS), TimeLeft::TooLittle);
    }

    #[test]
    fn a_batch_of_requests_is_one_message() {
        let (now, mut times) = (Instant::now(), ActionTimes::new(1));
        assert_eq!(times.means(), None);
        for n in 0..20 {
            times.add(now, 0, 5 * MS, n % 10 == 0, false);
        }
        let means = times.means().unwrap();
        assert!(means.request.abs_diff(5 * MS) < MS / 100);
        assert!(means.message.abs_diff(50 * MS) < MS / 100);
    }

    proptest! {
        /// Whatever the handling times, an action is never refused for longer than ten medians.
        #[test]
        fn no_action_is_refused_for_ever(
            steps in prop::collection::vec((0..3_000_u32, 0..500_u32, 0..300_u32), 1..300),
        ) {
            let mut times = ActionTimes::new(1);
            let mut now = Instant::now();
            let mut last_run = now;
            for (took, passed, left) in steps {
                now += passed * MS;
                let median = times.median(0).unwrap_or_default();
                match times.check(now, 0, left * MS) {
                    TimeLeft::TooLittle => {
                        prop_assert!(left * MS < median);
                        prop_assert!(now - last_run < (10 * median).max(100 * MS));
                    }
                    left => {
                        let was_probe = left == TimeLeft::Probe;
                        times.add(now, 0, took * MS, true, was_probe);
                        last_run = now;
                    }
                }
            }
        }
    }
}
