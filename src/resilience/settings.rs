//! The policies that a client applies to its calls, as one value.

use super::{Breaker, Ejection, RateLimit, Retry, Throttle};
use crate::error::{Error, ErrorKind, Result};

/// The policies of a client for the calls to a service, as one value.
///
/// Given for all services by
/// [`resilience`](crate::client::ServiceClientBuilder::resilience), or for one by
/// [`resilience_for`](crate::client::ServiceClientBuilder::resilience_for). Without it a client sends
/// each call once, and refuses none: a call to a service that no server runs fails at once.
///
/// The policies always work in one order, whatever the order of these methods:
///
/// > deadline ▸ layers ▸ fallback ▸ cache ▸ **retry ▸ rate limit ▸ breaker ▸ throttle ▸ calls in
/// > flight** ▸ layers of the attempt ▸ choice of an instance (**ejection**) ▸ sending
///
/// No policy makes a call outlast its deadline, and a call that times out is an outcome that each of
/// them sees. Every attempt passes all that stands to the right of *retry*. The state of the
/// policies is kept for each service, by each client of its own.
///
/// They apply to blocking and asynchronous calls, and to those of a
/// [proxy](crate::ServiceProxy). [Batches](crate::Batch), [commands](crate::ServiceClient::send) and
/// events pass none: a batch has one message for many calls, and commands and events are kept by
/// the broker until the service is there.
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::{Breaker, RateLimit, Resilience};
/// use coney::{Broker, ServiceClient};
///
/// let client = ServiceClient::builder(&Broker::memory(), "shop")
///     .resilience(Resilience::new())
///     .resilience_for("pay-service", Resilience::none().breaker(Breaker::new()))
///     .resilience_for("mail-service", Resilience::new().rate(RateLimit::per_second(50)))
///     .build()?;
/// # let _ = client;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "policies have no effect until a client gets them"]
pub struct Resilience {
    pub(crate) retry: Option<Retry>,
    pub(crate) rate: Option<RateLimit>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) throttle: Option<Throttle>,
    pub(crate) max_in_flight: Option<usize>,
    pub(crate) ejection: Option<Ejection>,
}

impl Resilience {
    /// Creates the usual policies: [`Retry`], [`Breaker`], [`Throttle`] and, for clients with a
    /// balancer, [`Ejection`], each with its defaults; no rate limit, and no limit of the calls in
    /// flight.
    pub fn new() -> Self {
        Self::none()
            .retry(Retry::new())
            .breaker(Breaker::new())
            .throttle(Throttle::new())
            .ejection(Ejection::new())
    }

    /// Creates a value without policies, to which some are added.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets when calls that failed are sent again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Sets when calls are refused because the service fails.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Sets when calls are refused because the service answers that it is busy.
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// Sets when an instance is not picked because it fails or is slow. It has an effect only with
    /// a [balancer](crate::client::ServiceClientBuilder::balancer): otherwise the broker chooses the
    /// instance.
    pub fn ejection(mut self, ejection: Ejection) -> Self {
        self.ejection = Some(ejection);
        self
    }

    /// Sets the rate of attempts. One that is over it waits for its turn, or is refused at once if
    /// its turn would come after the deadline. Defaults to no limit.
    pub fn rate(mut self, rate: RateLimit) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Sets the largest number of requests that wait for the service's replies at a time; further
    /// ones are refused at once. An asynchronous call that gets no reply has its place until the program
    /// looks at it, or drops it. So one slow service cannot hold all threads of its callers.
    /// Defaults to no limit beside the client's
    /// [own](crate::client::ServiceClientBuilder::max_in_flight).
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = Some(calls);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for settings that cannot work.
    pub(crate) fn check(&self) -> Result<()> {
        if self.max_in_flight == Some(0) {
            let fault = "max_in_flight of a service must be at least 1: 0 admits no call";
            return Err(Error::new(ErrorKind::InvalidConfig, fault));
        }
        self.retry.as_ref().map_or(Ok(()), Retry::check)?;
        let rate = self.rate.as_ref();
        rate.map_or(Ok(()), |rate| rate.check(false))?;
        self.breaker.as_ref().map_or(Ok(()), Breaker::check)?;
        self.throttle.as_ref().map_or(Ok(()), Throttle::check)?;
        self.ejection.as_ref().map_or(Ok(()), Ejection::check)
    }

    /// Returns true if there is no policy.
    pub(crate) fn is_none(&self) -> bool {
        let Self {
            retry: None,
            rate: None,
            breaker: None,
            throttle: None,
            max_in_flight: None,
            ejection: None,
        } = self
        else {
            return false;
        };
        true
    }
}
