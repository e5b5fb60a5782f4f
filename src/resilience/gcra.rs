//! The state of a rate limit: the generic cell rate algorithm, in exact arithmetic.

use std::time::{Duration, Instant};

use super::keyed::Bucket;
use super::rate::Rate;

/// A rate limit that admits calls now, or reserves moments for them.
///
/// Its state is one number: the moment of the next call, were all evenly spaced. A call may come
/// before that by as many intervals as the burst has calls, but one.
///
/// Time is counted in ticks. The interval from one call to the next is a whole number of them
/// whatever the rate, so that nothing is rounded, and no rate drifts: with 3 calls per second, a
/// nanosecond has 3 ticks, and the interval is a billion of them. The largest rate, period and
/// burst, with the farthest `Instant`, need 127 bits.
#[derive(Clone, Debug)]
pub(crate) struct Gcra {
    /// The moment from which ticks are counted: that of the first call.
    origin: Option<Instant>,
    ticks_per_nanosecond: u128,
    interval: u128,
    /// The ticks by which a call may come early.
    tolerance: u128,
    /// The moment of the next call, were all evenly spaced.
    next: u128,
}

impl Gcra {
    /// Creates the state of a limit that is checked.
    pub(crate) fn new(limit: &Rate) -> Self {
        let interval = limit.period.as_nanos();
        let early = limit.most_at_once().saturating_sub(1);
        Self {
            origin: None,
            ticks_per_nanosecond: u128::from(limit.calls.max(1)),
            interval,
            tolerance: interval * u128::from(early),
            next: 0,
        }
    }

    /// Creates the state of a limit whose burst is used up.
    pub(crate) fn used_up(limit: &Rate, now: Instant) -> Self {
        let mut gcra = Self::new(limit);
        gcra.origin = Some(now);
        gcra.next = gcra.tolerance + gcra.interval;
        gcra
    }

    /// Admits a call now, or reserves the first free moment for it.
    ///
    /// Returns `None` if the call may be made now, or the moment at which it must be made. A
    /// moment that is not used stays lost.
    ///
    /// # Errors
    ///
    /// The time until the first free moment, if that is more than `longest_wait`. Nothing is
    /// reserved then.
    pub(crate) fn reserve(
        &mut self,
        now: Instant,
        longest_wait: Duration,
    ) -> Result<Option<Instant>, Duration> {
        let origin = *self.origin.get_or_insert(now);
        let since = now.saturating_duration_since(origin).as_nanos() * self.ticks_per_nanosecond;
        let earliest = self.next.saturating_sub(self.tolerance);
        if earliest <= since {
            self.next = self.next.max(since) + self.interval;
            return Ok(None);
        }
        let after_origin = nanoseconds(earliest.div_ceil(self.ticks_per_nanosecond));
        let Some(at) = origin.checked_add(after_origin) else {
            return Err(Duration::MAX);
        };
        let wait = at.saturating_duration_since(now);
        if wait > longest_wait {
            return Err(wait);
        }
        self.next += self.interval;
        Ok(Some(at))
    }
}

/// The longest time until a limit counts as idle: it is longer than any process runs.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 100);

impl Bucket for Gcra {
    /// Returns the moment from which the state is that of a new limit.
    fn idle_at(&self) -> Option<Instant> {
        let time = nanoseconds(self.next.div_ceil(self.ticks_per_nanosecond));
        self.origin?.checked_add(time.min(FAR))
    }
}

/// Returns a number of nanoseconds as a duration.
fn nanoseconds(count: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    match u64::try_from(count / SECOND) {
        Ok(seconds) => Duration::new(seconds, (count % SECOND) as u32),
        Err(_) => Duration::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn three_per_second_are_10800_per_hour() {
        let mut limit = Gcra::new(&Rate::per_second(3));
        let start = Instant::now();
        let mut last = start;
        assert_eq!(limit.reserve(start, HOUR), Ok(None));
        for n in 1..=10_800u64 {
            last = limit.reserve(start, HOUR).unwrap().unwrap();
            let exact = Duration::from_nanos((n * 1_000_000_000).div_ceil(3));
            assert_eq!(last, start + exact);
        }
        assert_eq!(last, start + HOUR);
        let wait = limit.reserve(start, HOUR).unwrap_err();
        assert_eq!(wait, HOUR + Duration::from_nanos(333_333_334));
        // Nothing was reserved.
        assert_eq!(limit.reserve(start, HOUR), Err(wait));
    }

    #[test]
    fn a_burst_is_admitted_after_a_pause() {
        let mut limit = Gcra::new(&Rate::per_second(100).burst(5));
        let mut now = Instant::now();
        for _ in 0..3 {
            for _ in 0..5 {
                assert_eq!(limit.reserve(now, Duration::ZERO), Ok(None));
            }
            let wait = limit.reserve(now, Duration::ZERO);
            assert_eq!(wait, Err(Duration::from_millis(10)));
            now += Duration::from_millis(50);
        }
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        let (rare, frequent) = (Duration::MAX, Duration::from_nanos(1));
        for limit in [
            Rate::every(rare).burst(u32::MAX),
            Rate::every(rare),
            Rate::every(frequent).burst(u32::MAX),
            Rate::per_second(u32::MAX).burst(u32::MAX),
            Rate::per_second(u32::MAX).burst(1),
        ] {
            let mut limit = Gcra::new(&limit);
            let start = Instant::now();
            let far = start + Duration::from_secs(1 << 40);
            for now in [start, start, far, start, far, far] {
                for _ in 0..3 {
                    let _ = limit.reserve(now, Duration::MAX);
                }
            }
        }
    }

    #[test]
    fn an_older_moment_reserves_like_the_latest() {
        let mut limit = Gcra::new(&Rate::per_second(10));
        let start = Instant::now();
        let late = start + Duration::from_millis(20);
        assert_eq!(limit.reserve(late, HOUR), Ok(None));
        let next = late + Duration::from_millis(100);
        assert_eq!(limit.reserve(start, HOUR), Ok(Some(next)));
    }

    proptest! {
        #[test]
        fn no_interval_has_more_than_its_rate_and_one_burst(
            calls in 1..2_000u32,
            period in 1..60_000u64,
            burst in 1..20u32,
            steps in prop::collection::vec((0..200_000_000u64, 0..3u32), 1..150),
        ) {
            let period = Duration::from_millis(period);
            let limit = Rate { calls, period, burst: Some(burst) };
            let mut gcra = Gcra::new(&limit);
            let mut now = Instant::now();
            let mut moments = Vec::new();
            for (wait, patience) in steps {
                now += Duration::from_nanos(wait);
                let longest = (period / calls) * patience;
                match gcra.reserve(now, longest) {
                    Ok(at) => {
                        let at = at.unwrap_or(now);
                        prop_assert!(at >= now && at <= now + longest);
                        moments.push(at);
                    }
                    Err(wait) => {
                        prop_assert!(wait > longest);
                        // The hint is exact: a nanosecond less is refused, and it is admitted.
                        let mut other = gcra.clone();
                        let less = wait - Duration::from_nanos(1);
                        prop_assert!(other.reserve(now + less, Duration::ZERO).is_err());
                        prop_assert_eq!(other.reserve(now + wait, Duration::ZERO), Ok(None));
                    }
                }
            }
            for (n, first) in moments.iter().enumerate() {
                for (count, last) in (1..).zip(&moments[n..]) {
                    // The interval is open at its end, one nanosecond after the last moment.
                    let interval = last.duration_since(*first).as_nanos() + 1;
                    let admitted = (count - i128::from(burst)) * period.as_nanos() as i128;
                    prop_assert!(admitted <= interval as i128 * i128::from(calls));
                }
            }
        }

        #[test]
        fn a_caller_that_waits_as_long_as_it_must_gets_the_whole_rate(
            calls in 1..500u32,
            burst in 1..20u32,
        ) {
            let mut gcra = Gcra::new(&Rate::per_second(calls).burst(burst));
            let start = Instant::now();
            let (mut now, mut admitted) = (start, 0);
            while now < start + Duration::from_secs(2) {
                match gcra.reserve(now, Duration::ZERO) {
                    Ok(_) => admitted += 1,
                    Err(wait) => now += wait,
                }
            }
            let most = 2 * calls + burst;
            prop_assert!((most - 1..=most).contains(&admitted), "{admitted} of {most}");
        }
    }
}
