//! Counts of the last ten seconds.

use std::time::Instant;

/// The number of buckets, each one second wide.
const BUCKETS: u64 = 10;

/// The counts of two kinds of events in the last ten seconds: in the second that runs, and in the
/// nine before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    /// The moment at which the first bucket begins: that of the first use.
    start: Option<Instant>,
    /// The number of the bucket that runs, from the first one on.
    current: u64,
    buckets: [[u64; 2]; BUCKETS as usize],
    sums: [u64; 2],
}

impl Recent {
    /// Counts one event of a kind, 0 or 1. An event that is older than the last one counts in the
    /// bucket that runs.
    pub(super) fn add(&mut self, now: Instant, kind: usize) {
        self.advance(now);
        self.buckets[(self.current % BUCKETS) as usize][kind] += 1;
        self.sums[kind] += 1;
    }

    /// Returns the counts of both kinds.
    pub(super) fn sums(&mut self, now: Instant) -> [u64; 2] {
        self.advance(now);
        self.sums
    }

    /// Empties the buckets that begin anew.
    fn advance(&mut self, now: Instant) {
        let start = *self.start.get_or_insert(now);
        let bucket = now.saturating_duration_since(start).as_secs();
        if bucket <= self.current {
            return;
        }
        for ahead in 1..=(bucket - self.current).min(BUCKETS) {
            let old = &mut self.buckets[((self.current + ahead) % BUCKETS) as usize];
            self.sums[0] -= old[0];
            self.sums[1] -= old[1];
            *old = [0; 2];
        }
        self.current = bucket;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn counts_are_those_of_a_log(
            steps in prop::collection::vec((0..3_000u64, 0..2usize), 1..200),
            gap in 0..40_000u64,
        ) {
            let start = Instant::now();
            let (mut recent, mut log, mut at) = (Recent::default(), Vec::new(), 0);
            for (n, (wait, kind)) in steps.into_iter().enumerate() {
                at += if n == 50 { gap } else if n == 0 { 0 } else { wait };
                let now = start + Duration::from_millis(at);
                recent.add(now, kind);
                log.push((at / 1_000, kind));
                let count = |kind| {
                    let is_counted = |&&(second, of): &&(u64, usize)| {
                        of == kind && second + BUCKETS > at / 1_000
                    };
                    log.iter().filter(is_counted).count() as u64
                };
                prop_assert_eq!(recent.sums(now), [count(0), count(1)]);
            }
        }
    }

    #[test]
    fn an_older_event_is_counted_now() {
        let start = Instant::now();
        let mut recent = Recent::default();
        recent.add(start + Duration::from_secs(5), 0);
        recent.add(start, 1);
        assert_eq!(recent.sums(start + Duration::from_millis(14_999)), [1, 1]);
        assert_eq!(recent.sums(start), [1, 1]);
        assert_eq!(recent.sums(start + Duration::from_secs(15)), [0, 0]);
    }
}
