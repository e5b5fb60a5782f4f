use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, told so that the caller knows what it may do next.
///
/// [`kind`](Error::kind) says which sort of failure it is and
/// [`is_safe_to_retry`](Error::is_safe_to_retry) whether the other side can
/// have seen the request. The text names the service, action, queue or host
/// concerned; it never contains a password or a payload. The cause below, if
/// there is one, is [`source`](StdError::source).
///
/// ```
/// use coney::{Broker, ErrorKind, ServiceClient};
///
/// let client = ServiceClient::new(&Broker::memory(), "order-service")?;
/// let error = client.call::<_, String>("nobody", "get_user", &1).unwrap_err();
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
    /// Nothing ran, or something may have, where the kind alone does not say.
    nothing_ran: Option<bool>,
}

/// The sorts of failure, by what the caller may do about them.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nobody has ever listened for that service: its queue does not exist.
    /// (Once a server has run, its queue stays; calls then wait for the next
    /// server and time out.) Or the call was [addressed](crate::CallOptions::instance) to
    /// an instance that is not there, or takes no requests now. Nothing ran; retrying is
    /// safe.
    NoRoute,
    /// The registry knows no live and healthy instance of that service. Nothing was
    /// sent; retrying is safe.
    NoInstance,
    /// The connection was closed, or given up, before the request was sent.
    /// Nothing ran; retrying, over another connection, is safe.
    NotSent,
    /// The deadline passed. [`Error::phase`] says what was being waited for
    /// and so whether the request can have run.
    TimedOut,
    /// The connection was lost after the request was sent: whether it ran, or the
    /// broker has it, is unknown. Retry only what may run twice.
    ConnectionLost,
    /// The service answered with an error, as a rule its handler's: see
    /// [`Error::remote_message`] and [`Error::remote_code`].
    Remote,
    /// The service is there but has no handler for that action.
    UnknownAction,
    /// A local policy refused the call before anything was sent: too many are
    /// in flight.
    Rejected,
    /// The service is there and refused before it began: it has too much to do, or
    /// something it needs is away. Nothing ran; retry after
    /// [`Error::retry_after`].
    Busy,
    /// The payload could not be encoded. Nothing was sent.
    Encode,
    /// A message is larger than the sender, the broker or the receiver takes. Of a
    /// request, nothing ran; of a reply, the handler has run, and
    /// [`Error::is_safe_to_retry`] is false.
    PayloadTooLarge,
    /// The reply could not be decoded into the type asked for:
    /// [`Error::raw_text`] has it as it came. (A request that the service could
    /// not decode is [`ErrorKind::Remote`] with the code `bad_request`.)
    Decode,
    /// A name, URL or option is not valid; nothing was tried.
    InvalidConfig,
    /// No connection could be made: host, port, credentials or virtual host.
    Connect,
    /// The broker refused an operation, for example declaring a queue that
    /// exists with other properties, or taking a command into a queue that is full.
    Broker,
    /// The registry's store did not do what it was asked to: it cannot be reached, or
    /// it refuses.
    Registry,
    /// The broker, client or server has been closed; or what is asked for has been taken
    /// already.
    Closed,
    /// A call from a place where it could only wait for itself, such as the thread of
    /// the AMQP library (through a logger), or a process forked after the connection was
    /// made. Nothing was tried.
    Misuse,
}

/// What was being waited for when a deadline passed.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// For the connection, or for room in the queue of what is to be sent:
    /// the request never left this process.
    Send,
    /// For the reply: the request was sent and may have run.
    Reply,
    /// For the broker to confirm a command: it was sent, and the broker may have
    /// taken it.
    Confirm,
    /// For the broker to carry out an operation such as declaring a queue.
    Broker,
    /// For running handlers to finish during a shutdown.
    Shutdown,
}

impl Error {
    /// Which sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True if the request certainly did not run: sending it again cannot make it run
    /// twice.
    ///
    /// That says nothing about whether it will succeed: a request that cannot be encoded
    /// fails the same way again. Bound a loop by attempts or by time, and look at the
    /// time before each attempt, not at its error: an attempt that begins with no time
    /// left ends as [`TimedOut`](ErrorKind::TimedOut), which hides why the ones before
    /// failed.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use coney::{Broker, ErrorKind, ServiceClient};
    ///
    /// let client = ServiceClient::new(&Broker::memory(), "shop")?;
    /// let end = Instant::now() + Duration::from_millis(100);
    /// let pause = Duration::from_millis(20);
    /// let result = loop {
    ///     match client.call::<_, u64>("stock", "count", &7) {
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
        self.0.nothing_ran.unwrap_or(match self.0.kind {
            ErrorKind::NoRoute
            | ErrorKind::NoInstance
            | ErrorKind::NotSent
            | ErrorKind::Rejected
            | ErrorKind::Busy
            | ErrorKind::Encode
            | ErrorKind::PayloadTooLarge
            | ErrorKind::UnknownAction
            | ErrorKind::InvalidConfig
            | ErrorKind::Misuse => true,
            ErrorKind::TimedOut => self.0.phase == Some(Phase::Send),
            _ => false,
        })
    }

    /// The time to wait before another attempt, where the service has said so:
    /// with [`ErrorKind::Busy`].
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// For [`ErrorKind::TimedOut`]: what was being waited for.
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// For [`ErrorKind::Remote`] and [`ErrorKind::UnknownAction`]: the text
    /// the service answered, as it came.
    pub fn remote_message(&self) -> Option<&str> {
        match self.0.kind {
            ErrorKind::Remote | ErrorKind::UnknownAction => self.0.text.as_deref(),
            _ => None,
        }
    }

    /// For [`ErrorKind::Remote`] and [`ErrorKind::UnknownAction`]: the code
    /// the service answered, if it gave one. Peers in other languages give none.
    ///
    /// Beside the handlers' own there are `bad_request` (the payload does not
    /// decode into what the handler takes), `bad_envelope`, `bad_reply` (what the
    /// handler returned has no JSON), `reply_too_large`, `panic`, `expired` (the
    /// deadline had passed before the handler was started), `unknown_action`, `poison`
    /// (its workers died on it), `busy` (refused before it began), `too_large` (larger
    /// than the server takes), `deduplication_failed` (the request was handled before and
    /// its reply cannot be read) and, in a batch, `in_progress` (the same request is being
    /// handled, and took too long).
    pub fn remote_code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// For [`ErrorKind::Decode`]: the text that could not be decoded.
    pub fn raw_text(&self) -> Option<&str> {
        match self.0.kind {
            ErrorKind::Decode => self.0.text.as_deref(),
            _ => None,
        }
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
        }))
    }

    pub(crate) fn timed_out(phase: Phase, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::TimedOut, message);
        error.0.phase = Some(phase);
        error
    }

    /// The same error with what was being done when it came up.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Self {
        let message = format!("{what}: {self}");
        let mut error = Self::new(self.kind(), message);
        error.0.phase = self.phase();
        error.0.nothing_ran = self.0.nothing_ran;
        error.0.retry_after = self.0.retry_after;
        error.with_source(self)
    }

    /// The same error for somebody else whom it concerns.
    pub(crate) fn same(&self) -> Self {
        let Repr {
            kind,
            message,
            source: _,
            phase,
            code,
            text,
            retry_after,
            nothing_ran,
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

    /// Says for certain whether nothing ran, where the kind alone does not.
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
    fn is_send_sync_and_one_word() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
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
