//! The settings of the ejection of instances.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// An ejection of instances that fail or are slow: for a while, the balancer does not pick them.
///
/// An instance is ejected when several attempts in a row have failed, or a share of the attempts
/// of the last 10 s. Failed means failed for a reason of the instance's own (a panic, no reply in
/// time); errors that handlers return do not count. After the period, one attempt at a time goes
/// to the instance as a probe. If it succeeds, the instance is restored; if not, it is ejected
/// for longer. The number of its ejections, by which the period grows, falls by one with every
/// 30 s that it is not ejected.
///
/// The last instance is never ejected. If more instances fail than may be ejected, and more than
/// half, all are picked again: then the service fails, and not an instance.
///
/// Only calls that go through a [balancer](crate::client::ServiceClientBuilder::balancer) can
/// leave an instance out.
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::Ejection;
///
/// let ejection = Ejection::new()
///     .in_a_row(3)
///     .eject_for(Duration::from_secs(5), Duration::from_secs(60));
/// # let _ = ejection;
/// ```
#[derive(Clone, Debug)]
#[must_use = "ejection has no effect until a client gets it"]
pub struct Ejection {
    pub(super) in_a_row: u32,
    pub(super) rate: f64,
    pub(super) minimum: u32,
    pub(super) first: Duration,
    pub(super) longest: Duration,
    pub(super) at_most: f64,
    pub(super) slow: Option<f64>,
}

/// The longest period that may be set.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Ejection {
    /// Creates an ejection with the defaults.
    pub fn new() -> Self {
        Self {
            in_a_row: 5,
            rate: 0.5,
            minimum: 20,
            first: Duration::from_secs(10),
            longest: Duration::from_secs(5 * 60),
            at_most: 0.5,
            slow: Some(5.0),
        }
    }

    /// Sets the number of attempts that fail one after the other for which an instance is ejected.
    /// Defaults to 5.
    pub fn in_a_row(mut self, failures: u32) -> Self {
        self.in_a_row = failures;
        self
    }

    /// Sets the share of the attempts of the last 10 s that fail for which an instance is ejected,
    /// once there are `minimum` attempts. Defaults to 0.5 of at least 20.
    pub fn rate(mut self, share: f64, minimum: u32) -> Self {
        self.rate = share;
        self.minimum = minimum;
        self
    }

    /// Sets the time for which an instance is ejected: `first`, multiplied by the number of its
    /// ejections, and at most `longest`. Defaults to 10 s and 5 minutes; a day is the most.
    pub fn eject_for(mut self, first: Duration, longest: Duration) -> Self {
        self.first = first;
        self.longest = longest;
        self
    }

    /// Sets the largest share of the instances that are ejected at the same time, rounded down.
    /// The last instance is never ejected. Defaults to 0.5.
    pub fn at_most(mut self, share: f64) -> Self {
        self.at_most = share;
        self
    }

    /// Sets how slow an attempt may be: one that takes more than `times` the median of the other
    /// instances counts as failed, if the instance's own median exceeds that too. So single
    /// expensive calls do not count. Differences of less than 5 ms are ignored, and so are
    /// instances with fewer than 10 successful attempts. Defaults to 5.
    pub fn slow(mut self, times: f64) -> Self {
        self.slow = Some(times);
        self
    }

    /// Sets that slow attempts do not count as failed: for services whose instances have
    /// different work to do.
    pub fn ignore_slow(mut self) -> Self {
        self.slow = None;
        self
    }

    /// Returns the number of instances, of `known`, that may be ejected at the same time.
    pub(super) fn most_ejected(&self, known: usize) -> usize {
        let share = (known as f64 * self.at_most) as usize;
        share.min(known.saturating_sub(1))
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for numbers that eject no instance, or any.
    pub(crate) fn check(&self) -> Result<()> {
        let is_share = |share: f64| share > 0.0 && share <= 1.0;
        let fault = if self.in_a_row == 0 || self.minimum == 0 {
            "no failure is no reason to eject: set in_a_row and the minimum of rate to at least 1"
        } else if !is_share(self.rate) || !is_share(self.at_most) {
            "set the shares of rate and at_most to more than 0 and at most 1; without ejection, \
             leave it out"
        } else if self.first.is_zero() || self.first > self.longest || self.longest > DAY {
            "set the first period of eject_for to more than zero and at most the longest one, and \
             the longest to at most a day"
        } else if self
            .slow
            .is_some_and(|times| times.is_nan() || times <= 1.0)
        {
            "set slow to more than 1: half of all attempts take longer than the median; or use \
             ignore_slow"
        } else {
            return Ok(());
        };
        let fault = format!("ejection: {fault}");
        Err(Error::new(ErrorKind::InvalidConfig, fault))
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_instance_is_never_ejected() {
        let half = Ejection::new();
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|n| half.most_ejected(n)),
            [0, 0, 1, 1, 2, 2]
        );
        let all = Ejection::new().at_most(1.0);
        assert_eq!([0, 1, 2, 3].map(|n| all.most_ejected(n)), [0, 0, 1, 2]);
        let few = Ejection::new().at_most(0.3);
        assert_eq!([2, 3, 4, 7].map(|n| few.most_ejected(n)), [0, 0, 1, 2]);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let second = Duration::from_secs(1);
        for ejection in [
            Ejection::new().in_a_row(0),
            Ejection::new().rate(0.5, 0),
            Ejection::new().rate(0.0, 20),
            Ejection::new().rate(1.1, 20),
            Ejection::new().at_most(0.0),
            Ejection::new().at_most(f64::NAN),
            Ejection::new().eject_for(Duration::ZERO, second),
            Ejection::new().eject_for(2 * second, second),
            Ejection::new().eject_for(second, 2 * DAY),
            Ejection::new().slow(1.0),
            Ejection::new().slow(f64::NAN),
        ] {
            let error = ejection.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{ejection:?}");
        }
        assert!(Ejection::new().check().is_ok());
        assert!(Ejection::new().ignore_slow().at_most(1.0).check().is_ok());
    }
}
