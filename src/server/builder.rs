use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::Nested;
use super::deduplication::{Deduplication, ReplyStore};
use super::handler::{self, Handler, HandlerError};
use super::mover::{Mover, POSTPONE_FOR};
use super::moves::Moves;
use super::{Context, Dispatch, Intake, Pool, ServiceServer};
use crate::client::ServiceClient;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{check_action, check_service};
use crate::topology;
use crate::transport::{Broker, LinkSpec, Sink};

/// Options and handlers for a [`ServiceServer`]; made by
/// [`ServiceServer::builder`].
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
    broker: Broker,
    service: String,
    handlers: HashMap<String, Handler>,
    workers: usize,
    prefetch: u16,
    shutdown_timeout: Duration,
    retry_delays: Vec<Duration>,
    redelivery_limit: u32,
    quorum: bool,
    deduplication: Option<(Arc<dyn ReplyStore>, Duration)>,
    deduplication_lease: Duration,
    client: Option<ServiceClient>,
    fault: Option<Error>,
}

/// More attempts than anybody needs, each with a queue of its own.
const MOST_RETRIES: usize = 20;

impl ServiceServerBuilder {
    pub(super) fn new(broker: &Broker, service: &str) -> Self {
        Self {
            broker: broker.clone(),
            service: service.to_owned(),
            handlers: HashMap::new(),
            workers: 10,
            prefetch: 10,
            shutdown_timeout: Duration::from_secs(10),
            retry_delays: [1, 5, 25, 125].map(Duration::from_secs).to_vec(),
            redelivery_limit: 5,
            quorum: false,
            deduplication: None,
            deduplication_lease: Duration::from_secs(60),
            client: None,
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
        self.add(action, handler::typed(move |_, request| handler(request)))
    }

    /// Adds a handler that also gets the request's [`Context`].
    pub fn handler_with<Req, Resp, E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, Req) -> std::result::Result<Resp, E> + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
        E: Into<HandlerError>,
    {
        self.add(action, handler::typed(handler))
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
        self.add(action, handler::raw(handler))
    }

    /// How many worker threads run handlers. Handlers that call their own
    /// service need more than one. Default: 10.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// How many requests are fetched ahead of their acknowledgement. Fewer
    /// than workers leaves workers idle; more waits in this process instead of
    /// going to another server. Default: 10.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// How long dropping the server may wait for running handlers. Default: 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
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
        self.retry_delays = delays.into_iter().collect();
        self
    }

    /// How often a message may come back because its worker died, or lost its
    /// connection, while it had it. One more goes to the dead letters unopened,
    /// for it may be what kills the workers. Default: 5.
    pub fn redelivery_limit(mut self, redeliveries: u32) -> Self {
        self.redelivery_limit = redeliveries;
        self
    }

    /// Runs a request whose message id has been handled before, in the last
    /// `ttl`, no second time: it gets the reply of the first. A repeated command
    /// is acknowledged. Repeated are what is delivered again, what the client sent again
    /// because it is [idempotent](crate::CallOptions::idempotent), and what its sender gave
    /// the same [`message_id`](crate::CallOptions::message_id). What failed may be repeated, except that a call gets the
    /// error it got. Default: every request is run.
    pub fn deduplicate(mut self, store: Arc<dyn ReplyStore>, ttl: Duration) -> Self {
        self.deduplication = Some((store, ttl));
        self
    }

    /// How long a worker that deduplicates may take over a request before another
    /// may think it dead and begin anew. Default: 60 s.
    pub fn deduplication_lease(mut self, lease: Duration) -> Self {
        self.deduplication_lease = lease;
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
        self.client = Some(client);
        self
    }

    /// Starts the workers, declares the service's queue and consumes from it.
    /// Blocks until the broker has agreed, at most 10 s; when it returns,
    /// requests are being served.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for names that do not fit, an action that
    /// was given twice, no workers, or delays that are no delays; [`ErrorKind::Broker`] if the broker
    /// refuses, [`ErrorKind::TimedOut`] if it does not answer,
    /// [`ErrorKind::Closed`] after the broker was closed.
    ///
    /// Keep what it returns: dropping it shuts the server down.
    pub fn start(self) -> Result<ServiceServer> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        check_service(&self.service)?;
        if self.workers == 0 || self.prefetch == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("{}: workers and prefetch must be at least 1", self.service),
            ));
        }
        let is_delay = |delay: &Duration| (1..=u32::MAX.into()).contains(&delay.as_millis());
        if self.retry_delays.len() > MOST_RETRIES || !self.retry_delays.iter().all(is_delay) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{}: there may be {MOST_RETRIES} retry delays, from a millisecond to 49 days",
                    self.service
                ),
            ));
        }
        if self.handlers.is_empty() {
            log::warn!(
                target: "coney::server",
                "{} has no handlers: every request gets an error", self.service
            );
        }
        let mut actions: Vec<&str> = self.handlers.keys().map(String::as_str).collect();
        actions.sort_unstable();
        let actions = actions.join(", ");
        let mut delays = self.retry_delays.clone();
        delays.extend(self.deduplication.is_some().then_some(POSTPONE_FOR));
        let topology = topology::for_service(&self.service, &delays, self.quorum);
        let (running, stopping) = bounded(0);
        let no_thread = |error: std::io::Error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{}: cannot start {} workers", self.service, self.workers),
            )
            .with_source(error)
        };
        let (mover, moves) = Moves::start(
            &self.service,
            self.broker.clone(),
            topology.clone(),
            stopping,
        )
        .map_err(no_thread)?;
        let deduplication = self.deduplication.map(|(store, ttl)| Deduplication {
            service: self.service.clone(),
            store,
            ttl,
            lease: self.deduplication_lease,
        });
        let dispatch = Dispatch {
            service: self.service.clone(),
            handlers: self.handlers,
            max_body: self.broker.max_body(),
            mover: Mover {
                broker: self.broker.clone(),
                service: self.service.clone(),
                retry_delays: self.retry_delays,
                redelivery_limit: self.redelivery_limit,
                quorum: self.quorum,
                moves,
            },
            deduplication,
            nested: Nested {
                broker: self.broker.clone(),
                service: self.service.clone(),
                client: Mutex::new(self.client),
            },
        };
        let pool = Pool::start(
            &self.service,
            self.workers,
            self.broker.awake(),
            move |delivery| {
                // A reply store is the user's code too. The delivery goes back
                // into its queue, which counts.
                if catch_unwind(AssertUnwindSafe(|| dispatch.process(delivery))).is_err() {
                    log::error!(target: "coney::server", "a worker panicked over a request");
                }
            },
        )
        .map_err(no_thread)?;
        let intake = Arc::new(Intake { pool });
        let spec =
            LinkSpec::new(topology).consume(topology::request_queue(&self.service), self.prefetch);
        let sink = Arc::clone(&intake) as Arc<dyn Sink>;
        let opened = self.broker.open(spec, sink);
        let wire = opened.inspect_err(|_| drop(intake.pool.stop()))?;
        log::info!(
            target: "coney::server",
            "{} serves {actions} with {} workers", self.service, self.workers
        );
        Ok(ServiceServer {
            stopped: AtomicBool::new(false),
            service: self.service,
            wire,
            intake,
            running: Mutex::new(Some((running, mover))),
            shutdown_timeout: self.shutdown_timeout,
            _broker: self.broker,
        })
    }

    fn add(mut self, action: &str, handler: Handler) -> Self {
        let fault = check_action(action).err().or_else(|| {
            let twice = self.handlers.contains_key(action);
            twice.then(|| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!("{}: the action {action:?} has two handlers", self.service),
                )
            })
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
            .field("workers", &self.workers)
            .field("prefetch", &self.prefetch)
            .finish_non_exhaustive()
    }
}
