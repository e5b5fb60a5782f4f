use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ServiceServer;
use super::health::Check;
use crate::base::name::check_action;
use crate::client::ServiceClient;
use crate::consumer::{Context, Handler, HandlerError, Options, ReplyStore, raw, typed};
use crate::error::{Error, ErrorKind};
use crate::message::batch::BATCH_ACTION;
use crate::registry::{Instance, Registry};
use crate::transport::Broker;

/// Options and handlers for a [`ServiceServer`](crate::ServiceServer); made by
/// [`ServiceServer::builder`](crate::ServiceServer::builder).
///
/// Handlers run on the server's workers, several at a time, so they must be
/// `Sync`. What one returns as an error becomes an error reply, and so does a
/// panic; neither disturbs the server. A handler may call other services,
/// its own included, through a [`ServiceClient`](crate::ServiceClient), as
/// long as a worker is free to answer.
///
/// # When it does not compile
///
/// A closure whose error type cannot be inferred names it: end with
/// `Ok::<_, HandlerError>(value)`, or declare what it returns. A handler owns its
/// request: take `String`, not `&str`.
#[must_use = "a server does nothing until it is started"]
pub struct ServiceServerBuilder {
    pub(super) broker: Broker,
    pub(super) service: String,
    pub(super) handlers: HashMap<String, Handler>,
    pub(super) options: Options,
    pub(super) quorum: bool,
    pub(super) registry: Option<Registry>,
    pub(super) instance: Instance,
    pub(super) checks: Vec<Check>,
    pub(super) health_interval: Duration,
    pub(super) health_failures: u32,
    pub(super) fault: Option<Error>,
}

impl ServiceServer {
    /// Options and handlers for a server of `service`.
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
            quorum: false,
            registry: None,
            instance: Instance::new(),
            checks: Vec::new(),
            health_interval: Duration::from_secs(5),
            health_failures: 3,
            fault: None,
        }
    }

    /// Adds a handler: a function from the decoded payload to an answer, or to
    /// any error that displays.
    ///
    /// A payload that does not decode into `Req` is answered with an error
    /// (code `bad_request`) and does not reach the handler.
    pub fn handler<Req, Resp, E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(Req) -> std::result::Result<Resp, E> + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
        E: Into<HandlerError>,
    {
        self.add(action, typed(move |_, request| handler(request)))
    }

    /// Adds a handler that also gets the request's [`Context`].
    pub fn handler_with<Req, Resp, E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, Req) -> std::result::Result<Resp, E> + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
        E: Into<HandlerError>,
    {
        self.add(action, typed(handler))
    }

    /// Adds a handler that gets the payload as JSON text and answers in JSON
    /// text, for programs that only pass it on.
    ///
    /// ```
    /// use coney::{Broker, Context, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "mirror")
    ///     .raw_handler("echo", |_: &Context<'_>, json: &str| Ok::<_, String>(json.to_owned()))
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn raw_handler<E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> std::result::Result<String, E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        self.add(action, raw(handler))
    }

    /// How many worker threads run handlers. Handlers that call their own
    /// service need more than one. Default: 10.
    pub fn workers(mut self, workers: usize) -> Self {
        self.options.workers = workers;
        self
    }

    /// How many requests are fetched ahead of their acknowledgement. Fewer
    /// than workers leaves workers idle; more waits in this process instead of
    /// going to another server. Default: 10.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.options.prefetch = prefetch;
        self
    }

    /// How long dropping the server may wait for running handlers. Default: 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.options.shutdown_timeout = timeout;
        self
    }

    /// How long a command whose handler has failed waits before its second
    /// attempt, its third, and so on; after the last it goes to the dead letters.
    /// Default: 1 s, 5 s, 25 s and 125 s, that is, five attempts. None means one.
    ///
    /// A command is a request without `reply_to`. It waits in a queue of the
    /// broker, `service.NAME.retry.MILLISECONDS`, and not in a worker; these are
    /// quorum queues, which RabbitMQ has from 3.10 on as they are needed here. Calls
    /// are not tried again: their callers get the error.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "mailer")
    ///     .handler("mail", |_: String| Err::<(), _>("no network"))
    ///     .retry_delays([Duration::from_secs(10), Duration::from_secs(600)])
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn retry_delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.options.retry_delays = delays.into_iter().collect();
        self
    }

    /// The number of times that a message may come back because its worker died. One
    /// more goes to the dead letters unopened, for it may be what kills the workers.
    /// Default: 5.
    ///
    /// Only what had begun counts. A message that comes back, begun or not, is moved to the
    /// queue `service.NAME.suspect`, from which each process handles one at a time. What a
    /// process has finished, and could not settle because its connection was lost, is
    /// settled when it comes back and not run again.
    pub fn redelivery_limit(mut self, redeliveries: u32) -> Self {
        self.options.redelivery_limit = redeliveries;
        self
    }

    /// Runs a request that has been handled before, in the last `ttl`, no second time: it
    /// gets the reply of the first. A repeated command is acknowledged. A request is the
    /// same if its message id, its action and the service that sent it are. Repeated are what is delivered again, what the client sent again
    /// because it is [idempotent](crate::CallOptions::idempotent), and what its sender gave
    /// the same [`message_id`](crate::CallOptions::message_id). What failed may be repeated; of
    /// failures only those that are [final](HandlerError::do_not_retry) are remembered.
    ///
    /// While the store is away nothing is run: calls are answered with
    /// [`ErrorKind::Busy`], commands wait in the longest of the retry queues, at no attempt's
    /// cost, and after [a while](ServiceServerBuilder::reply_store_outage_limit) the server
    /// stops consuming until the store is back. Default: every request is run.
    pub fn deduplicate(mut self, store: Arc<dyn ReplyStore>, ttl: Duration) -> Self {
        self.options.deduplication = Some((store, ttl));
        self
    }

    /// Sets after how long another worker may begin with a request whose worker has died.
    /// While a handler runs, its claim is renewed every third of it. Defaults to 60 s.
    pub fn deduplication_lease(mut self, lease: Duration) -> Self {
        self.options.deduplication_lease = lease;
        self
    }

    /// Sets how long the reply store may be away before the server stops consuming.
    /// Defaults to 30 s.
    pub fn reply_store_outage_limit(mut self, patience: Duration) -> Self {
        self.options.reply_store_outage_limit = patience;
        self
    }

    /// Sets how long the broker lets a delivery be unacknowledged: its `consumer_timeout`. A
    /// warning is logged when a handler has run for 80 % of it. Past it the broker closes
    /// the channel (`delivery acknowledgement on channel N timed out`) and delivers the
    /// message again; where it comes back to this process, a handler that is still at it
    /// settles it when it returns, and is not run again; another server of the service may
    /// run it meanwhile. Defaults to 30 min, as RabbitMQ's does.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.options.consumer_timeout = timeout;
        self
    }

    /// Sets whether replies go to queues of any name. By default they go only to queues that
    /// the broker has named (`amq.gen-…`) and to RabbitMQ's direct reply-to, because a
    /// sender that may name any queue writes to it with this server's rights. A request that
    /// names another is dead-lettered and answered nowhere. Never do replies go to coney's own
    /// queues. Defaults to false.
    pub fn any_reply_queue(mut self, any: bool) -> Self {
        self.options.any_reply_queue = any;
        self
    }

    /// Makes the service's queue a quorum queue: replicated in a cluster, and
    /// counting redeliveries itself. For those who own the whole topology: a peer that declares the
    /// service's queue must declare it the same way, and a classic one that exists
    /// must be deleted first. Default: classic queues, as the wire contract has them.
    pub fn quorum_queues(mut self) -> Self {
        self.quorum = true;
        self
    }

    /// The client that [`Context::client`] gives out. Default: one with the
    /// default options on the server's broker, made when it is first needed.
    pub fn client(mut self, client: ServiceClient) -> Self {
        self.options.client = Some(client);
        self
    }

    /// Where to register the instance, from the start to the beginning of its shutdown.
    ///
    /// It also gets a queue of its own, `service.NAME.instance.ID`, for calls that are
    /// [addressed](crate::CallOptions::instance) to it. What is in that queue when
    /// it shuts down, or is not well, goes to the other instances; when its process dies or its
    /// connection is lost, it is gone, and its callers wait for their deadlines. Default: none.
    ///
    /// ```
    /// # use coney::{Broker, Registry, ServiceServer};
    /// let registry = Registry::memory();
    /// let server = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .handler("get_user", |id: u64| Ok::<_, String>(id))
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

    /// What to register. The host is filled in if it does not say; the actions, and as
    /// metadata `pid`, `coney` (the library's version) and `capabilities`, are always the
    /// server's. Default: an instance that says nothing.
    pub fn instance(mut self, instance: Instance) -> Self {
        self.instance = instance;
        self
    }

    /// Adds a check of something the handlers need, such as a database. It runs every
    /// [`health_interval`](ServiceServerBuilder::health_interval) on a thread of
    /// the server's, `coney-health-SERVICE`, one check after the other; a panic is a failure.
    ///
    /// While one fails, with or without a registry, the server takes no requests: what it has
    /// not begun goes to the other instances, and callers who do not look it up wait for it,
    /// or for another. In the registry the instance is marked as not well, and look-ups leave
    /// it out. Everybody who reads the registry can read the check's error, of which 200
    /// bytes are told: it should have no secret in it.
    ///
    /// A check should have a timeout of its own: while one hangs, the last verdict stands.
    /// [`start`](ServiceServerBuilder::start) waits for the first round of all checks, and takes
    /// one of over 10 s for a failure.
    ///
    /// ```
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .handler("get_user", |id: u64| Ok::<_, String>(id))
    ///     .health_check("disk", || std::fs::metadata("/").map(drop))
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn health_check<E, F>(mut self, name: impl Into<String>, check: F) -> Self
    where
        F: Fn() -> std::result::Result<(), E> + Send + Sync + 'static,
        E: fmt::Display,
    {
        self.checks.push(Check {
            name: name.into(),
            run: Box::new(move || check().map_err(|error| error.to_string())),
            is_patient: false,
        });
        self
    }

    /// How long after a round of checks the next begins. Default: 5 s.
    pub fn health_interval(mut self, interval: Duration) -> Self {
        self.health_interval = interval;
        self
    }

    /// Sets how many times in a row a check must fail before the server stops consuming. At
    /// the start one failure is enough, and afterwards one success resumes. Defaults to 3.
    pub fn health_failures(mut self, failures: u32) -> Self {
        self.health_failures = failures;
        self
    }

    fn add(mut self, action: &str, handler: Handler) -> Self {
        let invalid = |fault: &str| {
            let fault = format!("{}: the action {action:?} {fault}", self.service);
            Error::new(ErrorKind::InvalidConfig, fault)
        };
        let fault = check_action(action).err().or_else(|| {
            if action == BATCH_ACTION {
                return Some(invalid("is coney's own: it holds several requests"));
            }
            let twice = self.handlers.contains_key(action);
            twice.then(|| invalid("has two handlers"))
        });
        self.fault = self.fault.or(fault);
        self.handlers.insert(action.to_owned(), handler);
        self
    }
}

impl fmt::Debug for ServiceServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceServerBuilder")
            .field("service", &self.service)
            .field("actions", &self.handlers.keys())
            .field("workers", &self.options.workers)
            .field("prefetch", &self.options.prefetch)
            .finish_non_exhaustive()
    }
}
