//! Sliding windows: counts of the recent past, in a ring of buckets.

use std::mem;
use std::time::{Duration, Instant};

/// The longest width of a bucket, a year: in effect no limit, and far from overflowing an
/// `Instant`.
const LONGEST_WIDTH: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// A sliding window over `N` counters, in a ring of `BUCKETS` buckets of a fixed width.
///
/// The bucket of the present counts too, so the window reaches back between `BUCKETS - 1` and
/// `BUCKETS` widths. The sums are kept up to date as buckets come and go: reading them costs the
/// same with any number of buckets.
#[derive(Debug)]
pub(crate) struct Window<const BUCKETS: usize, const N: usize> {
    buckets: [[u32; N]; BUCKETS],
    sums: [u64; N],
    /// The bucket of the present.
    current: usize,
    /// The end of the current bucket. None before the first use.
    ends: Option<Instant>,
    width: Duration,
}

impl<const BUCKETS: usize, const N: usize> Window<BUCKETS, N> {
    /// Creates an empty window of this length.
    pub(crate) fn new(length: Duration) -> Self {
        let width = length / u32::try_from(BUCKETS).unwrap_or(u32::MAX).max(1);
        Self {
            buckets: [[0; N]; BUCKETS],
            sums: [0; N],
            current: 0,
            ends: None,
            width: width.clamp(Duration::from_nanos(1), LONGEST_WIDTH),
        }
    }

    /// Counts one event in the counters that are true.
    ///
    /// Threads take the time before they take the lock, so times may go back a little: an event of
    /// an earlier bucket counts in the current one.
    pub(crate) fn add(&mut self, now: Instant, counters: [bool; N]) {
        self.advance(now);
        let bucket = &mut self.buckets[self.current];
        for ((count, sum), is_counted) in bucket.iter_mut().zip(&mut self.sums).zip(counters) {
            // A full counter stays full: the sums must remain those of the buckets.
            let one = u32::from(is_counted && *count < u32::MAX);
            *count += one;
            *sum += u64::from(one);
        }
    }

    /// Returns the sum of each counter over the window.
    pub(crate) fn sums(&mut self, now: Instant) -> [u64; N] {
        self.advance(now);
        self.sums
    }

    /// Sets all counters to zero.
    pub(crate) fn clear(&mut self) {
        self.buckets = [[0; N]; BUCKETS];
        self.sums = [0; N];
    }

    /// Empties the buckets that have left the window.
    fn advance(&mut self, now: Instant) {
        match self.ends {
            Some(ends) if now < ends => {}
            Some(ends) => self.turn(now, now.duration_since(ends)),
            None => self.ends = Some(now + self.width),
        }
    }

    /// Goes on to the bucket of `now`, which is `late` after the end of the current one.
    #[cold]
    fn turn(&mut self, now: Instant, late: Duration) {
        let (late, width) = (late.as_nanos(), self.width.as_nanos());
        let steps =
            usize::try_from(late / width).map_or(BUCKETS, |passed| passed.min(BUCKETS - 1) + 1);
        for _ in 0..steps.min(BUCKETS) {
            self.current = (self.current + 1) % BUCKETS;
            let left = mem::replace(&mut self.buckets[self.current], [0; N]);
            for (sum, count) in self.sums.iter_mut().zip(left) {
                *sum -= u64::from(count);
            }
        }
        // Shorter than the width, which is at most a year.
        let into = u64::try_from(late % width).unwrap_or_default();
        self.ends = Some(now + (self.width - Duration::from_nanos(into)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn counts_leave_the_window_bucket_by_bucket() {
        let start = Instant::now();
        let mut window = Window::<10, 2>::new(10 * SECOND);
        for second in 0..10 {
            window.add(start + second * SECOND, [true, second < 3]);
        }
        assert_eq!(window.sums(start + 9 * SECOND), [10, 3]);
        let last = start + 10 * SECOND - Duration::from_nanos(1);
        assert_eq!(window.sums(last), [10, 3]);
        assert_eq!(window.sums(start + 10 * SECOND), [9, 2]);
        assert_eq!(window.sums(start + 18 * SECOND), [1, 0]);
        assert_eq!(window.sums(start + 19 * SECOND), [0, 0]);
    }

    #[test]
    fn a_time_that_goes_back_counts_in_the_current_bucket() {
        let start = Instant::now() + 100 * SECOND;
        let mut window = Window::<10, 1>::new(10 * SECOND);
        window.add(start, [true]);
        window.add(start - 50 * SECOND, [true]);
        assert_eq!(window.sums(start - 90 * SECOND), [2]);
        assert_eq!(window.sums(start + 9 * SECOND), [2]);
        assert_eq!(window.sums(start + 10 * SECOND), [0]);
    }

    #[test]
    fn lengths_and_gaps_beyond_measure_do_not_panic() {
        let start = Instant::now();
        for length in [Duration::ZERO, Duration::from_nanos(3), Duration::MAX] {
            let mut window = Window::<10, 1>::new(length);
            window.add(start, [true]);
            window.add(start + LONGEST_WIDTH * 30, [true]);
            assert_eq!(window.sums(start), [1]);
        }
    }

    #[test]
    fn a_full_counter_stays_full() {
        let start = Instant::now();
        let mut window = Window::<2, 1>::new(2 * SECOND);
        window.buckets[0] = [u32::MAX];
        window.sums = [u32::MAX.into()];
        window.add(start, [true]);
        assert_eq!(window.sums(start), [u64::from(u32::MAX)]);
        assert_eq!(window.sums(start + 2 * SECOND), [0]);
    }

    /// One use of the window: the time that passes before it, the time by which its caller is
    /// late, and the counters of the event, if it is one.
    fn uses() -> impl Strategy<Value = (u64, u64, Option<[bool; 3]>)> {
        let passed = prop_oneof![4 => 0..50u64, 4 => 50..500u64, 1 => 500..5_000u64];
        let late = prop_oneof![3 => Just(0), 1 => 0..300u64];
        (passed, late, any::<Option<[bool; 3]>>())
    }

    proptest! {
        /// The model keeps every event with the number of its bucket, and counts anew each time.
        #[test]
        fn the_sums_are_those_of_a_log(uses in prop::collection::vec(uses(), 1..200)) {
            let width = 100;
            let begin = Instant::now() + SECOND;
            let mut window = Window::<7, 3>::new(Duration::from_millis(7 * width));
            let (mut clock, mut first, mut latest) = (0i64, None, 0);
            let mut log: Vec<(i64, [bool; 3])> = Vec::new();
            for (passed, late, event) in uses {
                clock += passed as i64;
                let at = clock - late as i64;
                let now = match u64::try_from(at) {
                    Ok(at) => begin + Duration::from_millis(at),
                    Err(_) => begin - Duration::from_millis(at.unsigned_abs()),
                };
                let first = *first.get_or_insert(at);
                latest = latest.max((at - first).div_euclid(width as i64));
                if let Some(counters) = event {
                    window.add(now, counters);
                    log.push((latest, counters));
                }
                let inside = log.iter().filter(|(bucket, _)| *bucket > latest - 7);
                let mut wanted = [0; 3];
                for (_, counters) in inside {
                    for (sum, is_counted) in wanted.iter_mut().zip(counters) {
                        *sum += u64::from(*is_counted);
                    }
                }
                prop_assert_eq!(window.sums(now), wanted);
            }
        }
    }
}
