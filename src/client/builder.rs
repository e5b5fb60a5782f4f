//! The options of a client.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ServiceClient;
use super::backlog_gate::BacklogGates;
use super::batch::BatchLimits;
use super::bound_services::BoundServices;
use super::core::ClientCore;
use super::discovery::Discovery;
use super::extensions::Extensions;
use super::lone_spin::LoneSpin;
use super::router::Router;
use crate::base::name::check_service;
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{Balancer, Registry};
use crate::topology;
use crate::transport::{Broker, LinkSpec, Sink};

/// The options of a [`ServiceClient`]. Made by [`ServiceClient::builder`].
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
#[must_use = "a client is made by build"]
pub struct ServiceClientBuilder {
    broker: Broker,
    name: String,
    timeout: Duration,
    max_in_flight: usize,
    registry: Option<Registry>,
    require_instance: bool,
    balancer: Option<Box<dyn Balancer>>,
    coalesce: Option<BatchLimits>,
    spin: bool,
    pub(super) backlogs: BacklogGates,
    pub(super) extensions: Extensions,
}

impl ServiceClient {
    /// Creates a client with the default options. `name` is the calling service, which handlers
    /// read by [`Context::source_service`](crate::Context::source_service).
    ///
    /// Blocks until the broker has created its reply queue, at most 10 s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for an invalid name;
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if the broker does not answer in time,
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) if it refuses, and
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) after it was closed.
    pub fn new(broker: &Broker, name: &str) -> Result<Self> {
        Self::builder(broker, name).build()
    }

    /// Returns the options of a client.
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
            spin: true,
            backlogs: BacklogGates::default(),
            extensions: Extensions::default(),
        }
    }

    /// Sets the longest time of a call or a command whose options have no timeout. Defaults to
    /// 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the largest number of calls that wait for replies at a time; a further call is refused
    /// with [`ErrorKind::Rejected`] before anything is sent. A message of a
    /// [`Batch`](crate::Batch) counts as one. Defaults to 65,536, at under 2 KiB each, plus the size
    /// of the request if there is a balancer, or if the call is
    /// [coalesced](ServiceClientBuilder::coalesce) or idempotent.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// Sets the registry in which services are looked up. A call to a service without a live and
    /// healthy instance then fails at once, with [`ErrorKind::NoInstance`], instead of waiting for
    /// one until its deadline. While the registry does not answer, calls are sent as without it.
    /// Commands are always sent. Defaults to none.
    ///
    /// The first call to a service blocks until the registry has answered, at most its
    /// look-up timeout and a quarter of the call's own; so does a call to a service that had
    /// no instance a second ago.
    ///
    /// ```
    /// # use coney::{Broker, ErrorKind, Registry, ServiceClient};
    /// let client = ServiceClient::builder(&Broker::memory(), "order-service")
    ///     .registry(&Registry::memory())
    ///     .build()?;
    /// let error = client.call::<()>("user-service", "get_user", &7).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::NoInstance);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Sets whether a call to a service without a live and healthy instance fails at once.
    /// Defaults to true, with a [`registry`](ServiceClientBuilder::registry).
    pub fn require_instance(mut self, required: bool) -> Self {
        self.require_instance = required;
        self
    }

    /// Sets the balancer, which picks the instance of each call from the
    /// [`registry`](ServiceClientBuilder::registry). If that instance's queue does not exist, the
    /// call goes to the queue that all instances share; so do calls to a service whose instances
    /// have no queues of their own. Defaults to none: every call goes to the shared queue, which
    /// balances by itself, because an instance fetches no more than its prefetch.
    pub fn balancer(mut self, balancer: impl Balancer + 'static) -> Self {
        self.balancer = Some(Box::new(balancer));
        self
    }

    /// Lets calls to one service share a message if they wait to be sent at the same moment, up to
    /// these limits. There is no delay: a call alone is sent alone and at once,
    /// and the more threads call, the more of their calls share a message. Each call keeps its
    /// own deadline, reply and error, and is answered as soon as it has been handled.
    ///
    /// Meant for clients that many threads call through at a time: with hundreds, over RabbitMQ,
    /// it multiplies the rate. A service that does not know batches is called without;
    /// a coney server older than batches gets one dead letter a minute by the attempt. In the
    /// memory broker nothing waits to be sent, and every call is sent alone.
    ///
    /// If a server dies while it handles one call of a message, the next server runs all of them
    /// again, answered or not. The limit in bytes must not exceed the servers'
    /// [`max_body`](crate::BrokerBuilder::max_body). Defaults to one message a call.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, batch::BatchLimits};
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

    /// Sets whether a blocking call over RabbitMQ that is the only call of its client in flight spins
    /// for its reply before it sleeps, for at most 500 µs, and yields the processor between looks.
    /// Defaults to true.
    ///
    /// Waking a thread on an idle processor takes as long as the rest of a call. On an otherwise idle
    /// machine with 2 processors and RabbitMQ on it, spinning shortens the p50 of a lone caller from
    /// 330 to 200 µs. This process then takes twice the processor time a call, and the broker two
    /// thirds of its own, in all about the same; beside other work the gain is smaller, and the cost
    /// remains. It stops by itself where it is in vain, with slow handlers and on a busy machine:
    /// after three spins without a reply 8 calls sleep at once, then 16 and so on up to 1,024, until a
    /// reply comes in time. At most half of the processors are used for it by a process, and at least
    /// one. It never delays a timeout. To be switched off where the processor time of this process
    /// is what counts, or the power that idle processors save.
    ///
    /// Batches, asynchronous calls and clients that [coalesce](ServiceClientBuilder::coalesce) do not
    /// spin. In the memory broker this changes nothing: a call takes microseconds there, and always
    /// spins for some.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient};
    /// let client = ServiceClient::builder(&Broker::memory(), "nightly-report")
    ///     .spin(false)
    ///     .build()?;
    /// # let _ = client;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Creates the client. Blocks until the broker has created its reply queue, at
    /// most 10 s.
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::new`] does.
    pub fn build(self) -> Result<ServiceClient> {
        self.build_until(None)
    }

    /// Creates the client; blocks at most until `deadline`.
    pub(crate) fn build_until(self, deadline: Option<Instant>) -> Result<ServiceClient> {
        check_service(&self.name)?;
        if self.max_in_flight == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "max_in_flight must be at least 1",
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
        self.backlogs.check()?;
        self.extensions.open(&self.broker, &self.name, deadline)?;
        let extensions = (!self.extensions.is_empty()).then(|| Box::new(self.extensions));
        let router = Arc::new(Router::new(self.max_in_flight));
        let sink = Arc::clone(&router) as Arc<dyn Sink>;
        let spec = LinkSpec::new(topology::for_requests())
            .reply_queue()
            .coalesces(self.coalesce.is_some());
        let handle = self.broker.open_until(spec, sink, deadline)?;
        let max_body = self.broker.max_body();
        let coalesce = self
            .coalesce
            .map(|limits| limits.within(max_body).coalesce());
        let may_spin = self.spin && coalesce.is_none() && self.broker.spin_for().is_zero();
        Ok(ServiceClient::of(Arc::new(ClientCore {
            name: self.name,
            timeout: self.timeout,
            broker: self.broker,
            handle,
            router,
            discovery,
            coalesce,
            lone_spin: may_spin.then(LoneSpin::default),
            backlogs: self.backlogs,
            extensions,
            callbacks: Arc::default(),
            delayed: BoundServices::default(),
        })))
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
