//! The settings of circuit breakers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::breaker_change::BreakerChange;
use crate::base::catch::catch;
use crate::base::log_relay;
use crate::error::{Error, ErrorKind, Result};

/// A function that returns true for errors that count as failures.
type FailureFn = dyn Fn(&Error) -> bool + Send + Sync;

/// A listener for changes of state.
type ListenerFn = dyn Fn(&BreakerChange) + Send + Sync;

/// A circuit breaker: while a service fails, calls to it are refused at once instead of being sent.
///
/// A client keeps one breaker per service, and no two clients share one. It counts the outcomes of
/// the last [`window`](Breaker::window). A call has failed if no reply came before its deadline, or
/// if the service replied that the handler panicked, that the deadline had passed before the
/// handler began, that the workers of the request died repeatedly, or that the handler's result
/// cannot be encoded, or not be read where it was stored; [`failure`](Breaker::failure) adds
/// errors of the program's own. Other errors of handlers are results like any other: the service
/// works. Refusals as [`Busy`](crate::ErrorKind::Busy), lost connections, and calls that were never
/// sent say nothing about the service, and do not count; a probe that is refused as busy went well.
/// Nor do timeouts of attempts to which a [deadline](crate::ServiceClient::with_deadline) leaves less
/// than half of the time that such calls have, and outcomes that the program takes over a second late.
///
/// | state | calls | ends |
/// | --- | --- | --- |
/// | closed | are sent | when the rate of failed, or of slow, calls is reached, or all calls fail: open |
/// | open | are refused | after 5 s, and after twice as long each time it opens again, up to 60 s: half-open |
/// | half-open | at most 3 at a time are sent, as probes | when 3 in a row went well: closed; at the first that did not: open |
///
/// *All calls fail* if as many in a row as the [`minimum_calls`](Breaker::minimum_calls), and at least
/// 10, have failed within the window, and none has succeeded for a tenth of it. So an outage is
/// noticed although the window still holds the many successes before it.
///
/// The periods vary by ±10 %, up to the longest, so that many clients do not probe at the same
/// moment. After 30 s
/// closed the next period is 5 s again. Outcomes of calls that were sent before the last change of
/// state do not count. There is no timer: the first call after the period is the first probe.
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::Breaker;
///
/// let breaker = Breaker::new()
///     .failure_rate(0.3)
///     .slow(Duration::from_secs(2), 0.8)
///     .open_for(Duration::from_secs(1), Duration::from_secs(30))
///     .failure(|error| error.remote_code() == Some("database_down"))
///     .on_change(|change| eprintln!("{}: {}", change.service(), change.to().as_str()));
/// # let _ = breaker;
/// ```
#[derive(Clone)]
#[must_use = "a breaker has no effect until a client gets it"]
pub struct Breaker {
    pub(super) failure_rate: f64,
    pub(super) minimum_calls: u32,
    pub(super) window: Duration,
    /// The duration above which a call is slow, and the rate of slow calls that opens the breaker.
    pub(super) slow: Option<(Duration, f64)>,
    pub(super) first_open: Duration,
    pub(super) longest_open: Duration,
    pub(super) probes: u32,
    failure: Option<Arc<FailureFn>>,
    listener: Option<Arc<ListenerFn>>,
}

impl Breaker {
    /// Creates a breaker with the defaults.
    pub fn new() -> Self {
        Self {
            failure_rate: 0.5,
            minimum_calls: 20,
            window: Duration::from_secs(10),
            slow: None,
            first_open: Duration::from_secs(5),
            longest_open: Duration::from_secs(60),
            probes: 3,
            failure: None,
            listener: None,
        }
    }

    /// Sets the share of failed calls in the window at which the breaker opens: above 0, and at
    /// most 1. Defaults to 0.5.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = rate;
        self
    }

    /// Sets the number of calls in the window below which the breaker does not open: at least 1.
    /// Defaults to 20.
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = calls;
        self
    }

    /// Sets the length of the window in which outcomes are counted. It moves on by a tenth of its
    /// length at a time. Defaults to 10 s.
    pub fn window(mut self, length: Duration) -> Self {
        self.window = length;
        self
    }

    /// Sets that the breaker opens too when this share of the calls in the window took longer than
    /// `than`: above 0, and at most 1. A probe that took longer has not gone well. Defaults to off:
    /// the durations of calls do not count.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::resilience::Breaker;
    ///
    /// let half_of_them_over_a_second = Breaker::new().slow(Duration::from_secs(1), 0.5);
    /// # let _ = half_of_them_over_a_second;
    /// ```
    pub fn slow(mut self, than: Duration, rate: f64) -> Self {
        self.slow = Some((than, rate));
        self
    }

    /// Sets the first period for which the breaker is open, and the longest: the period doubles
    /// each time the breaker opens again before it was closed for 30 s. Each varies by ±10 %; one
    /// over a year counts as a year. Defaults to 5 s and 60 s.
    pub fn open_for(mut self, first: Duration, longest: Duration) -> Self {
        self.first_open = first;
        self.longest_open = longest;
        self
    }

    /// Sets the number of probes: as many calls are in flight at most while the breaker is
    /// half-open, and as many in a row must go well to close it. At least 1. Defaults to 3.
    pub fn probes(mut self, probes: u32) -> Self {
        self.probes = probes;
        self
    }

    /// Sets a function that returns true for further errors that count as failures of the service,
    /// such as a handler's own [code](Error::remote_code). Defaults to none.
    ///
    /// It runs on the thread that takes the outcome, a caller's or the client's callback thread,
    /// and must not block. A panic in it is logged, and the error then does not count.
    ///
    /// ```
    /// use coney::resilience::Breaker;
    ///
    /// let breaker = Breaker::new().failure(|error| error.remote_code() == Some("database_down"));
    /// # let _ = breaker;
    /// ```
    pub fn failure(mut self, failure: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.failure = Some(Arc::new(failure));
        self
    }

    /// Sets a listener for the changes of state. Defaults to none.
    ///
    /// It runs on the client's callback thread, one change at a time and in their order; while it
    /// blocks, the client's other callbacks wait. A panic in it is logged.
    ///
    /// ```
    /// use coney::resilience::Breaker;
    ///
    /// let breaker = Breaker::new().on_change(|change| {
    ///     let (from, to) = (change.from().as_str(), change.to().as_str());
    ///     eprintln!("{}: {from} to {to}, {:?}", change.service(), change.retry_after());
    /// });
    /// # let _ = breaker;
    /// ```
    pub fn on_change(mut self, listener: impl Fn(&BreakerChange) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for the first setting that is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |text: String| {
            let text = format!("invalid circuit breaker: {text}");
            Err(Error::new(ErrorKind::InvalidConfig, text))
        };
        let is_rate = |rate: f64| rate > 0.0 && rate <= 1.0;
        if !is_rate(self.failure_rate) {
            let rate = self.failure_rate;
            return invalid(format!(
                "set a failure_rate above 0 and at most 1, not {rate}"
            ));
        }
        if self.minimum_calls == 0 {
            return invalid("set minimum_calls to at least 1".to_owned());
        }
        if self.window.is_zero() {
            return invalid("set a window longer than zero, such as 10 s".to_owned());
        }
        if let Some((than, rate)) = self.slow
            && (than.is_zero() || !is_rate(rate))
        {
            return invalid(format!(
                "set slow to a duration longer than zero and a rate above 0 and at most 1, not to \
                 {than:?} and {rate}"
            ));
        }
        if self.first_open.is_zero() || self.first_open > self.longest_open {
            let (first, longest) = (self.first_open, self.longest_open);
            return invalid(format!(
                "set open_for to a first period longer than zero, and a longest no shorter, not \
                 to {first:?} and {longest:?}"
            ));
        }
        if self.probes == 0 {
            return invalid("set probes to at least 1, or it could never close".to_owned());
        }
        Ok(())
    }

    /// Returns true if the function of [`failure`](Breaker::failure) returns true. Runs user code:
    /// not to be called with a lock held.
    pub(crate) fn is_failure(&self, error: &Error) -> bool {
        let Some(failure) = &self.failure else {
            return false;
        };
        catch(|| failure(error)).unwrap_or_else(|_| {
            log_panic("the failure function");
            false
        })
    }

    /// Returns true if there is a listener.
    pub(crate) fn has_listener(&self) -> bool {
        self.listener.is_some()
    }

    /// Calls the listener, if there is one. Runs user code: not to be called with a lock held.
    pub(crate) fn notify(&self, change: &BreakerChange) {
        if let Some(listener) = &self.listener
            && catch(|| listener(change)).is_err()
        {
            log_panic("the listener");
        }
    }
}

/// Logs a panic, though not its text, which may be a payload. Logs on another thread: a logger
/// that panics must not end this one.
fn log_panic(of: &str) {
    log_relay::log(
        log::Level::Error,
        "coney::client",
        format_args!("{of} of a circuit breaker panicked"),
    );
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("failure_rate", &self.failure_rate)
            .field("minimum_calls", &self.minimum_calls)
            .field("window", &self.window)
            .field("slow", &self.slow)
            .field("first_open", &self.first_open)
            .field("longest_open", &self.longest_open)
            .field("probes", &self.probes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::breaker_change::{BreakerState, Transition};
    use parking_lot::Mutex;

    #[test]
    fn settings_out_of_range_are_refused_with_a_remedy() {
        const SECOND: Duration = Duration::from_secs(1);
        let new = Breaker::new;
        for (breaker, remedy) in [
            (new().failure_rate(0.0), "above 0 and at most 1, not 0"),
            (new().failure_rate(1.1), "not 1.1"),
            (new().failure_rate(f64::NAN), "not NaN"),
            (new().minimum_calls(0), "minimum_calls to at least 1"),
            (new().window(Duration::ZERO), "window longer than zero"),
            (new().slow(SECOND, -1.0), "1s and -1"),
            (new().slow(Duration::ZERO, 0.5), "0ns and 0.5"),
            (new().open_for(2 * SECOND, SECOND), "2s and 1s"),
            (new().open_for(Duration::ZERO, SECOND), "0ns and 1s"),
            (new().probes(0), "probes to at least 1"),
        ] {
            let error = breaker.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(remedy), "{error}: {remedy}");
        }
        let edge = new().failure_rate(1.0).minimum_calls(1).probes(1);
        assert!(edge.open_for(SECOND, SECOND).check().is_ok());
        assert!(Breaker::default().slow(SECOND, 1.0).check().is_ok());
    }

    #[test]
    fn a_function_adds_failures() {
        let error = Error::new(ErrorKind::Remote, "").with_code(Some("down".to_owned()));
        assert!(!Breaker::new().is_failure(&error));
        let breaker = Breaker::new().failure(|error| error.remote_code() == Some("down"));
        assert!(breaker.is_failure(&error));
        assert!(!breaker.is_failure(&Error::new(ErrorKind::Remote, "")));
        let panics = Breaker::new().failure(|_| panic!("a panic that the test wants"));
        assert!(!panics.is_failure(&error));
    }

    #[test]
    fn a_listener_gets_each_change_and_may_panic() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&seen);
        let breaker = Breaker::new().on_change(move |change| {
            listener.lock().push(change.clone());
            panic!("a panic that the test wants");
        });
        assert!(breaker.has_listener() && !Breaker::new().has_listener());
        let transition = Transition {
            from: BreakerState::HalfOpen,
            to: BreakerState::Open,
            retry_after: Some(Duration::from_secs(5)),
        };
        breaker.notify(&BreakerChange::new("stock", transition));
        Breaker::new().notify(&BreakerChange::new("stock", transition));
        let seen = seen.lock();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].service(), "stock");
        assert_eq!(seen[0].from(), BreakerState::HalfOpen);
        assert_eq!(seen[0].to(), BreakerState::Open);
        assert_eq!(seen[0].retry_after(), Some(Duration::from_secs(5)));
    }
}
