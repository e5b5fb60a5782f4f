//! The handle that programs call services through.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call_outcome::CallOutcome;
use super::core::ClientCore;
use super::decode::CallTarget;
use super::options::RequestKind;
use super::{CallOptions, PassedOn, PendingReply};
use crate::error::Result;

/// A client of other services.
///
/// Cheap to clone and free to share between threads: all clones use one reply
/// queue on the broker's one connection, however many threads call. A call
/// blocks the calling thread only. Dropping the last clone closes the client.
///
/// ```
/// use coney::{Broker, ServiceClient, ServiceServer};
///
/// let broker = Broker::memory();
/// let server = ServiceServer::builder(&broker, "math")
///     .respond("double", |n: u64| n * 2)
///     .start()?;
/// let client = ServiceClient::new(&broker, "order-service")?;
/// let answer: u64 = client.call("math", "double", &21)?;
/// assert_eq!(answer, 42);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct ServiceClient {
    pub(super) inner: Arc<ClientCore>,
    /// The deadline of everything that this handle sends, if it has one.
    pub(super) until: Option<Instant>,
    /// The headers that this handle adds to everything that it sends.
    pub(super) passed_on: Option<Arc<PassedOn>>,
}

impl ServiceClient {
    /// Calls `action` of `service` and blocks until the reply arrives, at most
    /// the client's timeout, 5 s by default. The type of the reply is inferred, or named:
    /// `let n: u64 = client.call(…)?` or `client.call::<u64>(…)?`.
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`](crate::ErrorKind); the kind says whether the request can have run.
    ///
    /// ```
    /// # use coney::{Broker, ErrorKind, ServiceClient};
    /// # let client = ServiceClient::new(&Broker::memory(), "order-service")?;
    /// let error = client.call::<u64>("stock", "count", "apple").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::NoRoute);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<Resp> {
        self.call_with(service, action, request, &CallOptions::new())
    }

    /// Calls with options: timeout, headers, persistence, one instance.
    ///
    /// # Errors
    ///
    /// Fails as [`call`](ServiceClient::call) does.
    ///
    /// ```
    /// # use coney::{Broker, CallOptions, ErrorKind, Phase, ServiceClient, ServiceServer};
    /// # use std::time::Duration;
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "slow")
    /// #     .respond("nap", |()| std::thread::sleep(Duration::from_millis(200)))
    /// #     .start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// let options = CallOptions::new()
    ///     .timeout(Duration::from_millis(50))
    ///     .header("trace-id", "4bf92f35");
    /// let error = client.call_with::<()>("slow", "nap", &(), &options).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::TimedOut);
    /// assert_eq!(error.phase(), Some(Phase::Reply));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call_with<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<Resp> {
        let target = CallTarget { service, action };
        let sent = self.start_call(target, request, &options.request, RequestKind::Call)?;
        let outcome = self.inner.outcome(&sent);
        let is_unreported = matches!(outcome, Some(CallOutcome::Unreported));
        let result = match outcome {
            Some(outcome) => self.inner.result(target, outcome),
            None => Err(self.inner.timed_out(target, &sent)),
        };
        if !is_unreported {
            sent.slot.put_back();
        }
        result
    }

    /// Sends the request and returns a handle, not a future: wait for the reply through
    /// the [`PendingReply`], or give it to a callback by [`PendingReply::then`].
    ///
    /// Blocks only while the outgoing queue is full, at most the timeout, which runs from now.
    ///
    /// # Errors
    ///
    /// Fails if the request cannot be sent: encoding, names, the limit on calls in flight, the
    /// timeout, a closed client.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "math")
    /// #     .respond("double", |n: u64| n * 2).start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// let first = client.call_async::<u64>("math", "double", &1)?;
    /// let second = client.call_async::<u64>("math", "double", &2)?;
    /// assert_eq!(first.wait()? + second.wait()?, 6);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call_async<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<PendingReply<Resp>> {
        self.call_async_with(service, action, request, &CallOptions::new())
    }

    /// Sends the request with options and returns a handle, as
    /// [`call_async`](ServiceClient::call_async).
    ///
    /// # Errors
    ///
    /// Fails as [`call_async`](ServiceClient::call_async) does.
    pub fn call_async_with<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<PendingReply<Resp>> {
        let target = CallTarget { service, action };
        let sent = self.start_call(target, request, &options.request, RequestKind::AsyncCall)?;
        Ok(PendingReply::new(
            Arc::clone(&self.inner),
            sent,
            service,
            action,
        ))
    }

    /// Returns a handle on the same client all of whose calls and commands end by
    /// `deadline`, however long their own timeouts are.
    ///
    /// ```
    /// # use coney::{Broker, ErrorKind, ServiceClient};
    /// # use std::time::{Duration, Instant};
    /// # let client = ServiceClient::new(&Broker::memory(), "order-service")?;
    /// let hurried = client.with_deadline(Instant::now() + Duration::from_millis(100));
    /// # std::thread::sleep(Duration::from_millis(110));
    /// # let error = hurried.call::<()>("s", "a", &()).unwrap_err();
    /// # assert_eq!(error.kind(), ErrorKind::TimedOut);
    /// # Ok::<(), coney::Error>(())
    /// ```
    #[must_use = "this client itself is unchanged"]
    pub fn with_deadline(&self, deadline: Instant) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            until: Some(self.until.map_or(deadline, |until| until.min(deadline))),
            passed_on: self.passed_on.clone(),
        }
    }

    /// Returns a handle on the same client that adds these headers to all of its calls and
    /// commands, unless those set them themselves.
    pub(crate) fn passing_on(self, headers: PassedOn) -> Self {
        Self {
            passed_on: Some(Arc::new(headers)),
            ..self
        }
    }

    /// Returns the number of calls that wait for their replies, or for their callbacks
    /// to run.
    pub fn in_flight(&self) -> usize {
        self.inner.router.in_flight()
    }

    /// Returns the number of replies that no call waited for: late ones, those of dropped
    /// [`PendingReply`]s, and unsolicited ones.
    pub fn unclaimed_replies(&self) -> u64 {
        self.inner.router.unclaimed()
    }

    /// Closes the client, for all of its clones: calls in flight, and all later ones, fail with
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed), those not sent yet with
    /// [`ErrorKind::NotSent`](crate::ErrorKind::NotSent). Does not block. The broker stays open.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl fmt::Debug for ServiceClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceClient")
            .field("name", &self.inner.name)
            .field("broker", &self.inner.broker)
            .finish_non_exhaustive()
    }
}
