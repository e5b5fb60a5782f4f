//! The settings of retries.

use std::time::Duration;

use super::budget::RetryBudget;
use crate::error::{Error, ErrorKind, Result};

/// Retries of a call that failed: how many, after which delays, and within which budget.
///
/// | outcome of an attempt | is retried | costs budget |
/// | --- | --- | --- |
/// | not sent in time, or the connection was closed before | yes | no |
/// | no queue takes it, or no instance is live and healthy | yes | no |
/// | refused as [busy](crate::ErrorKind::Busy) | yes, not before [`Error::retry_after`](crate::Error::retry_after) | yes |
/// | no reply within [`per_attempt`](Retry::per_attempt), or not begun by then | if the call is marked [idempotent](crate::CallOptions::idempotent) | yes |
/// | an error code given to [`on_code`](Retry::on_code) | yes | yes |
/// | all others | no | |
///
/// The call's timeout covers all its attempts: where the delay does not fit, the call fails at
/// once with the error of its last attempt. All attempts have the same message id.
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::Retry;
///
/// let retry = Retry::new()
///     .attempts(4)
///     .delays(Duration::from_millis(10), Duration::from_millis(500))
///     .on_code("lock_timeout");
/// # let _ = retry;
/// ```
#[derive(Clone, Debug)]
#[must_use = "retries have no effect until a client gets them"]
pub struct Retry {
    attempts: u32,
    first_delay: Duration,
    longest_delay: Duration,
    per_attempt: Option<Duration>,
    codes: Vec<String>,
    budget: Option<RetryBudget>,
}

impl Retry {
    /// Creates retries with the defaults.
    pub fn new() -> Self {
        Self {
            attempts: 3,
            first_delay: Duration::from_millis(25),
            longest_delay: Duration::from_secs(1),
            per_attempt: None,
            codes: Vec::new(),
            budget: None,
        }
    }

    /// Sets the largest number of attempts at a call, the first included: with 1, nothing is
    /// retried. Defaults to 3.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets the delays between attempts: at most `first` before the second one, twice as long
    /// before each further one, and never more than `longest`. Each is a random time from zero up
    /// to that, so that the callers of an outage do not retry at the same moment. Defaults to
    /// 25 ms and 1 s.
    pub fn delays(mut self, first: Duration, longest: Duration) -> Self {
        self.first_delay = first;
        self.longest_delay = longest;
        self
    }

    /// Sets the time after which an attempt without a reply is given up for the next one; the last, and
    /// one whose retry the budget does not pay for, has the rest of the call's time. It applies only to calls
    /// marked [idempotent](crate::CallOptions::idempotent), since only those may be sent again
    /// after a timeout: the first attempt may still run. Defaults to none: an attempt waits until
    /// the call's deadline, and no attempt follows.
    pub fn per_attempt(mut self, timeout: Duration) -> Self {
        self.per_attempt = Some(timeout);
        self
    }

    /// Adds an error code of the service's handlers after which calls are retried. The handler
    /// must have changed nothing when it returns it. Defaults to none.
    pub fn on_code(mut self, code: impl Into<String>) -> Self {
        self.codes.push(code.into());
        self
    }

    /// Sets the budget that pays for retries. Defaults to a [`RetryBudget::new`] for each client
    /// and service.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Returns the largest number of attempts, the first included.
    pub(crate) fn most_attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the longest time of one attempt at an idempotent call.
    pub(crate) fn attempt_timeout(&self) -> Option<Duration> {
        self.per_attempt
    }

    /// Returns true if calls are retried after this error code of a handler.
    pub(crate) fn retries_code(&self, code: &str) -> bool {
        self.codes.iter().any(|one| one == code)
    }

    /// Returns the budget that was set, or a new one: called once for each client and service.
    pub(crate) fn budget_of_service(&self) -> RetryBudget {
        self.budget.clone().unwrap_or_default()
    }

    /// Returns a random delay after `failed` failed attempts, at least 1: from zero up to the
    /// first delay, doubled with each further attempt, and at most the longest delay.
    pub(crate) fn delay(&self, failed: u32, rng: &mut fastrand::Rng) -> Duration {
        // A nanosecond doubled a hundred times is longer than any duration.
        let doubled = 1u128 << failed.saturating_sub(1).min(100);
        let bound = self.first_delay.as_nanos().saturating_mul(doubled);
        let bound = bound.min(self.longest_delay.as_nanos());
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        Duration::from_nanos(rng.u64(0..=bound))
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if they admit no attempt, or contradict each other.
    pub(crate) fn check(&self) -> Result<()> {
        let (first, longest) = (self.first_delay, self.longest_delay);
        let fault = if self.attempts == 0 {
            "retry: 0 attempts send no call: set at least 1, which sends it once".to_owned()
        } else if first > longest {
            format!("retry: the first delay, {first:?}, must not exceed the longest, {longest:?}")
        } else if self.per_attempt.is_some_and(|timeout| timeout.is_zero()) {
            "retry: no attempt has a reply in no time: set per_attempt to more than zero".to_owned()
        } else {
            return self.budget.as_ref().map_or(Ok(()), RetryBudget::check);
        };
        Err(Error::new(ErrorKind::InvalidConfig, fault))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_double_up_to_the_longest_and_are_spread_from_zero() {
        let retry = Retry::new();
        let mut rng = fastrand::Rng::with_seed(7);
        for (failed, bound) in [
            (1, 25),
            (2, 50),
            (3, 100),
            (6, 800),
            (7, 1_000),
            (u32::MAX, 1_000),
        ] {
            let mut delays: Vec<_> = (0..1_000).map(|_| retry.delay(failed, &mut rng)).collect();
            delays.sort_unstable();
            assert!(delays[0] <= bound * MS / 50);
            assert!(delays[999] <= bound * MS && delays[999] >= bound * MS / 50 * 49);
            let median = delays[500].as_secs_f64() / (bound * MS).as_secs_f64();
            assert!((0.4..0.6).contains(&median), "{failed}: {median}");
        }
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_its_bound(
            first in any::<Duration>(),
            longest in any::<Duration>(),
            failed in any::<u32>(),
            seed in any::<u64>(),
        ) {
            let retry = Retry::new().delays(first, longest);
            let delay = retry.delay(failed, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(delay <= longest);
            let times = 2u32.saturating_pow(failed.saturating_sub(1));
            prop_assert!(times == u32::MAX || delay <= first.saturating_mul(times));
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for retry in [
            Retry::new().attempts(0),
            Retry::new().delays(2 * MS, MS),
            Retry::new().per_attempt(Duration::ZERO),
            Retry::new().budget(RetryBudget::new().share(f64::NAN)),
        ] {
            let error = retry.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{retry:?}");
        }
        let fine = Retry::new()
            .attempts(1)
            .delays(Duration::ZERO, Duration::ZERO);
        assert!(fine.check().is_ok());
        assert_eq!(fine.delay(9, &mut fastrand::Rng::new()), Duration::ZERO);
    }

    #[test]
    fn a_budget_that_was_set_is_shared_by_all_services() {
        let now = Instant::now();
        let spend = |budget: RetryBudget| (0..50).filter(|_| budget.try_withdraw(now)).count();
        let own = Retry::new().on_code("lock_timeout");
        assert!(own.retries_code("lock_timeout") && !own.retries_code("lock"));
        assert_eq!([(); 2].map(|()| spend(own.budget_of_service())), [10, 10]);
        let shared = own.budget(RetryBudget::new());
        assert_eq!([(); 2].map(|()| spend(shared.budget_of_service())), [10, 0]);
    }
}
