//! The numbers of a rate limit: calls, period and burst.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// A rate: a number of calls in a period, and the calls that are admitted at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// The number of calls in a period.
    pub(crate) calls: u32,
    pub(crate) period: Duration,
    pub(crate) burst: Option<u32>,
}

/// The time whose calls are the burst by default.
const BURST_TIME: Duration = Duration::from_millis(100);

impl Rate {
    pub(super) fn per_second(calls: u32) -> Self {
        Self {
            calls,
            period: Duration::from_secs(1),
            burst: None,
        }
    }

    /// Returns the rate of one call in each `period`.
    pub(super) fn every(period: Duration) -> Self {
        Self {
            period,
            ..Self::per_second(1)
        }
    }

    pub(super) fn burst(self, calls: u32) -> Self {
        Self {
            burst: Some(calls),
            ..self
        }
    }

    /// Returns the burst, set or by default.
    pub(crate) fn most_at_once(&self) -> u32 {
        self.burst
            .unwrap_or_else(|| self.calls_in(BURST_TIME).max(1))
    }

    /// Returns the number of calls that are admitted in `time`, rounded down.
    pub(super) fn calls_in(&self, time: Duration) -> u32 {
        let calls = u128::from(self.calls) * time.as_nanos();
        let calls = calls.checked_div(self.period.as_nanos()).unwrap_or(1);
        u32::try_from(calls).unwrap_or(u32::MAX)
    }

    /// Returns the time from one call to the next, were all evenly spaced.
    pub(super) fn interval(&self) -> Duration {
        self.period / self.calls.max(1)
    }

    /// Returns the part of this rate that one of `peers` processes has.
    pub(super) fn share(&self, peers: u32) -> Self {
        let peers = peers.max(1);
        Self {
            calls: self.calls,
            period: self.period.saturating_mul(peers),
            burst: Some((self.most_at_once() / peers).max(1)),
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a limit that admits no call, or all at once.
    pub(super) fn check(&self) -> Result<()> {
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
        let per_minute = |calls| Rate {
            period: Duration::from_secs(60),
            ..Rate::per_second(calls)
        };
        assert_eq!(Rate::per_second(200).most_at_once(), 20);
        assert_eq!(Rate::per_second(3).most_at_once(), 1);
        assert_eq!(per_minute(6_000).most_at_once(), 10);
        let millisecond = Duration::from_millis(1);
        assert_eq!(Rate::every(millisecond).most_at_once(), 100);
        assert_eq!(Rate::every(Duration::MAX).most_at_once(), 1);
        assert_eq!(Rate::per_second(200).burst(7).most_at_once(), 7);
    }

    #[test]
    fn a_share_has_a_part_of_the_rate_and_of_the_burst() {
        let share = Rate::per_second(2_000).share(8);
        assert_eq!(share.interval(), Duration::from_millis(4));
        assert_eq!(share.most_at_once(), 25);
        assert_eq!(Rate::per_second(1).share(8).most_at_once(), 1);
        assert_eq!(Rate::per_second(2_000).share(0).most_at_once(), 200);
    }

    #[test]
    fn rates_that_admit_nothing_or_all_are_refused() {
        for rate in [
            Rate::per_second(0),
            Rate::every(Duration::ZERO),
            Rate::per_second(1).burst(0),
        ] {
            let error = rate.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{rate:?}");
        }
        assert!(Rate::per_second(u32::MAX).check().is_ok());
        assert!(Rate::every(Duration::MAX).check().is_ok());
    }
}
