//! The handle that programs call services through.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call_outcome::CallOutcome;
use super::core::ClientCore;
use super::decode::CallTarget;
use super::options::Kind;
use super::{CallOptions, PendingReply};
use crate::error::Result;

/// Calls services and waits for their answers.
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
///     .handler("double", |n: u64| Ok::<_, String>(n * 2))
///     .start()?;
/// let client = ServiceClient::new(&broker, "order-service")?;
/// let answer: u64 = client.call("math", "double", &21)?;
/// assert_eq!(answer, 42);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct ServiceClient {
    pub(super) inner: Arc<ClientCore>,
    /// When everything this handle sends must be done.
    pub(super) until: Option<Instant>,
}

impl ServiceClient {
    /// Calls `action` of `service` and blocks until the reply is here, at most
    /// the client's timeout, by default 5 s. The type of the reply must be known:
    /// `let n: u64 = client.call(…)?`, or `client.call::<_, ()>(…)?`.
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`](crate::ErrorKind); the kind says whether the request can have run.
    pub fn call<Req, Resp>(&self, service: &str, action: &str, request: &Req) -> Result<Resp>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        self.call_with(service, action, request, &CallOptions::new())
    }

    /// Calls with options: timeout, headers, persistence.
    ///
    /// # Errors
    ///
    /// As [`call`](ServiceClient::call).
    ///
    /// ```
    /// # use coney::{Broker, CallOptions, ErrorKind, Phase, ServiceClient, ServiceServer};
    /// # use std::time::Duration;
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "slow")
    /// #     .handler("nap", |()| { std::thread::sleep(Duration::from_millis(200)); Ok::<_, String>(()) })
    /// #     .start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// let options = CallOptions::new()
    ///     .timeout(Duration::from_millis(50))
    ///     .header("trace-id", "4bf92f35");
    /// let error = client.call_with::<_, ()>("slow", "nap", &(), &options).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::TimedOut);
    /// assert_eq!(error.phase(), Some(Phase::Reply));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call_with<Req, Resp>(
        &self,
        service: &str,
        action: &str,
        request: &Req,
        options: &CallOptions,
    ) -> Result<Resp>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        let target = CallTarget { service, action };
        let sent = self.start_call(target, request, options, Kind::Call)?;
        let outcome = self.inner.outcome(&sent);
        let is_untold = matches!(outcome, Some(CallOutcome::Untold));
        let result = match outcome {
            Some(outcome) => self.inner.result(target, outcome),
            None => Err(self.inner.timed_out(target, &sent)),
        };
        if !is_untold {
            sent.slot.put_back();
        }
        result
    }

    /// Sends the request and returns at once; the reply is waited for through
    /// the [`PendingReply`], or given to a callback by [`PendingReply::then`].
    ///
    /// Blocks only while too many requests wait to be sent, at most the
    /// timeout, which runs from now.
    ///
    /// # Errors
    ///
    /// What can go wrong before the request is under way: encoding, names,
    /// the limit on calls in flight, the timeout, a closed client.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "math")
    /// #     .handler("double", |n: u64| Ok::<_, String>(n * 2)).start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// let first = client.call_async::<_, u64>("math", "double", &1)?;
    /// let second = client.call_async::<_, u64>("math", "double", &2)?;
    /// assert_eq!(first.wait()? + second.wait()?, 6);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call_async<Req, Resp>(
        &self,
        service: &str,
        action: &str,
        request: &Req,
    ) -> Result<PendingReply<Resp>>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        self.call_async_with(service, action, request, &CallOptions::new())
    }

    /// [`call_async`](ServiceClient::call_async) with options.
    ///
    /// # Errors
    ///
    /// As [`call_async`](ServiceClient::call_async).
    pub fn call_async_with<Req, Resp>(
        &self,
        service: &str,
        action: &str,
        request: &Req,
        options: &CallOptions,
    ) -> Result<PendingReply<Resp>>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
        let target = CallTarget { service, action };
        let sent = self.start_call(target, request, options, Kind::AsyncCall)?;
        Ok(PendingReply::new(
            Arc::clone(&self.inner),
            sent,
            service,
            action,
        ))
    }

    /// A handle on the same client all of whose calls and commands end by
    /// `deadline`, however long their own timeouts are.
    ///
    /// ```
    /// # use coney::{Broker, ErrorKind, ServiceClient};
    /// # use std::time::{Duration, Instant};
    /// # let client = ServiceClient::new(&Broker::memory(), "order-service")?;
    /// let hurried = client.with_deadline(Instant::now() + Duration::from_millis(100));
    /// # std::thread::sleep(Duration::from_millis(110));
    /// # let error = hurried.call::<_, ()>("s", "a", &()).unwrap_err();
    /// # assert_eq!(error.kind(), ErrorKind::TimedOut);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn with_deadline(&self, deadline: Instant) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            until: Some(self.until.map_or(deadline, |until| until.min(deadline))),
        }
    }

    /// How many calls are waiting for their replies, or for their callbacks
    /// to run.
    pub fn in_flight(&self) -> usize {
        self.inner.router.in_flight()
    }

    /// How many replies arrived that nobody waited for: too late, or forgotten
    /// by dropping their [`PendingReply`], or never asked for.
    pub fn unclaimed_replies(&self) -> u64 {
        self.inner.router.unclaimed()
    }

    /// Closes the client: calls in flight, and all later ones, fail with
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
