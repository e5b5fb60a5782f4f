//! The share of attempts that fail, and the pauses that follow from it: a state machine without a
//! clock.

use std::time::{Duration, Instant};

use super::pause_on_failures::PauseOnFailures;
use crate::base::window::Window;

/// The state of consuming.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Consuming,
    Paused {
        until: Instant,
        failed: u64,
        attempts: u64,
    },
    /// Consuming again, and pausing at the first failure.
    Trial {
        since: Instant,
        went_well: u32,
    },
}

/// A pause, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) until: Instant,
    /// The number of failed attempts, and of all, at its beginning.
    pub(super) failed: u64,
    pub(super) attempts: u64,
}

/// The share of attempts that failed in the recent past.
#[derive(Debug)]
pub(super) struct FailureRate {
    settings: PauseOnFailures,
    phase: Phase,
    /// The end of the last pause.
    resumed: Option<Instant>,
    /// All attempts, and those that failed.
    window: Window<10, 2>,
}

impl FailureRate {
    pub(super) fn new(settings: &PauseOnFailures) -> Self {
        Self {
            settings: settings.clone(),
            phase: Phase::Consuming,
            resumed: None,
            window: Window::new(settings.window),
        }
    }

    /// Counts the end of an attempt. Returns true if consuming pauses now.
    ///
    /// Attempts that end during a pause, or began before the last one ended, do not count: their
    /// outcome is that of an earlier time.
    pub(super) fn ended(&mut self, now: Instant, began: Instant, failed: bool) -> bool {
        self.advance(now);
        if self.resumed.is_some_and(|resumed| began < resumed) {
            return false;
        }
        match &mut self.phase {
            Phase::Consuming => {
                self.window.add(now, [true, failed]);
                let [attempts, failures] = self.window.sums(now);
                // A quotient, unlike a product, is exactly the rate that the program wrote.
                let is_reached = failures as f64 / attempts as f64 >= self.settings.failure_rate;
                if attempts < self.settings.minimum_attempts.into() || !is_reached {
                    return false;
                }
                self.pause(now, failures, attempts);
                true
            }
            Phase::Trial { went_well, .. } => {
                *went_well += 1;
                let attempts = u64::from(*went_well);
                if failed {
                    self.pause(now, 1, attempts);
                } else if *went_well >= self.settings.minimum_attempts {
                    self.phase = Phase::Consuming;
                }
                failed
            }
            Phase::Paused { .. } => false,
        }
    }

    /// Returns the present pause, if there is one.
    pub(super) fn paused(&mut self, now: Instant) -> Option<Pause> {
        self.advance(now);
        match self.phase {
            Phase::Paused {
                until,
                failed,
                attempts,
            } => Some(Pause {
                until,
                failed,
                attempts,
            }),
            Phase::Consuming | Phase::Trial { .. } => None,
        }
    }

    /// Ends a pause or a trial whose time is over.
    fn advance(&mut self, now: Instant) {
        match self.phase {
            Phase::Paused { until, .. } if now >= until => {
                self.resumed = Some(now);
                self.phase = Phase::Trial {
                    since: now,
                    went_well: 0,
                };
            }
            Phase::Trial { since, .. } if passed(since, now) >= self.settings.window => {
                self.phase = Phase::Consuming;
            }
            Phase::Consuming | Phase::Paused { .. } | Phase::Trial { .. } => {}
        }
    }

    fn pause(&mut self, now: Instant, failed: u64, attempts: u64) {
        self.window.clear();
        self.phase = Phase::Paused {
            until: now + self.settings.pause,
            failed,
            attempts,
        };
    }
}

fn passed(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate() -> FailureRate {
        FailureRate::new(&PauseOnFailures::new().minimum_attempts(4))
    }

    /// Returns a rate that pauses until 30 s after the returned moment.
    fn paused() -> (FailureRate, Instant) {
        let (mut rate, now) = (rate(), Instant::now());
        let tripped = [true, false, true, false].map(|failed| rate.ended(now, now, failed));
        assert_eq!(tripped, [false, false, false, true]);
        (rate, now)
    }

    #[test]
    fn half_of_enough_attempts_pause_consuming_for_the_set_time() {
        let (mut rate, now) = paused();
        let pause = Pause {
            until: now + 30 * SECOND,
            failed: 2,
            attempts: 4,
        };
        assert_eq!(rate.paused(now), Some(pause));
        assert!(!rate.ended(now + SECOND, now, true), "it does not count");
        assert_eq!(rate.paused(now + 29 * SECOND), Some(pause));
        assert_eq!(rate.paused(now + 30 * SECOND), None);
    }

    #[test]
    fn old_attempts_leave_the_window() {
        let (mut rate, start) = (rate(), Instant::now());
        for _ in 0..3 {
            assert!(!rate.ended(start, start, true));
        }
        let later = start + 10 * SECOND;
        assert!(!rate.ended(later, later, true), "one in the window");
        assert_eq!(rate.paused(later), None);
    }

    #[test]
    fn the_first_failure_after_a_pause_pauses_again() {
        let (mut rate, start) = paused();
        let now = start + 31 * SECOND;
        assert!(!rate.ended(now, now, false));
        assert!(!rate.ended(now, start, true), "it began before the pause");
        assert!(rate.ended(now, now, true));
        assert_eq!(rate.paused(now).unwrap().until, now + 30 * SECOND);
    }

    #[test]
    fn attempts_without_a_failure_or_a_whole_window_end_the_trial() {
        let (mut rate, start) = paused();
        let now = start + 31 * SECOND;
        for _ in 0..4 {
            assert!(!rate.ended(now, now, false));
        }
        assert!(!rate.ended(now, now, true), "one of four would not pause");
        let (mut rate, start) = paused();
        let now = start + 31 * SECOND;
        assert_eq!(rate.paused(now), None);
        let later = now + 10 * SECOND;
        assert!(!rate.ended(later, later, true));
    }

    proptest! {
        /// Whatever the outcomes, consuming goes on after each pause, and pauses only after enough
        /// attempts or on trial.
        #[test]
        fn each_pause_has_a_reason_and_an_end(
            ends in prop::collection::vec((any::<bool>(), 0..3_000_u32), 1..200),
        ) {
            let (mut rate, start) = (rate(), Instant::now());
            let (mut now, mut attempts, mut failures) = (start, 0, 0);
            let mut pauses = 0;
            for (failed, passed) in ends {
                now += passed * Duration::from_millis(1);
                let paused = rate.paused(now);
                let tripped = rate.ended(now, now, failed);
                match paused {
                    Some(pause) => prop_assert!(!tripped && pause.until > now),
                    None => {
                        attempts += 1;
                        failures += u32::from(failed);
                    }
                }
                if tripped {
                    let pause = rate.paused(now).unwrap();
                    prop_assert_eq!(pause.until, now + 30 * SECOND);
                    prop_assert!(pauses > 0 || (attempts >= 4 && failures >= 2));
                    prop_assert!(failures > 0);
                    (pauses, attempts, failures) = (pauses + 1, 0, 0);
                }
            }
        }
    }
}
