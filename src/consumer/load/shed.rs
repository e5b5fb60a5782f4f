//! Load shedding: calls are answered as busy while too many requests wait.

use std::time::{Duration, Instant};

use crate::base::recent_times::RecentTimes;
use crate::error::{Error, ErrorKind, Result};

/// The lowest bound that is derived from timeouts: the depth of the queue is known every 100 ms
/// only, and a lower bound would refuse calls for what the queue was a moment ago.
const LEAST_BOUND: Duration = Duration::from_millis(50);

/// The highest bound that is derived from timeouts: a wait of more than 5 s helps no caller whose
/// timeout is merely generous.
const MOST_BOUND: Duration = Duration::from_secs(5);

/// The bound before any timeout is known: a quarter of the clients' default timeout.
const FIRST_BOUND: Duration = Duration::from_millis(1_250);

/// The range of the time after which a refused caller is asked to try again.
const LEAST_RETRY_AFTER: Duration = Duration::from_millis(10);
const MOST_RETRY_AFTER: Duration = Duration::from_secs(10);

/// The share of the workers' time that calls get even while all are to be refused.
const LEAST_SHARE: f64 = 0.1;

/// Load shedding: while requests would wait for too long, calls are answered with
/// [`ErrorKind::Busy`] at once instead of being run too late.
///
/// The wait of a request that arrives now is estimated from the number of messages in the queue,
/// the number of servers that consume it, and the mean time of this server's handlers. While it is
/// above the bound, the oldest calls in the queue are refused, each with the estimate as its
/// [`retry_after`](crate::Error::retry_after); every refusal lowers the estimate, and so the calls
/// that remain are answered in time. The queue's depth is asked for every 100 ms, only while all
/// workers are busy and the prefetch is full.
///
/// Commands are never refused: they wait. When commands alone fill the queue, refusing calls does
/// not shorten it, so at least a tenth of the workers' time goes to calls.
///
/// A prefetch of twice the number of workers makes refusals cheap: with fewer, a worker waits for
/// the broker's next message after each of them.
///
/// ```
/// use std::time::Duration;
/// use coney::server::Shed;
///
/// let shed = Shed::new().above(Duration::from_millis(300));
/// # let _ = shed;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "load shedding has no effect until a server gets it"]
pub struct Shed {
    above: Option<Duration>,
}

impl Shed {
    /// Creates load shedding with the default bound.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the estimated wait above which calls are refused. Defaults to a quarter of the median
    /// timeout of the latest calls, at least 50 ms and at most 5 s, so that accepted calls are
    /// answered in time; and to 1.25 s as long as no call had a timeout.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::server::Shed;
    ///
    /// let shed = Shed::new().above(Duration::from_secs(1));
    /// # let _ = shed;
    /// ```
    pub fn above(mut self, wait: Duration) -> Self {
        self.above = Some(wait);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the bound is zero.
    pub(crate) fn check(&self) -> Result<()> {
        if self.above.is_some_and(|bound| bound.is_zero()) {
            let text = "invalid load shedding: set above to more than zero, such as 250 ms";
            return Err(Error::new(ErrorKind::InvalidConfig, text));
        }
        Ok(())
    }
}

/// The decision which calls are refused.
#[derive(Debug)]
pub(super) struct Shedder {
    settings: Shed,
    timeouts: RecentTimes,
    /// The moment from which the next call is accepted whatever the estimate.
    next_accepted: Option<Instant>,
}

impl Shedder {
    pub(super) fn new(settings: &Shed) -> Self {
        Self {
            settings: settings.clone(),
            timeouts: RecentTimes::default(),
            next_accepted: None,
        }
    }

    /// Records the timeout of a call.
    pub(super) fn add_timeout(&mut self, timeout: Duration) {
        if self.settings.above.is_none() {
            self.timeouts.add(timeout);
        }
    }

    /// Returns the estimated wait above which calls are refused.
    pub(super) fn bound(&mut self) -> Duration {
        if let Some(bound) = self.settings.above {
            return bound;
        }
        match self.timeouts.median() {
            Some(median) => {
                (Duration::from_micros(median.into()) / 4).clamp(LEAST_BOUND, MOST_BOUND)
            }
            None => FIRST_BOUND,
        }
    }

    /// Returns the time after which the caller may try again, if a call is to be refused: the
    /// estimated wait. `handling` is the mean time of a request.
    pub(super) fn refuse(
        &mut self,
        now: Instant,
        estimate: Duration,
        handling: Duration,
        workers: usize,
    ) -> Option<Duration> {
        if estimate <= self.bound() {
            return None;
        }
        if self.next_accepted.is_none_or(|at| at <= now) {
            let pause = handling.as_secs_f64() / (LEAST_SHARE * workers.max(1) as f64);
            let pause = Duration::try_from_secs_f64(pause).unwrap_or(MOST_BOUND);
            let pause = pause.min(MOST_BOUND);
            // Calls do not come at regular times: one that comes late does not delay the next.
            let from = self
                .next_accepted
                .map_or(now, |at| at.max(now.checked_sub(pause).unwrap_or(now)));
            self.next_accepted = Some(from + pause);
            return None;
        }
        Some(estimate.clamp(LEAST_RETRY_AFTER, MOST_RETRY_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_bound_is_a_quarter_of_the_median_timeout() {
        let mut shedder = Shedder::new(&Shed::new());
        assert_eq!(shedder.bound(), 1_250 * MS);
        for (timeout, bound) in [(1_000, 250), (2_000, 500), (60_000, 5_000), (20, 50)] {
            for _ in 0..16 {
                shedder.add_timeout(timeout * MS);
            }
            assert_eq!(shedder.bound(), bound * MS, "{timeout}");
        }
        let mut fixed = Shedder::new(&Shed::new().above(7 * MS));
        for _ in 0..16 {
            fixed.add_timeout(1_000 * MS);
        }
        assert_eq!(fixed.bound(), 7 * MS);
    }

    #[test]
    fn a_bound_of_zero_is_refused() {
        let error = Shed::new().above(Duration::ZERO).check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains("more than zero"), "{error}");
        assert!(Shed::new().check().is_ok() && Shed::new().above(MS).check().is_ok());
    }

    /// 10 workers and 50 ms a request: 200 a second, of which a tenth is 20.
    #[test]
    fn a_tenth_of_the_workers_time_goes_to_calls_however_much_waits() {
        let mut shedder = Shedder::new(&Shed::new().above(250 * MS));
        let start = Instant::now();
        let mut accepted = 0;
        for n in 0..10_000 {
            let refused = shedder.refuse(start + n * MS, 3_600_000 * MS, 50 * MS, 10);
            assert!(refused.is_none_or(|after| after == MOST_RETRY_AFTER));
            accepted += u32::from(refused.is_none());
        }
        assert_eq!(accepted, 200);
    }

    proptest! {
        #[test]
        fn no_call_is_refused_below_the_bound_and_the_time_to_wait_is_in_its_range(
            estimates in prop::collection::vec((0..20_000_u32, 0..100_u32), 1..100),
            handling in 0..100_000_u32, workers in 0..100_usize,
        ) {
            let mut shedder = Shedder::new(&Shed::new().above(250 * MS));
            let mut now = Instant::now();
            for (estimate, passed) in estimates {
                now += passed * MS;
                let refused = shedder.refuse(now, estimate * MS, handling * MS, workers);
                if let Some(after) = refused {
                    prop_assert!(estimate > 250);
                    prop_assert!((LEAST_RETRY_AFTER..=MOST_RETRY_AFTER).contains(&after));
                }
            }
        }
    }
}
