//! The handle that programs call services through.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CallOptions;
use super::PassedOn;
use super::core::ClientCore;
use super::decode::CallTarget;
use super::options::RequestOptions;
use super::own_service::OwnServiceCalls;
use crate::error::Result;
use crate::resilience::BreakerHandle;

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
    /// The count of this handle's calls to the service whose handler it belongs to.
    pub(super) own_service: Option<Arc<OwnServiceCalls>>,
}

impl ServiceClient {
    /// Creates a handle without a deadline.
    pub(super) fn of(inner: Arc<ClientCore>) -> Self {
        Self {
            inner,
            until: None,
            passed_on: None,
            own_service: None,
        }
    }

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
        let reply = self.answer(target, request, &options.request)?;
        target.decode_reply(&reply)
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
            own_service: self.own_service.clone(),
        }
    }

    /// Returns a handle on the same client whose calls to the service of a handler are counted.
    pub(crate) fn counting(self, calls: &Arc<OwnServiceCalls>) -> Self {
        Self {
            own_service: Some(Arc::clone(calls)),
            ..self
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

    /// Returns the circuit breaker of a service, if the client has
    /// [policies](crate::client::ServiceClientBuilder::resilience) with one for it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::resilience::{BreakerState, Refusal, Resilience};
    /// use coney::{Broker, ServiceClient};
    ///
    /// let client = ServiceClient::builder(&Broker::memory(), "shop")
    ///     .resilience(Resilience::new())
    ///     .build()?;
    /// let breaker = client.breaker("pay-service").unwrap();
    /// breaker.hold_open(Duration::from_secs(600)); // while the service is migrated
    /// assert_eq!(breaker.state(), BreakerState::HeldOpen);
    /// let error = client.call::<()>("pay-service", "charge", &5).unwrap_err();
    /// assert_eq!(error.refused_by(), Some(Refusal::Breaker));
    /// breaker.close();
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn breaker(&self, service: &str) -> Option<BreakerHandle> {
        if self.inner.broker.is_forked() {
            return None;
        }
        BreakerHandle::new(self.inner.policies(service)?)
    }

    /// Returns the instances of a service that are not picked at this time, because they fail or are
    /// slow, each with the time until it is tried again. There are none without an
    /// [`Ejection`](crate::resilience::Ejection) and a balancer.
    pub fn ejected(&self, service: &str) -> Vec<(String, Duration)> {
        if self.inner.broker.is_forked() {
            return Vec::new();
        }
        let policies = self.inner.policies(service);
        policies.map_or_else(Vec::new, |policies| policies.ejected(Instant::now()))
    }

    /// Returns the headers of a call, those that are passed on before its own.
    pub(super) fn headers(&self, options: &RequestOptions) -> Vec<(String, String)> {
        let passed_on = self
            .passed_on
            .iter()
            .flat_map(|passed_on| passed_on.texts());
        passed_on
            .chain(options.header_pairs().iter().cloned())
            .collect()
    }

    /// Returns the header of that name of a call, its own or one that is passed on, as JSON text.
    pub(super) fn header_json(&self, options: &RequestOptions, name: &str) -> Option<String> {
        if let Some(own) = options.last_header(name) {
            return Some(serde_json::Value::from(own).to_string());
        }
        let mut passed_on = self.passed_on.iter().flat_map(|passed_on| passed_on.iter());
        let found = passed_on.find(|(passed_on, _)| *passed_on == name);
        found.map(|(_, value)| value.get().to_owned())
    }

    /// Returns the number of calls that wait for their replies, or for their callbacks
    /// to run.
    pub fn in_flight(&self) -> usize {
        self.inner.router.in_flight()
    }

    /// Returns the number of replies that no call waited for: late ones, those of dropped
    /// [`PendingReply`](crate::PendingReply)s, and unsolicited ones.
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
