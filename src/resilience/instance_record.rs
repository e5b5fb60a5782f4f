//! The record of the latest attempts at one instance.

use std::time::{Duration, Instant};

use super::circuit::LATE_END;
use super::ejection::Ejection;
use crate::base::recent_times::RecentTimes;
use crate::base::window::Window;

/// The latest attempts at one instance, and its ejection.
#[derive(Debug)]
pub(super) struct InstanceRecord {
    /// The failed attempts since the last one that succeeded.
    in_a_row: u32,
    /// All attempts, and the failed ones.
    recent: Window<10, 2>,
    pub(super) latencies: RecentTimes,
    /// True if its failures are a reason to eject it, whether or not it may be ejected.
    pub(super) is_failing: bool,
    is_ejected: bool,
    /// The end of its ejection; after that, the moment at which it was restored. Attempts that
    /// began before do not count: their outcome is that of an earlier time.
    since: Option<Instant>,
    /// The number of its ejections, less one for each half minute after the last one.
    times: u32,
    probe: Option<Probe>,
    /// The end of its last attempt.
    pub(super) used_at: Instant,
}

/// A probe that has not ended.
#[derive(Debug)]
struct Probe {
    number: u64,
    began: Instant,
    /// The deadline of its attempt.
    deadline: Instant,
}

/// The time over which the rate of failures is taken.
const RATE_TIME: Duration = Duration::from_secs(10);

/// The time after which the number of ejections of an instance that is not ejected falls by one.
const FADING: Duration = Duration::from_secs(30);

impl InstanceRecord {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            in_a_row: 0,
            recent: Window::new(RATE_TIME),
            latencies: RecentTimes::default(),
            is_failing: false,
            is_ejected: false,
            since: None,
            times: 0,
            probe: None,
            used_at: now,
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.is_ejected
    }

    /// Returns true if the instance is not ejected, or may be probed.
    pub(super) fn may_pick(&self, now: Instant) -> bool {
        !self.is_ejected || (self.ejected_for(now).is_zero() && !self.is_probed(now))
    }

    /// Returns true while a probe runs. One that has not ended long after its deadline, such as that
    /// of an asynchronous call which the program does not wait for, does not count.
    fn is_probed(&self, now: Instant) -> bool {
        let late = |probe: &Probe| now.saturating_duration_since(probe.deadline);
        (self.probe.as_ref()).is_some_and(|probe| late(probe) <= LATE_END)
    }

    /// Returns what is left of its ejection.
    pub(super) fn ejected_for(&self, now: Instant) -> Duration {
        let until = self.since.filter(|_| self.is_ejected);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Returns the time since it was used, or its ejection ended. Not idle while a probe runs.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        if self.is_probed(now) {
            return Duration::ZERO;
        }
        let used_at = self
            .since
            .map_or(self.used_at, |since| since.max(self.used_at));
        now.saturating_duration_since(used_at)
    }

    pub(super) fn begin_probe(&mut self, number: u64, now: Instant, deadline: Instant) {
        self.probe = Some(Probe {
            number,
            began: now,
            deadline,
        });
    }

    /// Ends the probe with this number, and returns the moment at which it began.
    pub(super) fn end_probe(&mut self, number: u64) -> Option<Instant> {
        let probe = self.probe.take_if(|probe| probe.number == number);
        probe.map(|probe| probe.began)
    }

    /// Returns true if an attempt began after the last ejection, and so says something of the
    /// instance as it is now.
    pub(super) fn counts(
        &self,
        probe_began: Option<Instant>,
        took: Duration,
        now: Instant,
    ) -> bool {
        match (self.since, probe_began) {
            (None, _) => true,
            (Some(since), Some(began)) => began >= since,
            (Some(since), None) => {
                let age = now.checked_duration_since(since);
                age.is_some_and(|age| took <= age)
            }
        }
    }

    /// Counts an attempt, and decides whether the instance is failing.
    pub(super) fn note(&mut self, failed: bool, settings: &Ejection, now: Instant) {
        self.recent.add(now, [true, failed]);
        if failed {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.in_a_row = 0;
        }
        let [attempts, failures] = self.recent.sums(now);
        let is_rate = attempts >= u64::from(settings.minimum)
            && failures as f64 >= settings.rate * attempts as f64;
        self.is_failing = is_rate || self.in_a_row >= settings.in_a_row;
    }

    /// Ejects the instance, or ejects it again, and returns for how long.
    pub(super) fn eject(&mut self, settings: &Ejection, now: Instant) -> Duration {
        if let Some(since) = self.since.filter(|_| !self.is_ejected) {
            let fewer = now.saturating_duration_since(since).as_secs() / FADING.as_secs();
            self.times = self
                .times
                .saturating_sub(u32::try_from(fewer).unwrap_or(u32::MAX));
        }
        // Counted no further than it makes a difference, so that an instance that was down for a
        // day is not ejected for long at every failure of the next day.
        if settings.first.saturating_mul(self.times) < settings.longest {
            self.times += 1;
        }
        let time = settings
            .first
            .saturating_mul(self.times)
            .min(settings.longest);
        self.is_ejected = true;
        self.is_failing = true;
        // Were all instances readmitted, one more failure shows that it still fails.
        self.in_a_row = self.in_a_row.max(settings.in_a_row);
        self.since = now.checked_add(time);
        time
    }

    /// Restores the instance after a successful probe.
    pub(super) fn restore(&mut self, now: Instant) {
        self.readmit(now);
        self.is_failing = false;
        self.in_a_row = 0;
        self.recent = Window::new(RATE_TIME);
        self.latencies = RecentTimes::default();
    }

    /// Ends the ejection of an instance that may still fail.
    pub(super) fn readmit(&mut self, now: Instant) {
        self.is_ejected = false;
        self.since = Some(now);
    }
}
