//! The median of the latest durations of one kind.

use std::time::Duration;

/// The number of durations that are kept: with fewer, one burst of expensive calls would move the
/// median; with more, an instance that becomes slow would be noticed late.
const KEPT: usize = 16;

/// The number of durations without which there is no median.
const ENOUGH: usize = 10;

/// The latest durations of one kind, such as an instance's latencies, in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentTimes {
    kept: [u32; KEPT],
    /// The number of all durations since the start.
    count: usize,
    /// The median, until another duration is added.
    median: Option<u32>,
}

impl RecentTimes {
    /// Adds a duration in place of the oldest.
    pub(crate) fn add(&mut self, duration: Duration) {
        self.kept[self.count % KEPT] = microseconds(duration);
        self.count += 1;
        self.median = None;
    }

    /// Returns the median in microseconds, the upper one of two, if there are enough durations.
    pub(crate) fn median(&mut self) -> Option<u32> {
        if self.count < ENOUGH {
            return None;
        }
        let median = self.median.unwrap_or_else(|| {
            let mut kept = self.kept;
            let kept = &mut kept[..self.count.min(KEPT)];
            *kept.select_nth_unstable(kept.len() / 2).1
        });
        self.median = Some(median);
        self.median
    }
}

/// Returns a duration in microseconds; one of more than an hour counts as an hour.
pub(crate) fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_median_is_that_of_the_last_sixteen(
            added in prop::collection::vec(0..1_000u32, 1..60),
        ) {
            let mut times = RecentTimes::default();
            for (n, micros) in added.iter().enumerate() {
                times.add(Duration::from_micros(u64::from(*micros)));
                let mut last = added[(n + 1).saturating_sub(16)..=n].to_vec();
                last.sort_unstable();
                let median = (n + 1 >= 10).then(|| last[last.len() / 2]);
                prop_assert_eq!(times.median(), median);
                prop_assert_eq!(times.median(), median);
            }
        }
    }
}
