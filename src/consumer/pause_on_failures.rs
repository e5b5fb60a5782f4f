//! The settings of the pause of a server or a subscription whose attempts fail.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::handler_error::HandlerError;
use crate::base::catch::catch;
use crate::base::log_relay;
use crate::error::{Error, ErrorKind, Result};

/// A function that returns true for errors that count as failures.
type FailureFn = dyn Fn(&HandlerError) -> bool + Send + Sync;

/// The longest pause, a day: far from overflowing an `Instant`.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60 * 24);

/// A kill switch: while too large a share of the attempts fails, a server or a subscription stops
/// consuming, instead of taking every message from its queue to fail at it.
///
/// An attempt has failed if the handler panicked or its result cannot be encoded, and, if it was an
/// attempt at a command or an event, if the handler returned an error that
/// [may be retried](crate::HandlerError::do_not_retry). A call's own error is a result as any other,
/// unless [`failure`](PauseOnFailures::failure) names it. Requests that do not reach the handler,
/// payloads that do not decode and [busy](crate::HandlerError::busy) errors do not count.
///
/// | state | messages | ends |
/// | --- | --- | --- |
/// | consuming | are handled, and their outcomes counted | when the share of failed attempts in the window is reached: paused |
/// | paused | stay in the queue, or go to other instances | after the pause: on trial |
/// | on trial | are handled | at the first failure: paused; after [`minimum_attempts`](PauseOnFailures::minimum_attempts) without one, or after a whole window: consuming |
///
/// So while an outage lasts, each pause costs no more attempts than handlers run at the same time.
/// A paused server is unhealthy, with the reason in its
/// [state](crate::server::ServerState::unhealthy) and in the registry. A paused subscription is in
/// the [state](crate::events::SubscriberState::paused) of its subscriber.
///
/// ```
/// use std::time::Duration;
/// use coney::server::PauseOnFailures;
///
/// let pause = PauseOnFailures::new()
///     .failure_rate(0.8)
///     .pause_for(Duration::from_secs(60))
///     .failure(|error| error.code() == Some("database_down"));
/// # let _ = pause;
/// ```
#[derive(Clone)]
#[must_use = "the settings have no effect until a server or a subscriber gets them"]
#[doc(alias = "kill switch")]
pub struct PauseOnFailures {
    pub(super) failure_rate: f64,
    pub(super) minimum_attempts: u32,
    pub(super) window: Duration,
    pub(super) pause: Duration,
    failure: Option<Arc<FailureFn>>,
}

impl PauseOnFailures {
    /// Creates settings with the defaults.
    pub fn new() -> Self {
        Self {
            failure_rate: 0.5,
            minimum_attempts: 10,
            window: Duration::from_secs(10),
            pause: Duration::from_secs(30),
            failure: None,
        }
    }

    /// Sets the share of failed attempts in the window at which consuming pauses: above 0, and at
    /// most 1. Defaults to 0.5.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = rate;
        self
    }

    /// Sets the number of attempts in the window below which consuming does not pause, and that of
    /// the attempts without a failure which end the trial: at least 1. Defaults to 10.
    pub fn minimum_attempts(mut self, attempts: u32) -> Self {
        self.minimum_attempts = attempts;
        self
    }

    /// Sets the length of the window in which attempts are counted. It moves on by a tenth of its
    /// length at a time. Defaults to 10 s.
    pub fn window(mut self, length: Duration) -> Self {
        self.window = length;
        self
    }

    /// Sets the length of a pause: longer than zero. One over a day counts as a day. Defaults to
    /// 30 s.
    pub fn pause_for(mut self, length: Duration) -> Self {
        self.pause = length.min(LONGEST_PAUSE);
        self
    }

    /// Sets a function that returns true for further errors that count as failures, such as those
    /// of a database that calls need too. Defaults to none.
    ///
    /// It runs on the handler's worker. A panic in it is logged, and the error then does not count.
    ///
    /// ```
    /// use coney::ErrorKind;
    /// use coney::server::PauseOnFailures;
    ///
    /// let pause = PauseOnFailures::new()
    ///     .failure(|error| error.nested_kind() == Some(ErrorKind::TimedOut));
    /// # let _ = pause;
    /// ```
    pub fn failure(
        mut self,
        failure: impl Fn(&HandlerError) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.failure = Some(Arc::new(failure));
        self
    }

    /// Returns the length of a pause.
    pub(crate) fn pause_length(&self) -> Duration {
        self.pause
    }

    /// Checks the settings. `owner` is the service that they belong to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for the first setting that is out of range.
    pub(crate) fn check(&self, owner: &str) -> Result<()> {
        let rate = self.failure_rate;
        let remedy = if !(rate > 0.0 && rate <= 1.0) {
            format!("set a failure_rate above 0 and at most 1, not {rate}")
        } else if self.minimum_attempts == 0 {
            "set minimum_attempts to at least 1".to_owned()
        } else if self.window.is_zero() {
            "set a window longer than zero, such as 10 s".to_owned()
        } else if self.pause.is_zero() {
            "set pause_for to more than zero, such as 30 s".to_owned()
        } else {
            return Ok(());
        };
        let text = format!("{owner}: invalid pause on failures: {remedy}");
        Err(Error::new(ErrorKind::InvalidConfig, text))
    }

    /// Returns true if the function of [`failure`](PauseOnFailures::failure) returns true. Runs
    /// user code: not to be called with a lock held.
    pub(super) fn is_failure(&self, error: &HandlerError) -> bool {
        let Some(failure) = &self.failure else {
            return false;
        };
        catch(|| failure(error)).unwrap_or_else(|_| {
            log_relay::log(
                log::Level::Error,
                "coney::worker",
                format_args!("the failure function of a pause on failures panicked"),
            );
            false
        })
    }
}

impl Default for PauseOnFailures {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PauseOnFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PauseOnFailures")
            .field("failure_rate", &self.failure_rate)
            .field("minimum_attempts", &self.minimum_attempts)
            .field("window", &self.window)
            .field("pause", &self.pause)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_with_a_remedy() {
        let new = PauseOnFailures::new;
        for (settings, remedy) in [
            (new().failure_rate(0.0), "above 0 and at most 1, not 0"),
            (new().failure_rate(f64::NAN), "not NaN"),
            (new().minimum_attempts(0), "minimum_attempts to at least 1"),
            (new().window(Duration::ZERO), "a window longer"),
            (new().pause_for(Duration::ZERO), "pause_for to more"),
        ] {
            let error = settings.check("mail").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let text = error.to_string();
            assert!(text.contains(remedy) && text.contains("mail"), "{text}");
        }
        let longest = PauseOnFailures::default().pause_for(Duration::MAX);
        assert!(longest.failure_rate(1.0).check("mail").is_ok());
    }

    #[test]
    fn a_function_adds_failures_and_may_panic() {
        let error = HandlerError::new("").with_code("down");
        assert!(!PauseOnFailures::new().is_failure(&error));
        let named = PauseOnFailures::new().failure(|error| error.code() == Some("down"));
        assert!(named.is_failure(&error) && !named.is_failure(&HandlerError::new("")));
        let panics = PauseOnFailures::new().failure(|_| panic!("a panic that the test wants"));
        assert!(!panics.is_failure(&error));
    }
}
