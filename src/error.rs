//! The error type, its kinds, and what each says about retrying.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::error_kind::Refusal;
pub(crate) use crate::error_kind::{ErrorKind, Phase};
use crate::verdict::{Ran, Verdict};

/// The result of every operation of this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of every operation of this crate.
///
/// [`kind`](Error::kind) classifies the failure, and
/// [`is_safe_to_retry`](Error::is_safe_to_retry) says whether the request can have run. The
/// text names the service, action, queue or host concerned; it never contains a password or a
/// payload. The underlying cause, if there is one, is [`source`](StdError::source).
///
/// ```
/// use coney::{Broker, ErrorKind, ServiceClient};
///
/// let client = ServiceClient::new(&Broker::memory(), "order-service")?;
/// let error = client.call::<String>("user-service", "get_user", &1).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::NoRoute);
/// assert!(error.is_safe_to_retry());
/// # Ok::<(), coney::Error>(())
/// ```
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    phase: Option<Phase>,
    code: Option<String>,
    text: Option<String>,
    retry_after: Option<Duration>,
    /// True if certainly nothing ran, where the verdict alone does not decide it.
    nothing_ran: Option<bool>,
    refused_by: Option<Refusal>,
    attempts: u32,
}

impl Error {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns true if the request certainly did not run: sending it again cannot make it run
    /// twice.
    ///
    /// This does not mean that another attempt will succeed: a request that cannot be encoded
    /// fails the same way again. Bound a retry loop by attempts or by time, and check the
    /// remaining time before each attempt: an attempt that begins with no time
    /// left ends as [`TimedOut`](ErrorKind::TimedOut), which hides the error of the attempt
    /// before.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use coney::{Broker, ErrorKind, ServiceClient};
    ///
    /// let client = ServiceClient::new(&Broker::memory(), "shop")?;
    /// let end = Instant::now() + Duration::from_millis(100);
    /// let pause = Duration::from_millis(20);
    /// let result = loop {
    ///     match client.call::<u64>("stock", "count", &7) {
    ///         Err(error) if error.is_safe_to_retry() && Instant::now() + pause < end => {
    ///             std::thread::sleep(error.retry_after().unwrap_or(pause));
    ///         }
    ///         result => break result,
    ///     }
    /// };
    /// assert_eq!(result.unwrap_err().kind(), ErrorKind::NoRoute); // not TimedOut
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn is_safe_to_retry(&self) -> bool {
        let nothing_ran = self.0.nothing_ran;
        nothing_ran.unwrap_or_else(|| self.verdict().ran() == Ran::No)
    }

    /// Returns true if the caller got no answer because the service could not give one in time: it
    /// is gone, slow, overloaded or failing, or a policy of this client has refused the call.
    /// False if the service answered, if only with its handler's own error, if a layer refused the
    /// call, or if the request itself is at fault. A [fallback](crate::client::ServiceClientBuilder::fallback) stands in for
    /// errors of which this is true.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient};
    /// let client = ServiceClient::new(&Broker::memory(), "shop")?;
    /// let stock = match client.call::<u64>("stock", "count", &7) {
    ///     Err(error) if error.is_unavailable() => None, // show the article without its stock
    ///     result => Some(result?),
    /// };
    /// assert_eq!(stock, None);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn is_unavailable(&self) -> bool {
        match self.verdict() {
            Verdict::Busy
            | Verdict::Expired
            | Verdict::Failed
            | Verdict::TimedOut
            | Verdict::Lost
            | Verdict::NotSent
            | Verdict::NoRoute
            | Verdict::NoInstance => true,
            Verdict::Local => {
                self.0.kind == ErrorKind::Rejected && self.0.refused_by != Some(Refusal::Layer)
            }
            Verdict::Closed => self.0.kind != ErrorKind::Misuse,
            Verdict::Ok | Verdict::Business | Verdict::Invalid => false,
        }
    }

    /// Returns the time to wait before another attempt, if the service gave one with
    /// [`ErrorKind::Busy`], or a policy of this client with [`ErrorKind::Rejected`].
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Returns the limit or policy of this client that refused the call, for
    /// [`ErrorKind::Rejected`].
    pub fn refused_by(&self) -> Option<Refusal> {
        self.0.refused_by
    }

    /// Returns the number of attempts that were begun at a call: 1 without a
    /// [retry](crate::resilience::Retry), and 0 if none was, as the first was refused by a policy or a
    /// layer, or the error is of something else than a call.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Returns the classification of the error.
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::of(self.0.kind, self.0.phase, self.0.code.as_deref())
    }

    /// Returns the operation that ran out of time, for [`ErrorKind::TimedOut`].
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// Returns the error text of the service's reply, for [`ErrorKind::Remote`] and
    /// [`ErrorKind::UnknownAction`].
    pub fn remote_message(&self) -> Option<&str> {
        match self.0.kind {
            ErrorKind::Remote | ErrorKind::UnknownAction => self.0.text.as_deref(),
            _ => None,
        }
    }

    /// Returns the error code of the service's reply, if it has one. Peers in other languages
    /// send none.
    ///
    /// A handler's own code comes from
    /// [`HandlerError::with_code`](crate::HandlerError::with_code). coney's codes are:
    ///
    /// | code | meaning |
    /// | --- | --- |
    /// | `bad_request` | the payload does not decode into the handler's type |
    /// | `bad_envelope` | the envelope cannot be read |
    /// | `bad_reply` | the handler's result cannot be encoded as JSON |
    /// | `reply_too_large` | the reply is larger than the server may send |
    /// | `panic` | the handler panicked |
    /// | `expired` | the deadline had passed before the handler began |
    /// | `unknown_action` | the service has no such action |
    /// | `poison` | the workers of the request died repeatedly |
    /// | `busy`, `rate_limited` | refused before the handler began |
    /// | `busy_downstream` | a call that the handler made was refused as busy |
    /// | `too_large` | the request is larger than the server takes |
    /// | `deduplication_failed` | the request was handled before, and its reply cannot be read |
    /// | `in_progress` | in a batch: the same request was being handled for too long |
    pub fn remote_code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Returns the text that could not be decoded, for [`ErrorKind::Decode`].
    pub fn raw_text(&self) -> Option<&str> {
        match self.0.kind {
            ErrorKind::Decode => self.0.text.as_deref(),
            _ => None,
        }
    }

    /// Creates the error of a store of one's own, of the kind [`ErrorKind::Registry`]: for
    /// implementations of [`RegistryStore`](crate::registry::RegistryStore).
    ///
    /// ```
    /// use std::error::Error as _;
    /// use coney::{Error, ErrorKind};
    ///
    /// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    /// let error = Error::registry("cannot read the instances from etcd at host:2379", refused);
    /// assert_eq!(error.kind(), ErrorKind::Registry);
    /// assert!(error.source().is_some());
    /// ```
    pub fn registry(
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::Registry, message).with_source(source)
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Repr {
            kind,
            message: message.into(),
            source: None,
            phase: None,
            code: None,
            text: None,
            retry_after: None,
            nothing_ran: None,
            refused_by: None,
            attempts: 0,
        }))
    }

    pub(crate) fn timed_out(phase: Phase, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::TimedOut, message);
        error.0.phase = Some(phase);
        error
    }

    /// Adds the operation that failed to the front of the text.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Self {
        let message = format!("{what}: {self}");
        let mut error = Self::new(self.kind(), message);
        error.0.phase = self.phase();
        error.0.nothing_ran = self.0.nothing_ran;
        error.0.retry_after = self.0.retry_after;
        error.0.refused_by = self.0.refused_by;
        error.with_source(self)
    }

    /// Returns a copy without the cause, for another caller that the error concerns.
    pub(crate) fn duplicate(&self) -> Self {
        let Repr {
            kind,
            message,
            source: _,
            phase,
            code,
            text,
            retry_after,
            nothing_ran,
            refused_by,
            attempts,
        } = &*self.0;
        Self(Box::new(Repr {
            kind: *kind,
            message: message.clone(),
            source: None,
            phase: *phase,
            code: code.clone(),
            text: text.clone(),
            retry_after: *retry_after,
            nothing_ran: *nothing_ran,
            refused_by: *refused_by,
            attempts: *attempts,
        }))
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_text(mut self, text: impl Into<String>) -> Self {
        self.0.text = Some(text.into());
        self
    }

    /// Creates the error of a call that a limit or policy of this client refused.
    pub(crate) fn refused(by: Refusal, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::Rejected, message);
        error.0.refused_by = Some(by);
        error
    }

    /// Creates the error of a call that a layer of the client refused.
    pub(crate) fn refused_by_layer(reason: &dyn fmt::Display) -> Self {
        let fault = format!("the call was refused by a layer of this client: {reason}");
        Self::refused(Refusal::Layer, fault)
    }

    /// Sets the number of attempts that were made.
    pub(crate) fn with_attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// Sets whether certainly nothing ran, where the verdict alone does not decide it.
    pub(crate) fn with_nothing_ran(mut self, nothing_ran: bool) -> Self {
        self.0.nothing_ran = Some(nothing_ran);
        self
    }

    pub(crate) fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.0.retry_after = after;
        self
    }

    pub(crate) fn with_code(mut self, code: Option<String>) -> Self {
        self.0.code = code;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind)
            .field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_word() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn safe_to_retry_follows_kind_and_phase() {
        let safe = |error: Error| error.is_safe_to_retry();
        assert!(safe(Error::new(ErrorKind::NoRoute, "")));
        assert!(safe(Error::timed_out(Phase::Send, "")));
        assert!(!safe(Error::timed_out(Phase::Reply, "")));
        assert!(!safe(Error::new(ErrorKind::ConnectionLost, "")));
    }

    #[test]
    fn debug_does_not_print_the_raw_text() {
        let error = Error::new(ErrorKind::Decode, "cannot decode").with_text("secret");
        assert!(!format!("{error:?}").contains("secret"));
        assert_eq!(error.raw_text(), Some("secret"));
    }
}
