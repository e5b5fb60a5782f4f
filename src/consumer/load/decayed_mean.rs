//! A mean of durations that follows their recent values.

use std::time::{Duration, Instant};

/// The time in which the weight of a duration falls to a third (1/e): after a second it is 2 %.
const MEMORY: Duration = Duration::from_millis(250);

/// The number of durations that are remembered however long ago they were.
const LEAST_WEIGHT: f64 = 4.0;

/// A mean of the durations of the last quarter of a second or so, and at least of the last four.
///
/// It decays with time and not with each duration: it follows a change within a second whether
/// there are twenty or twenty thousand durations a second.
#[derive(Debug, Default)]
pub(super) struct DecayedMean {
    seconds: f64,
    weight: f64,
    at: Option<Instant>,
}

impl DecayedMean {
    /// Adds a duration, shared by `count` of what the mean is taken over: 0 adds to the durations
    /// of the others.
    pub(super) fn add(&mut self, now: Instant, duration: Duration, count: u32) {
        let passed = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if !passed.is_zero() && self.weight > LEAST_WEIGHT {
            let kept = (-passed.div_duration_f64(MEMORY)).exp();
            let kept = kept.max(LEAST_WEIGHT / self.weight);
            self.seconds *= kept;
            self.weight *= kept;
        }
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.seconds += duration.as_secs_f64();
        self.weight += f64::from(count);
    }

    /// Returns the mean, if there is one.
    pub(super) fn get(&self) -> Option<Duration> {
        if self.weight <= 0.0 {
            return None;
        }
        Duration::try_from_secs_f64(self.seconds / self.weight).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_change_is_followed_within_a_second_at_any_rate() {
        for per_second in [20_u32, 200, 5_000] {
            let (start, mut mean) = (Instant::now(), DecayedMean::default());
            assert_eq!(mean.get(), None);
            let step = Duration::from_secs(1) / per_second;
            let mut now = start;
            for _ in 0..3 * per_second {
                now += step;
                mean.add(now, 10 * MS, 1);
            }
            assert!(mean.get().unwrap().abs_diff(10 * MS) < MS / 100);
            for _ in 0..per_second {
                now += step;
                mean.add(now, 100 * MS, 1);
            }
            let followed = mean.get().unwrap();
            assert!(followed > 94 * MS, "{per_second}: {followed:?}");
        }
    }

    #[test]
    fn durations_of_one_moment_all_count() {
        let (start, mut mean) = (Instant::now(), DecayedMean::default());
        mean.add(start, 10 * MS, 1);
        let later = start + Duration::from_secs(60);
        for n in 0..9 {
            mean.add(later, n * MS, 1);
        }
        let wanted = (10 + (0..9).sum::<u32>()) * MS / 10;
        assert!(mean.get().unwrap().abs_diff(wanted) < MS / 100);
    }

    #[test]
    fn the_requests_of_a_batch_count_as_one_message() {
        let (start, mut mean) = (Instant::now(), DecayedMean::default());
        for n in 0..10 {
            mean.add(start, 5 * MS, u32::from(n == 9));
        }
        assert!(mean.get().unwrap().abs_diff(50 * MS) < MS / 100);
    }
}
