//! The budget of retries: how many more messages than calls a client sends.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::gcra::Gcra;
use super::rate::Rate;
use crate::base::window::Window;
use crate::error::{Error, ErrorKind, Result};

/// A budget of retries: a share of the calls of the last 10 s, and a small reserve for clients
/// that call rarely.
///
/// In any time *t*, the budget pays for at most *share × calls (of that time and the 10 s before
/// it) + reserve × t + reserve × 10 s* retries. So the retries of an outage do not become a
/// multiple of the load that caused it.
///
/// Clones share one budget. By default each client has a budget for each service.
///
/// ```
/// use coney::resilience::{Retry, RetryBudget};
///
/// let budget = RetryBudget::new().share(0.1).reserve(2);
/// let for_orders = Retry::new().budget(budget.clone());
/// let for_payments = Retry::new().budget(budget); // the same budget
/// # let _ = (for_orders, for_payments);
/// ```
#[derive(Clone)]
#[must_use = "a budget has no effect until a retry policy gets it"]
pub struct RetryBudget {
    share: f64,
    reserve: u32,
    /// The one lock of the policies: several clients may share a budget.
    budget: Arc<Mutex<Budget>>,
}

impl RetryBudget {
    /// Creates a budget with the defaults: a fifth of the calls, and one retry per second.
    pub fn new() -> Self {
        Self::with(0.2, 1)
    }

    /// Sets the share of the calls of the last 10 s that may be retried. More than 1 lets calls be
    /// retried more than once on the average; 0 leaves only the reserve. Defaults to 0.2.
    ///
    /// Returns a new budget, from which nothing is spent. Clones that were made before keep theirs.
    pub fn share(self, share: f64) -> Self {
        Self::with(share, self.reserve)
    }

    /// Sets the number of retries per second that need no calls. The reserve of 10 s may be spent
    /// at once. Defaults to 1.
    ///
    /// Returns a new budget, from which nothing is spent. Clones that were made before keep theirs.
    pub fn reserve(self, per_second: u32) -> Self {
        Self::with(self.share, per_second)
    }

    fn with(share: f64, reserve: u32) -> Self {
        Self {
            share,
            reserve,
            budget: Arc::new(Mutex::new(Budget::new(share, reserve))),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a share that is negative or not finite.
    pub(crate) fn check(&self) -> Result<()> {
        if self.share.is_finite() && self.share >= 0.0 {
            return Ok(());
        }
        let fault = format!(
            "a retry budget of {} times the calls is not valid: set a share from 0 on, such as 0.2",
            self.share
        );
        Err(Error::new(ErrorKind::InvalidConfig, fault))
    }

    /// Records the first attempt at a call.
    pub(crate) fn called(&self, now: Instant) {
        self.budget.lock().called(now);
    }

    /// Takes one retry from the budget; returns false if it is spent.
    pub(crate) fn try_withdraw(&self, now: Instant) -> bool {
        self.budget.lock().try_withdraw(now)
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("share", &self.share)
            .field("reserve", &self.reserve)
            .finish_non_exhaustive()
    }
}

/// The state of a budget.
pub(crate) struct Budget {
    share: f64,
    /// The calls, and the retries that were paid for by their share.
    recent: Window<10, 2>,
    /// Counted apart from the share: together they would allow the reserve of 10 s twice within
    /// little more than 9 s.
    reserve: Option<Gcra>,
}

/// The counters of [`Budget::recent`] that an event counts in: calls, and retries.
const CALL: [bool; 2] = [true, false];
const RETRY: [bool; 2] = [false, true];

/// The time whose calls pay for retries.
const SHARE_TIME: Duration = Duration::from_secs(10);

/// The seconds whose reserve may be spent at once.
const RESERVED_SECONDS: u32 = 10;

impl Budget {
    /// Creates a budget whose reserve is full.
    pub(crate) fn new(share: f64, reserve: u32) -> Self {
        let limit = Rate::per_second(reserve).burst(reserve.saturating_mul(RESERVED_SECONDS));
        Self {
            share,
            recent: Window::new(SHARE_TIME),
            reserve: (reserve > 0).then(|| Gcra::new(&limit)),
        }
    }

    /// Records the first attempt at a call.
    pub(crate) fn called(&mut self, now: Instant) {
        self.recent.add(now, CALL);
    }

    /// Takes one retry from the budget; returns false if it is spent.
    pub(crate) fn try_withdraw(&mut self, now: Instant) -> bool {
        let [calls, retries] = self.recent.sums(now);
        if (retries + 1) as f64 <= self.share * calls as f64 {
            self.recent.add(now, RETRY);
            return true;
        }
        let reserve = self.reserve.as_mut();
        reserve.is_some_and(|reserve| reserve.reserve(now, Duration::ZERO).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn withdrawals(budget: &mut Budget, now: Instant, tries: u32) -> u32 {
        (0..tries)
            .map(|_| u32::from(budget.try_withdraw(now)))
            .sum()
    }

    #[test]
    fn a_fifth_of_the_calls_is_retried_and_one_per_second() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut budget = Budget::new(0.2, 1);
        (0..100).for_each(|_| budget.called(start));
        assert_eq!(withdrawals(&mut budget, start, 100), 20 + 10);
        assert_eq!(withdrawals(&mut budget, at(3), 100), 3);
        (0..50).for_each(|_| budget.called(at(9)));
        assert_eq!(withdrawals(&mut budget, at(9), 100), 10 + 6);
        // The share of calls that are too old is gone, and so are the retries that it paid for.
        assert_eq!(withdrawals(&mut budget, at(19), 100), 10);
    }

    #[test]
    fn clones_share_a_budget_until_a_setting_changes() {
        let now = Instant::now();
        let all = |budget: &RetryBudget| (0..100).filter(|_| budget.try_withdraw(now)).count();
        let budget = RetryBudget::new();
        let clone = budget.clone();
        assert_eq!(all(&budget), 10);
        assert_eq!(all(&clone), 0);
        let apart = clone.reserve(3);
        assert_eq!(all(&apart), 30);
        assert_eq!(all(&RetryBudget::new().reserve(0)), 0);
        let of_calls = RetryBudget::new().reserve(0).share(0.5);
        (0..10).for_each(|_| of_calls.called(now));
        assert_eq!(all(&of_calls), 5);
    }

    #[test]
    fn shares_that_are_no_numbers_are_refused() {
        for share in [-0.1, f64::NAN, f64::INFINITY] {
            let error = RetryBudget::new().share(share).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        }
        assert!(RetryBudget::new().share(0.0).check().is_ok());
    }

    proptest! {
        #[test]
        fn no_window_has_more_retries_than_its_share_and_reserve(
            share in prop::sample::select(vec![0.0, 0.1, 0.2, 0.5, 2.0]),
            reserve in 0..3u32,
            steps in prop::collection::vec((0..1_500u64, 0..20u32, 0..30u32), 1..100),
        ) {
            let start = Instant::now();
            let mut budget = Budget::new(share, reserve);
            // Milliseconds, calls and retries.
            let (mut log, mut at) = (Vec::<(u64, u32, u32)>::new(), 0);
            for (wait, calls, retries) in steps {
                at += wait;
                let now = start + Duration::from_millis(at);
                (0..calls).for_each(|_| budget.called(now));
                log.push((at, calls, withdrawals(&mut budget, now, retries)));
                // None is refused for which the calls of the last nine seconds pay.
                let last = log.iter().filter(|(then, ..)| then + 9_000 >= at);
                let paid_for = share * last.map(|(_, calls, _)| f64::from(*calls)).sum::<f64>();
                let window = log.iter().filter(|(then, ..)| then + 10_000 > at);
                let made: u32 = window.map(|(.., retries)| retries).sum();
                let refused = log.last().is_some_and(|(.., made)| *made < retries);
                prop_assert!(!refused || f64::from(made) + 1.0 > paid_for);
            }
            for (n, (first, ..)) in log.iter().enumerate() {
                for (last, ..) in &log[n..] {
                    let of = |from: u64| log.iter().filter(move |(at, ..)| (from..=*last).contains(at));
                    let made: u32 = of(*first).map(|(.., retries)| retries).sum();
                    let calls = of(first.saturating_sub(10_000)).map(|(_, calls, _)| f64::from(*calls));
                    let seconds = (last - first) as f64 / 1_000.0;
                    let reserved = f64::from(reserve) * (seconds + f64::from(RESERVED_SECONDS));
                    prop_assert!(f64::from(made) <= share * calls.sum::<f64>() + reserved + 1e-6);
                }
            }
        }
    }
}
