//! The error of handlers.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::error_code;

/// The result of a handler.
///
/// ```
/// use coney::HandlerResult;
///
/// fn divide((a, b): (u64, u64)) -> HandlerResult<u64> {
///     Ok(a.checked_div(b).ok_or("division by zero")?)
/// }
/// assert!(divide((1, 0)).is_err());
/// ```
pub type HandlerResult<T = ()> = Result<T, HandlerError>;

/// The error of a handler: a text for the caller, an optional code for the caller's program,
/// and whether another attempt makes sense. It is not a [`std::error::Error`] and does not
/// implement `Display`, so that every type that does converts into it.
///
/// Handlers return any error type that implements `Display` and holds no borrowed data; it is
/// converted by `?` or `into()`. Print a `HandlerError` by its
/// [`message`](HandlerError::message). The code of an error type of your own is set where the
/// error is converted:
///
/// ```
/// use std::fmt;
/// use coney::{HandlerError, HandlerResult};
///
/// #[derive(Debug)]
/// struct SoldOut(u64);
///
/// impl fmt::Display for SoldOut {
///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         write!(f, "article {} is sold out", self.0)
///     }
/// }
///
/// fn coded(error: SoldOut) -> HandlerError {
///     HandlerError::from(error).with_code("sold_out")
/// }
///
/// fn take(article: u64) -> Result<(), SoldOut> {
///     Err(SoldOut(article))
/// }
///
/// fn reserve(article: u64) -> HandlerResult {
///     take(article).map_err(coded)?;
///     Ok(())
/// }
/// assert_eq!(reserve(7).unwrap_err().code(), Some("sold_out"));
/// ```
///
/// # Errors of nested calls
///
/// An [`Error`] of a call that the handler made keeps more than its text:
///
/// | of the nested error | in the `HandlerError` |
/// | --- | --- |
/// | [`kind`](Error::kind) | [`nested_kind`](HandlerError::nested_kind) |
/// | the code of the other service's handler | [`code`](HandlerError::code), and so the reply's |
/// | [`ErrorKind::Busy`] | the code `busy_downstream` |
/// | a request that cannot be encoded, is too large, or has invalid names or options; a misuse | the command is [not retried](HandlerError::do_not_retry) |
///
/// coney's own codes, such as `expired`, say something about the nested request and nothing
/// about the handler's, so they are not passed on.
///
/// ```
/// use coney::HandlerError;
///
/// fn charge(cents: i64) -> Result<(), HandlerError> {
///     let text = "12a";
///     let limit: i64 = text.parse()?;
///     if cents > limit {
///         return Err(HandlerError::new("over the limit").with_code("card_declined"));
///     }
///     Ok(())
/// }
/// assert_eq!(charge(1).unwrap_err().message(), "invalid digit found in string");
/// ```
#[must_use = "a handler has to return its error"]
pub struct HandlerError {
    message: String,
    code: Option<String>,
    do_not_retry: bool,
    /// True if the handler did not run, because the payload does not decode.
    undecodable: bool,
    nested: Option<ErrorKind>,
    /// True if the handler refused the request and has done nothing.
    is_busy: bool,
    /// The delay before the next attempt, if the handler names it.
    retry_delay: Option<Duration>,
}

impl HandlerError {
    /// Creates an error with this text, which the caller gets unchanged.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: None,
            do_not_retry: false,
            undecodable: false,
            nested: None,
            is_busy: false,
            retry_delay: None,
        }
    }

    /// Creates an error that refuses the request for now: the handler has too much to do, or
    /// something that it needs is unavailable. Return it only if nothing has been done yet:
    /// callers send such a request again.
    ///
    /// The caller of a call gets [`ErrorKind::Busy`], which is
    /// [safe to retry](Error::is_safe_to_retry), and reads `retry_after` by
    /// [`Error::retry_after`]. A command or an event is put off and uses up no attempt: it waits
    /// for the shortest of the
    /// [retry delays](crate::server::ServiceServerBuilder::retry_delays) that is at least
    /// `retry_after`, for a longer one each time it is put off again, and at most for the longest.
    /// A server that [deduplicates](crate::server::ServiceServerBuilder::deduplicate) takes the
    /// request as new when it comes again. The setters of the code and of
    /// [finality](HandlerError::do_not_retry) leave a busy error unchanged. To fail a command or an
    /// event with a delay of its own, see [`retry_after`](HandlerError::retry_after).
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::{Broker, ErrorKind, HandlerError, HandlerResult, ServiceClient, ServiceServer};
    ///
    /// fn render(_page: u64) -> HandlerResult<String> {
    ///     Err(HandlerError::busy("all printers are in use", Duration::from_secs(2)))
    /// }
    ///
    /// let broker = Broker::memory();
    /// let server = ServiceServer::builder(&broker, "printer").handler("render", render).start()?;
    /// let client = ServiceClient::new(&broker, "office")?;
    /// let error = client.call::<String>("printer", "render", &1).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Busy);
    /// assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            code: Some(error_code::BUSY.to_owned()),
            is_busy: true,
            retry_delay: Some(retry_after),
            ..Self::new(message)
        }
    }

    /// Sets the delay before the next attempt, in place of the one of the
    /// [retry delays](crate::server::ServiceServerBuilder::retry_delays): the command or event has
    /// failed, the attempt counts, and the next one begins after `delay`, or up to 1 % or 100 ms
    /// later. At most 30 days, and 25 minutes for [ordered](crate::Subscription::ordered_by) and
    /// [broadcast](crate::Subscription::broadcast) events; a longer delay counts as that. After the
    /// last attempt the message is dead-lettered all the same. The caller of a call gets the error
    /// without the delay. Of a [busy](HandlerError::busy) error this replaces the delay. Defaults to
    /// the delay of the attempt's number.
    ///
    /// A message whose delay is not one of the server's retry delays waits in queues of the broker
    /// that all services share, `coney.delay.level.N`. They are declared when they are first needed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::{HandlerError, HandlerResult};
    ///
    /// fn submit(_report: u64) -> HandlerResult {
    ///     let closed_for = Duration::from_secs(2 * 60 * 60);
    ///     Err(HandlerError::new("the office is closed").retry_after(closed_for))
    /// }
    /// assert_eq!(submit(1).unwrap_err().retry_delay(), Some(Duration::from_secs(7_200)));
    /// ```
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_delay = Some(delay);
        self
    }

    /// Marks the error as final: another attempt would fail too. A command that fails with it
    /// is dead-lettered at once. The caller of a call gets the error and decides; a server that
    /// [deduplicates](crate::server::ServiceServerBuilder::deduplicate) keeps the error as the
    /// reply to repeated requests.
    ///
    /// ```
    /// # use coney::{HandlerError, HandlerResult};
    /// fn ship(country: &str) -> HandlerResult {
    ///     match country {
    ///         "XX" => Err(HandlerError::new("no such country").do_not_retry()),
    ///         _ => Ok(()),
    ///     }
    /// }
    /// # assert!(ship("XX").is_err());
    /// ```
    pub fn do_not_retry(mut self) -> Self {
        self.do_not_retry = !self.is_busy;
        self
    }

    /// Sets the code, sent as `error_code`; coney's clients read it by
    /// [`Error::remote_code`](crate::Error::remote_code). Its table has the codes that servers
    /// set themselves: with one of those the error has no code, since callers would take a
    /// handler that has begun for one that has not.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        if !self.is_busy {
            self.code = Some(code.into()).filter(|code| !error_code::is_reserved(code));
        }
        self
    }

    /// Sets a code that only the server itself may set.
    pub(super) fn with_reserved_code(mut self, code: &str) -> Self {
        self.code = Some(code.to_owned());
        self
    }

    /// Returns the text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the code, if there is one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Returns true if another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        !self.do_not_retry
    }

    /// Returns true if the error refuses the request for now: see [`busy`](HandlerError::busy).
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Returns the delay before the next attempt that the handler has set, by
    /// [`busy`](HandlerError::busy) or [`retry_after`](HandlerError::retry_after).
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_delay
    }

    /// Returns the kind of the nested call's error that this was converted from, if it was.
    pub fn nested_kind(&self) -> Option<ErrorKind> {
        self.nested
    }

    pub(super) fn is_undecodable(&self) -> bool {
        self.undecodable
    }

    /// Marks the error as that of a payload that does not decode.
    pub(super) fn undecodable(mut self) -> Self {
        self.undecodable = true;
        self.do_not_retry()
    }

    /// Takes over the kind, the code and the retryability of a nested call's error.
    fn of_nested(error: &Error) -> Self {
        let kind = error.kind();
        let code = match kind {
            ErrorKind::Busy => Some(error_code::BUSY_DOWNSTREAM),
            ErrorKind::Remote => error
                .remote_code()
                .filter(|code| !error_code::is_reserved(code)),
            _ => None,
        };
        // The same request fails in the same way again.
        let is_final = matches!(
            kind,
            ErrorKind::Encode
                | ErrorKind::PayloadTooLarge
                | ErrorKind::InvalidConfig
                | ErrorKind::Misuse
        );
        Self {
            code: code.map(str::to_owned),
            do_not_retry: is_final,
            nested: Some(kind),
            ..Self::new(error.to_string())
        }
    }
}

/// Possible because `HandlerError` itself does not implement `Display`; otherwise it would
/// overlap with `From<HandlerError> for HandlerError`.
impl<E: fmt::Display + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        match (&error as &dyn Any).downcast_ref::<Error>() {
            Some(nested) => Self::of_nested(nested),
            None => Self::new(error.to_string()),
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("message", &self.message)
            .field("code", &self.code)
            .field("nested", &self.nested)
            .field("is_busy", &self.is_busy)
            .field("retry_delay", &self.retry_delay)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(code: &str) -> HandlerError {
        let error = Error::new(ErrorKind::Remote, "pay-service.charge failed");
        HandlerError::from(error.with_code(Some(code.to_owned())))
    }

    #[test]
    fn the_servers_own_codes_cannot_be_set_by_a_handler() {
        let error = |code: &str| HandlerError::new("half done").with_code(code);
        for code in ["expired", "busy", "too_large", "unknown_action"] {
            assert_eq!(error(code).code(), None, "{code}");
        }
        assert_eq!(error("card_declined").code(), Some("card_declined"));
    }

    #[test]
    fn a_busy_error_stays_busy() {
        let second = Duration::from_secs(1);
        let busy = HandlerError::busy("too much to do", second);
        let busy = busy.with_code("card_declined").do_not_retry();
        assert_eq!(busy.retry_delay(), Some(second));
        assert_eq!(busy.code(), Some("busy"));
        assert!(busy.is_retryable() && busy.is_busy());
        assert_eq!(busy.retry_after(2 * second).retry_delay(), Some(2 * second));
        assert_eq!(HandlerError::new("other").retry_delay(), None);
    }

    #[test]
    fn an_error_with_a_delay_of_its_own_is_not_busy() {
        let second = Duration::from_secs(1);
        let error = HandlerError::new("closed")
            .with_code("closed")
            .retry_after(second);
        assert_eq!(error.retry_delay(), Some(second));
        assert_eq!(error.code(), Some("closed"));
        assert!(!error.is_busy() && error.is_retryable());
        assert!(!error.do_not_retry().is_retryable(), "final all the same");
    }

    #[test]
    fn a_nested_error_keeps_its_kind_its_code_and_its_retryability() {
        fn call() -> crate::Result<()> {
            Err(Error::new(ErrorKind::Busy, "pay-service refused charge"))
        }
        fn handler() -> HandlerResult {
            Ok(call()?)
        }
        let busy = handler().unwrap_err();
        assert_eq!(busy.nested_kind(), Some(ErrorKind::Busy));
        assert_eq!(busy.code(), Some("busy_downstream"));
        assert!(busy.is_retryable());
        assert_eq!(busy.message(), "pay-service refused charge");
        let declined = remote("card_declined");
        assert_eq!(declined.code(), Some("card_declined"));
        assert_eq!(declined.nested_kind(), Some(ErrorKind::Remote));
        let large = HandlerError::from(Error::new(ErrorKind::PayloadTooLarge, "too large"));
        assert!(!large.is_retryable());
        let other = HandlerError::from("text");
        assert_eq!((other.nested_kind(), other.code()), (None, None));
    }

    #[test]
    fn codes_about_the_nested_request_are_not_passed_on() {
        for code in ["expired", "bad_request", "panic", "busy", "unknown_action"] {
            assert_eq!(remote(code).code(), None, "{code}");
        }
    }
}
