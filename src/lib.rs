//! Blocking microservice calls between plain threads, over RabbitMQ.
//!
//! A service calls another and blocks for the reply, at most until its deadline; it sends
//! commands that must not be lost, and publishes events that other services subscribe to.
//! Every failure is an error that says whether the request can have run. There is no async
//! runtime, in no feature.
//!
//! ```
//! use coney::{Broker, ServiceClient, ServiceServer};
//!
//! fn main() -> coney::Result<()> {
//!     let broker = Broker::memory(); // or Broker::connect("amqp://localhost")?
//!     let server = ServiceServer::builder(&broker, "greeter")
//!         .respond("greet", |name: String| format!("Hello, {name}!"))
//!         .start()?;
//!     let client = ServiceClient::new(&broker, "front")?;
//!     let text: String = client.call("greeter", "greet", "张三")?;
//!     assert_eq!(text, "Hello, 张三!");
//!     server.shutdown(std::time::Duration::from_secs(10))
//! }
//! ```
//!
//! The [guide] teaches the library in order: calls, commands, events, batches, discovery,
//! failure, load, testing, operations.
//!
//! # The types
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Broker`] | a handle to RabbitMQ, or to a broker inside this process |
//! | [`ServiceServer`] | handlers on a pool of workers, behind the service's queue |
//! | [`ServiceClient`], [`ServiceProxy`] | [calls](ServiceClient::call), [asynchronous calls](ServiceClient::call_async), [commands](ServiceClient::send) |
//! | [`Batch`] | many calls to one service in few messages |
//! | [`EventPublisher`], [`EventSubscriber`], [`Subscription`] | events |
//! | [`PendingReply`], [`PendingConfirm`], [`batch::PendingBatch`] | results that are still to come |
//! | [`Context`], [`HandlerError`], [`HandlerResult`] | the request and the result of a handler |
//! | [`Registry`], [`Instance`] | the instances of services: registering, looking up, [balancing](balance) |
//! | `redis::Redis` | a registry and a store of replies in Redis (feature `redis`, on by default) |
//! | [`DeadLetters`] | the messages that failed for good: list, replay, purge |
//! | [`Error`], [`ErrorKind`] | the failure, and whether the request can have run |
//! | [`resilience::Resilience`] | policies of a client: retries, circuit breaker, throttle, limits |
//! | [`cache::ResponseCache`] | responses that clients keep: single flight, stale answers, invalidation by events |
//!
//! Options, builders and states are in the module of their subject: [`client`], [`server`],
//! [`events`], [`batch`], [`registry`], [`balance`], [`deduplication`], [`dead_letters`],
//! [`resilience`], [`cache`].
//! [`message`] has the envelope on the wire, for tools and peers, and [`transport`] raw links to
//! the broker, for peers that do not follow the contract.
//!
//! # Sharing and closing
//!
//! [`Broker`], [`Registry`], [`ServiceClient`] and [`EventPublisher`] are handles: clone them and
//! use them from any number of threads. All clones of a broker share one connection, all clones
//! of a client one reply queue. Everything closes when its last handle is dropped: a server
//! after its running handlers have finished, a client when no [`PendingReply`] and no callback
//! uses it either, a connection when nothing uses it any more. To close earlier:
//!
//! | method | waits for | blocks |
//! | --- | --- | --- |
//! | [`ServiceServer::shutdown`], [`EventSubscriber::shutdown`] | running handlers, and the broker to have their replies and acknowledgements | at most its timeout |
//! | [`ServiceServer::drain`], [`EventSubscriber::drain`] | the queue to be empty, then as `shutdown` | at most its timeout |
//! | [`registry::Registration::deregister`] | the registry | at most its timeout |
//! | [`Broker::close`] | the connection's threads; every call in flight fails | at most its timeout |
//! | [`ServiceClient::close`] | nothing; its calls in flight fail | never |
//!
//! A server that its own handler drops does not wait for that handler, whose result is lost.
//!
//! # Threads
//!
//! | thread | how many | purpose |
//! | --- | --- | --- |
//! | `coney-io-N` | one per connection (a subscriber with an order has a second one; [counting a queue](Broker::queue_depth), a scan of the dead letters and [`transport::Link::get`] open one that ends when it is idle) | owns the connection: connects, declares, consumes, closes, reconnects, and sends what cannot leave at once. Runs no user code |
//! | `coney-write-N` | one per connection | goes on writing when the socket is full; sleeps otherwise, as callers and workers write by themselves |
//! | `coney-watch-N` | one per connection | shuts the socket down when an operation takes too long |
//! | `amiquip-io` | one per connection | amiquip's: reads the socket, gives deliveries to the workers and wakes the callers whose replies have come. Runs no user code |
//! | `coney-worker-SERVICE-N` | 10 per server or subscriber, or as many as its load needs, and one for redelivered messages | handlers |
//! | `coney-lease-SCOPE` | one per server, or subscription, that deduplicates | renews the claims of handlers that run for long |
//! | `coney-confirm-SERVICE` | one per server or subscriber | acknowledges republished messages once the broker has confirmed the copies |
//! | `coney-load-SERVICE` | one per server or subscriber with a range of workers, load shedding, a handler timeout or a pause on failures | counts what waits while all workers are busy, starts workers, finds overdue handlers |
//! | `coney-health-SERVICE` | one per server with health checks | the checks |
//! | `coney-heartbeat-N` | one per registry, from its first registration on | registers, and renews the heartbeats |
//! | `coney-lookup-N` | one per registry, from its first look-up on | asks the store |
//! | `coney-limit-NAME` | one per [rate limit](resilience::RateLimit) shared in Redis, from the first call on | leases tokens |
//! | `coney-redis-N` | two per Redis handle | make its connections |
//! | `coney-state-N` | one per connection with an [`on_state_change`](BrokerBuilder::on_state_change) listener | the listener |
//! | `coney-callback-NAME` | one per client, and one per connection for confirms, from the first callback on | callbacks and their timeouts, attempts of calls with callbacks, listeners of circuit breakers |
//! | `coney-cache-NAME` | one per [cache of responses](cache), from the first stale answer on | refreshes stale responses |
//! | `coney-invalidate-NAME` | one per cache of responses that events invalidate | decodes these events |
//! | `coney-memory-timer` | one per memory broker, from the first server on | moves on messages whose TTL has passed |
//! | `coney-log` | one per process, from the first line on | hands to the logger the log lines of the I/O threads, of the memory broker, and of threads that a panic in the logger must not end |
//! | `coney-zone`, `coney-resolve` | one for a moment | reads the time zone; resolves a host name with a deadline |
//!
//! In the memory broker the publishing thread delivers.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `redis` | yes | the module `redis`: a registry and a store of replies in Redis |

mod base;
pub mod cache;
pub mod client;
mod consumer;
pub mod dead_letters;
mod error;
mod error_code;
mod error_kind;
pub mod events;
pub mod guide;
#[cfg(feature = "_bench")]
#[doc(hidden)]
pub mod internals;
pub mod message;
#[cfg(feature = "redis")]
pub mod redis;
pub mod registry;
pub mod resilience;
pub mod server;
mod topology;
pub mod transport;
mod verdict;

pub use client::batch::builder::Batch;
pub use client::options::{CallOptions, SendOptions};
pub use client::pending_confirm::PendingConfirm;
pub use client::pending_reply::PendingReply;
pub use client::proxy::ServiceProxy;
pub use client::service_client::ServiceClient;
pub use consumer::context::Context;
pub use consumer::handler_error::{HandlerError, HandlerResult};
pub use dead_letters::queue::DeadLetters;
pub use error::{Error, Result};
pub use error_kind::{ErrorKind, Phase};
pub use events::options::PublishOptions;
pub use events::publisher::EventPublisher;
pub use events::subscriber::EventSubscriber;
pub use events::subscription::Subscription;
pub use registry::handle::Registry;
pub use registry::instance::Instance;
pub use server::service_server::ServiceServer;
pub use transport::amqp::builder::BrokerBuilder;
pub use transport::broker::Broker;
pub use transport::connection_state::ConnectionState;

/// Many calls to one service in few messages: limits, keys and replies of a
/// [`Batch`].
pub mod batch {
    pub use crate::client::batch::{BatchLimits, BatchReplies, CallKey, PendingBatch};
}

/// Stores of replies, by which a server or a subscriber recognises repeated requests.
pub mod deduplication {
    pub use crate::consumer::{ClaimOutcome, MemoryReplyStore, ReplyStore, StoreError};
}

/// Balancers: the choice among several instances of a service.
///
/// ```
/// use coney::{Broker, Registry, ServiceClient, balance::LowestLatency};
///
/// let registry = Registry::memory();
/// let client = ServiceClient::builder(&Broker::memory(), "shop")
///     .registry(&registry)
///     .balancer(LowestLatency)
///     .build()?;
/// # let _ = client;
/// # Ok::<(), coney::Error>(())
/// ```
pub mod balance {
    pub use crate::registry::balance::{
        Balancer, ConsistentHash, LeastOutstanding, LowestLatency, Random, RoundRobin, Weighted,
    };
    pub use crate::registry::candidate::Candidate;
    pub use crate::registry::choice::Choice;
}

/// Runs the README's program as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Runs the program of the Chinese README as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.zh-CN.md")]
struct ChineseReadme;
