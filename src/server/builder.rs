//! The options of a server.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ServiceServer;
use super::health::Check;
use crate::client::ServiceClient;
use crate::consumer::{
    Context, Handler, HandlerLayer, HandlerReply, HandlerResult, LimitSettings, NextHandler,
    Options, PauseOnFailures, ReplyStore,
};
use crate::error::Error;
use crate::registry::{Instance, Registry};
use crate::transport::Broker;

/// The options and handlers of a [`ServiceServer`]. Made by [`ServiceServer::builder`].
///
/// Handlers run on the server's workers, several at a time, so they must be
/// `Sync`. An error that a handler returns becomes an error reply, and so does a
/// panic; neither disturbs the server. A handler may call other services,
/// its own included, through a [`ServiceClient`], as long as a worker is free to answer. A
/// handler owns its request: take `String`, not `&str`.
///
/// | method | the handler |
/// | --- | --- |
/// | [`respond`](ServiceServerBuilder::respond) | cannot fail: returns the response |
/// | [`respond_with_context`](ServiceServerBuilder::respond_with_context) | cannot fail, and also takes the [`Context`](crate::Context) |
/// | [`handler`](ServiceServerBuilder::handler) | returns a `Result` with any error type that displays |
/// | [`handler_with_context`](ServiceServerBuilder::handler_with_context) | returns a `Result`, and also takes the [`Context`](crate::Context) |
/// | [`handler_raw`](ServiceServerBuilder::handler_raw) | takes and returns JSON text |
#[must_use = "a server does nothing until it is started"]
pub struct ServiceServerBuilder {
    pub(super) broker: Broker,
    pub(super) service: String,
    pub(super) handlers: HashMap<String, Handler>,
    pub(super) options: Options,
    /// The rate limits of actions.
    pub(super) limits: Vec<(String, LimitSettings)>,
    pub(super) quorum: bool,
    /// The actions with bounds.
    pub(super) bounds: Vec<(String, usize)>,
    pub(super) registry: Option<Registry>,
    pub(super) instance: Instance,
    pub(super) checks: Vec<Check>,
    pub(super) health_interval: Duration,
    pub(super) health_failures: u32,
    pub(super) health_successes: u32,
    pub(super) pause_on_failures: Option<PauseOnFailures>,
    pub(super) fault: Option<Error>,
}

impl ServiceServer {
    /// Returns the options of a server of `service`.
    pub fn builder(broker: &Broker, service: &str) -> ServiceServerBuilder {
        ServiceServerBuilder::new(broker, service)
    }
}

impl ServiceServerBuilder {
    pub(super) fn new(broker: &Broker, service: &str) -> Self {
        Self {
            broker: broker.clone(),
            service: service.to_owned(),
            handlers: HashMap::new(),
            options: Options::default(),
            limits: Vec::new(),
            quorum: false,
            bounds: Vec::new(),
            registry: None,
            instance: Instance::new(),
            checks: Vec::new(),
            health_interval: Duration::from_secs(5),
            health_failures: 3,
            health_successes: 2,
            pause_on_failures: None,
            fault: None,
        }
    }

    /// Sets the longest time for which dropping the server waits for running handlers. Defaults
    /// to 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.options.shutdown_timeout = timeout;
        self
    }

    /// Runs a request once: if it was handled in the last `ttl`, it gets the reply of the first
    /// time, and a repeated command is acknowledged. Requests are the same if their message id,
    /// action and source service are. Repeated requests are redelivered ones, those that a
    /// client sent again because they are [idempotent](crate::CallOptions::idempotent), and
    /// those that got the same [`message_id`](crate::CallOptions::message_id). A failed request
    /// may be repeated; only [final](crate::HandlerError::do_not_retry) errors are remembered.
    ///
    /// While the store does not answer, no request is run: calls are answered with
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy), commands wait for the
    /// longest of the retry delays, and no attempt is used up; after [a while](ServiceServerBuilder::reply_store_outage_limit) the server
    /// stops consuming until the store answers again. Defaults to no deduplication.
    pub fn deduplicate(mut self, store: impl ReplyStore + 'static, ttl: Duration) -> Self {
        self.options.deduplication = Some((Arc::new(store), ttl));
        self
    }

    /// Sets the time after which another worker may begin with a request whose worker process
    /// died. While a handler runs, its claim is renewed every third of this. Defaults to 60 s.
    pub fn deduplication_lease(mut self, lease: Duration) -> Self {
        self.options.deduplication_lease = lease;
        self
    }

    /// Sets the longest time for which the reply store may be unavailable before the server
    /// stops consuming. Defaults to 30 s.
    pub fn reply_store_outage_limit(mut self, patience: Duration) -> Self {
        self.options.reply_store_outage_limit = patience;
        self
    }

    /// Sets the broker's `consumer_timeout`: the longest time for which a delivery may be
    /// unacknowledged. A
    /// warning is logged when a handler has run for 80 % of it. Past it the broker closes
    /// the channel (`delivery acknowledgement on channel N timed out`) and redelivers the
    /// message. If it is redelivered to this process, the handler that still runs settles it
    /// when it returns, and it is not run again; another server of the service may
    /// run it meanwhile. Defaults to 30 min, as RabbitMQ's does.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.options.consumer_timeout = timeout;
        self
    }

    /// Sets whether replies go to queues of any name. By default they go only to queues that
    /// the broker has named (`amq.gen-…`) and to RabbitMQ's direct reply-to, because a
    /// sender that may name any queue writes to it with this server's rights. A request that
    /// names another queue is dead-lettered and gets no reply. Replies never go to coney's own
    /// queues. Defaults to false.
    pub fn any_reply_queue(mut self, any: bool) -> Self {
        self.options.any_reply_queue = any;
        self
    }

    /// Makes the service's queue a quorum queue: replicated in a cluster, and
    /// counting redeliveries itself. Every peer that declares the
    /// service's queue must declare it the same way, and a classic queue that exists
    /// must be deleted first. Defaults to classic queues, as the wire contract has them.
    pub fn quorum_queues(mut self) -> Self {
        self.quorum = true;
        self
    }

    /// Sets the client that [`Context::client`] returns. Defaults to one with the
    /// default options on the server's broker, created when it is first needed.
    pub fn client(mut self, client: ServiceClient) -> Self {
        self.options.client = Some(client);
        self
    }

    /// Adds a layer around all handlers: code that runs before a handler and after it, or refuses
    /// the request by an error instead of running it. The first layer added is the outermost.
    /// Defaults to no layers, which cost nothing.
    ///
    /// A layer sees the calls, the commands, and each request of a batch, that reach a handler,
    /// every attempt at them: no request of an unknown action, expired or
    /// [repeated](ServiceServerBuilder::deduplicate), and none that cannot be read. It runs on
    /// the handler's worker; a panic counts as one of the handler.
    ///
    /// ```
    /// use std::time::Instant;
    /// use coney::{Broker, HandlerError, ServiceClient, ServiceServer};
    ///
    /// let broker = Broker::memory();
    /// let server = ServiceServer::builder(&broker, "math")
    ///     .respond("double", |n: u64| n * 2)
    ///     .layer(|context, next| {
    ///         let start = Instant::now();
    ///         let result = next.run();
    ///         println!("{} took {:?}", context.action(), start.elapsed());
    ///         result
    ///     })
    ///     .layer(|context, next| match context.source_service() {
    ///         "shop" => next.run(),
    ///         other => Err(HandlerError::new(format!("{other} has no access"))),
    ///     })
    ///     .start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// assert_eq!(client.call::<u64>("math", "double", &21)?, 42);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn layer<F>(self, layer: F) -> Self
    where
        F: Fn(&Context<'_>, NextHandler<'_>) -> HandlerResult<HandlerReply> + Send + Sync + 'static,
    {
        self.layer_impl(layer)
    }

    /// Adds a layer as [`layer`](ServiceServerBuilder::layer) does, which is a value of a type that
    /// implements [`HandlerLayer`].
    pub fn layer_impl(mut self, layer: impl HandlerLayer) -> Self {
        self.options.layers.push(Arc::new(layer));
        self
    }

    /// Sets the names of the headers that nested calls pass on. The client that
    /// [`Context::client`] returns then adds those of the request's headers to its calls, commands
    /// and batches, with unchanged values, unless a call sets the header itself. Names are case
    /// sensitive; coney's own headers (`deadline_ms`, `timeout_ms`, `async_callback`, `attempt`)
    /// are refused by [`start`](ServiceServerBuilder::start). Defaults to none.
    ///
    /// Events that a handler publishes do not get the headers: an
    /// [`EventPublisher`](crate::EventPublisher) has no link to the request.
    ///
    /// ```
    /// use coney::{Broker, CallOptions, Context, ServiceClient, ServiceServer};
    ///
    /// let broker = Broker::memory();
    /// let prices = ServiceServer::builder(&broker, "price-service")
    ///     .respond_with_context("price", |context: &Context<'_>, _: u64| {
    ///         context.header::<String>("request-id")
    ///     })
    ///     .start()?;
    /// let orders = ServiceServer::builder(&broker, "order-service")
    ///     .handler_with_context("total", |context: &Context<'_>, order: u64| {
    ///         context.client()?.call::<Option<String>>("price-service", "price", &order)
    ///     })
    ///     .propagate(["request-id"])
    ///     .start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// let options = CallOptions::new().header("request-id", "r-4711");
    /// let seen: Option<String> = client.call_with("order-service", "total", &1, &options)?;
    /// assert_eq!(seen.as_deref(), Some("r-4711"));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn propagate<N: Into<String>>(mut self, headers: impl IntoIterator<Item = N>) -> Self {
        self.options.propagate = headers.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the registry in which the instance is registered, from the start to the beginning of
    /// its shutdown.
    ///
    /// The instance also gets a queue of its own, `service.NAME.instance.ID`, for calls that are
    /// [addressed](crate::CallOptions::instance) to it. Requests in that queue when
    /// the instance shuts down, or becomes unhealthy, go to the other instances; when its
    /// process dies or its connection is lost, they are lost, and their callers wait for their
    /// deadlines. Defaults to none.
    ///
    /// ```
    /// # use coney::{Broker, Registry, ServiceServer};
    /// let registry = Registry::memory();
    /// let server = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .respond("get_user", |id: u64| id)
    ///     .registry(&registry)
    ///     .start()?;
    /// let found = registry.lookup("user-service")?;
    /// assert_eq!(found.iter().next().map(|one| one.id()), server.instance_id());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Sets the description of the instance in the registry. A missing host is filled in; the
    /// actions, and as metadata `pid`, `coney` (the library's version) and `capabilities`, are
    /// always the server's. Defaults to an empty description.
    pub fn instance(mut self, instance: Instance) -> Self {
        self.instance = instance;
        self
    }
}

impl fmt::Debug for ServiceServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceServerBuilder")
            .field("service", &self.service)
            .field("actions", &self.handlers.keys())
            .field("workers", &self.options.load.workers)
            .finish_non_exhaustive()
    }
}
