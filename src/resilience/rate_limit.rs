//! The settings of a rate limit.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// A limit of the rate at which calls are made.
///
/// Calls are admitted evenly spaced, except for a [burst](RateLimit::burst) after a pause. In any
/// time *t*, at most *rate × t + burst* calls are admitted. A turn that a call waits for and does not use,
/// as it is dropped, is lost. The limit holds for one client: those
/// of other processes have limits of their own.
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::RateLimit;
///
/// let search = RateLimit::per_second(200).burst(50);
/// let mails = RateLimit::per_minute(30);
/// let report = RateLimit::every(Duration::from_secs(10));
/// # let _ = (search, mails, report);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a rate limit has no effect until a client gets it"]
pub struct RateLimit {
    /// The number of calls in a period.
    pub(super) calls: u32,
    pub(super) period: Duration,
    pub(super) burst: Option<u32>,
}

/// The time whose calls are the burst by default.
const BURST_TIME: Duration = Duration::from_millis(100);

impl RateLimit {
    /// Creates a limit of `calls` in a second.
    pub fn per_second(calls: u32) -> Self {
        Self {
            calls,
            period: Duration::from_secs(1),
            burst: None,
        }
    }

    /// Creates a limit of `calls` in a minute.
    pub fn per_minute(calls: u32) -> Self {
        Self {
            period: Duration::from_secs(60),
            ..Self::per_second(calls)
        }
    }

    /// Creates a limit of one call in each `period`.
    pub fn every(period: Duration) -> Self {
        Self {
            period,
            ..Self::per_second(1)
        }
    }

    /// Sets the number of calls that are admitted at once after a pause. Defaults to the calls of
    /// a tenth of a second, and to at least 1.
    pub fn burst(mut self, calls: u32) -> Self {
        self.burst = Some(calls);
        self
    }

    /// Returns the burst, set or by default.
    pub(super) fn most_at_once(&self) -> u32 {
        self.burst.unwrap_or_else(|| {
            let calls = u128::from(self.calls) * BURST_TIME.as_nanos();
            let calls = calls.checked_div(self.period.as_nanos()).unwrap_or(1);
            u32::try_from(calls).unwrap_or(u32::MAX).max(1)
        })
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a limit that admits no call, or all at once.
    pub(crate) fn check(&self) -> Result<()> {
        let fault = if self.calls == 0 {
            "a rate limit of 0 calls admits none: set it to at least 1"
        } else if self.period.is_zero() {
            "a rate limit of one call in no time is none: leave it out, or set a longer period"
        } else if self.burst == Some(0) {
            "a rate limit with a burst of 0 calls admits none: set the burst to at least 1"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidConfig, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_is_a_tenth_of_a_second_by_default() {
        assert_eq!(RateLimit::per_second(200).most_at_once(), 20);
        assert_eq!(RateLimit::per_second(3).most_at_once(), 1);
        assert_eq!(RateLimit::per_minute(6_000).most_at_once(), 10);
        let millisecond = Duration::from_millis(1);
        assert_eq!(RateLimit::every(millisecond).most_at_once(), 100);
        assert_eq!(RateLimit::every(Duration::MAX).most_at_once(), 1);
        assert_eq!(RateLimit::per_second(200).burst(7).most_at_once(), 7);
    }

    #[test]
    fn limits_that_admit_nothing_or_all_are_refused() {
        for limit in [
            RateLimit::per_second(0),
            RateLimit::per_minute(0),
            RateLimit::every(Duration::ZERO),
            RateLimit::per_second(1).burst(0),
        ] {
            let error = limit.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{limit:?}");
        }
        assert!(RateLimit::per_second(u32::MAX).check().is_ok());
        assert!(RateLimit::every(Duration::MAX).check().is_ok());
    }
}
