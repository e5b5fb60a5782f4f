//! The turns of requests that are put off by a rate limit.

use std::time::{Duration, Instant};

/// A schedule of the moments at which requests that were put off come back: one after the other, at
/// the pace of the limit. Coming back at the same moment, all but a few would be put off again.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    /// The first moment that is not taken. Only moments within the longest time are taken, so it
    /// is at most an interval later.
    next: Option<Instant>,
}

impl Turns {
    /// Returns the time after which a request comes back, whose limit is free after `wait` at the
    /// earliest, and takes that moment and the `interval` after it.
    ///
    /// No time is longer than `longest`. Requests that find all moments up to that one taken come
    /// back after `longest` and take a moment then.
    pub(super) fn take(
        &mut self,
        now: Instant,
        wait: Duration,
        interval: Duration,
        longest: Duration,
    ) -> Duration {
        let free = self
            .next
            .map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
        let turn = free.max(wait);
        if turn >= longest {
            return longest;
        }
        self.next = now.checked_add(turn.saturating_add(interval));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn requests_come_back_one_after_the_other() {
        let mut turns = Turns::default();
        let now = Instant::now();
        let mut take = |now| turns.take(now, 7 * MS, 10 * MS, 40 * MS);
        let delays: Vec<_> = (0..6).map(|_| take(now)).collect();
        assert_eq!(delays, [7, 17, 27, 37, 40, 40].map(|n| n * MS));
        // What came back at the end takes the moments that have become free.
        assert_eq!(take(now + 39 * MS), 8 * MS);
        assert_eq!(take(now + 40 * MS), 17 * MS);
    }

    proptest! {
        #[test]
        fn no_two_requests_have_one_moment_but_the_last(
            interval in 1..50u64,
            longest in 1..2_000u64,
            steps in prop::collection::vec((0..30u64, 0..100u64), 1..200),
        ) {
            let (interval, longest) = (interval as u32 * MS, longest as u32 * MS);
            let (mut turns, mut now) = (Turns::default(), Instant::now());
            let mut last: Option<Instant> = None;
            for (pause, wait) in steps {
                now += pause as u32 * MS;
                let wait = wait as u32 * MS;
                let turn = turns.take(now, wait, interval, longest);
                prop_assert!(turn <= longest && turn >= wait.min(longest));
                if turn < longest {
                    let at = now + turn;
                    prop_assert!(last.is_none_or(|last| at >= last + interval));
                    last = Some(at);
                }
            }
        }
    }
}
