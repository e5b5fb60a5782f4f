use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ServiceClient;
use super::batch::BatchLimits;
use super::core::ClientCore;
use super::discovery::Discovery;
use super::router::Router;
use crate::base::name::check_service;
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{Balancer, Registry};
use crate::topology;
use crate::transport::{Broker, LinkSpec, Sink};

/// Options for a [`ServiceClient`]; made by [`ServiceClient::builder`].
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, ServiceClient};
///
/// let client = ServiceClient::builder(&Broker::memory(), "order-service")
///     .timeout(Duration::from_secs(2))
///     .max_in_flight(1_000)
///     .build()?;
/// # let _ = client;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct ServiceClientBuilder {
    broker: Broker,
    name: String,
    timeout: Duration,
    max_in_flight: usize,
    registry: Option<Registry>,
    require_instance: bool,
    balancer: Option<Box<dyn Balancer>>,
    coalesce: Option<BatchLimits>,
}

impl ServiceClient {
    /// A client with the default options. `name` is the service that calls, as
    /// others see it in `source_service`.
    ///
    /// Blocks until the broker has made its reply queue, at most 10 s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a name that does not fit,
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut),
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) or
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) if
    /// the broker does not oblige.
    pub fn new(broker: &Broker, name: &str) -> Result<Self> {
        Self::builder(broker, name).build()
    }

    /// Options for a client.
    pub fn builder(broker: &Broker, name: &str) -> ServiceClientBuilder {
        ServiceClientBuilder::new(broker, name)
    }
}

impl ServiceClientBuilder {
    pub(super) fn new(broker: &Broker, name: &str) -> Self {
        Self {
            broker: broker.clone(),
            name: name.to_owned(),
            timeout: Duration::from_secs(5),
            max_in_flight: 65_536,
            registry: None,
            require_instance: true,
            balancer: None,
            coalesce: None,
        }
    }

    /// How long a call or a command may take where its options do not say.
    /// Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many calls may wait for replies at a time; one more is refused with
    /// [`ErrorKind::Rejected`] before anything is sent. A message of a
    /// [`Batch`](crate::Batch) counts as one. Default: 65,536, at
    /// under 2 KiB each; with a balancer, or if it is [coalesced](ServiceClientBuilder::coalesce)
    /// or idempotent, and the request once more.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// Where to look services up. A call to a service that has no live and healthy instance then
    /// fails at once, with [`ErrorKind::NoInstance`], instead of waiting for one until
    /// its deadline. While the registry cannot be asked, calls are sent as without it.
    /// Commands are sent whoever is there. Default: none.
    ///
    /// The first call to a service blocks until the registry has answered, at most its
    /// look-up timeout and a quarter of the call's own; so does one to a service that had
    /// nobody a second ago.
    ///
    /// ```
    /// # use coney::{Broker, ErrorKind, Registry, ServiceClient};
    /// let client = ServiceClient::builder(&Broker::memory(), "order-service")
    ///     .registry(&Registry::memory())
    ///     .build()?;
    /// let error = client.call::<_, ()>("user-service", "get_user", &7).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::NoInstance);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Whether a call to a service without a live and healthy instance fails at once.
    /// Default: true, with a [`registry`](ServiceClientBuilder::registry).
    pub fn require_instance(mut self, required: bool) -> Self {
        self.require_instance = required;
        self
    }

    /// Which instance gets a call, of those in the
    /// [`registry`](ServiceClientBuilder::registry). One that has gone meanwhile is passed over, and
    /// the call goes to whoever is free; so does a call to a service whose instances
    /// cannot be addressed. Default: none, every call goes to whoever is free, which
    /// balances by itself, as an instance takes no more than it can hold.
    pub fn balancer(mut self, balancer: impl Balancer + 'static) -> Self {
        self.balancer = Some(Box::new(balancer));
        self
    }

    /// Lets calls to one service that wait to be sent at the same moment share a message,
    /// up to these limits. Nothing waits for company: a call alone leaves alone and at once,
    /// and the more threads call, the more of their calls leave together. Each keeps its
    /// own deadline, reply and error, and is answered as soon as it has been handled.
    ///
    /// For clients that many threads call through at a time: with hundreds, over RabbitMQ,
    /// it multiplies the rate. A service that does not know batches is called as without;
    /// to a server of coney's that is older than they are, each attempt leaves a dead letter, one
    /// a minute. In the memory broker nothing waits to be sent, and every call leaves alone.
    ///
    /// What shares a message shares its fate: a server that dies over one of its calls has
    /// the next run all of them again, answered or not. And the limit in bytes must not be over
    /// what the servers' [`max_body`](crate::BrokerBuilder::max_body) allows. Default: one
    /// message a call.
    ///
    /// ```
    /// # use coney::{BatchLimits, Broker, ServiceClient};
    /// let client = ServiceClient::builder(&Broker::memory(), "gateway")
    ///     .coalesce(BatchLimits::new())
    ///     .build()?;
    /// # let _ = client;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn coalesce(mut self, limits: BatchLimits) -> Self {
        self.coalesce = Some(limits);
        self
    }

    /// Makes the client. Blocks until the broker has made its reply queue, at
    /// most 10 s.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::new`].
    pub fn build(self) -> Result<ServiceClient> {
        self.build_until(None)
    }

    /// The same, at most until then.
    pub(crate) fn build_until(self, deadline: Option<Instant>) -> Result<ServiceClient> {
        check_service(&self.name)?;
        if self.max_in_flight == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "a client that may have no call in flight can make none",
            ));
        }
        let discovery = match (self.registry, self.balancer) {
            (Some(registry), balancer) => Some(Discovery {
                registry,
                require_instance: self.require_instance,
                balancer,
            }),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!("the client of {} has a balancer and no registry", self.name),
                ));
            }
        };
        let router = Arc::new(Router::new(self.max_in_flight));
        let sink = Arc::clone(&router) as Arc<dyn Sink>;
        let spec = LinkSpec::new(topology::for_requests()).reply_queue();
        let handle = self.broker.open_until(spec, sink, deadline)?;
        let max_body = self.broker.max_body();
        let coalesce = self
            .coalesce
            .map(|limits| limits.within(max_body).coalesce());
        Ok(ServiceClient {
            until: None,
            inner: Arc::new(ClientCore {
                name: self.name,
                timeout: self.timeout,
                broker: self.broker,
                handle,
                router,
                discovery,
                coalesce,
                callbacks: Mutex::new(None),
            }),
        })
    }
}

impl fmt::Debug for ServiceClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceClientBuilder")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}
