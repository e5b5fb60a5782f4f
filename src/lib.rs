//! Blocking microservice calls between plain threads, over RabbitMQ.
//!
//! A service calls another and blocks for the answer, with a deadline; workers
//! answer, several at a time; what goes wrong comes back as an error that says
//! what the caller may do next. There is no async runtime, in no feature.
//!
//! # Hello, service
//!
//! ```
//! use coney::{Broker, ServiceClient, ServiceServer};
//!
//! fn main() -> coney::Result<()> {
//!     let broker = Broker::memory(); // or Broker::connect("amqp://localhost")?
//!     let server = ServiceServer::builder(&broker, "greeter")
//!         .handler("greet", |name: String| Ok::<_, String>(format!("Hello, {name}!")))
//!         .start()?;
//!     let client = ServiceClient::new(&broker, "front")?;
//!     let text: String = client.call("greeter", "greet", "张三")?;
//!     assert_eq!(text, "Hello, 张三!");
//!     server.shutdown(std::time::Duration::from_secs(10))
//! }
//! ```
//!
//! # The parts
//!
//! | part | what it is |
//! | --- | --- |
//! | [`Broker`] | a handle on RabbitMQ, or on a broker inside this process |
//! | [`ServiceServer`] | handlers on a pool of workers, behind the service's queue |
//! | [`ServiceClient`] | [`call`](ServiceClient::call) blocks; [`call_async`](ServiceClient::call_async) gives a [`PendingReply`] to wait for, or to give a callback to; [`send`](ServiceClient::send) is one way, and confirmed |
//! | [`Batch`] | many calls to one service in few messages |
//! | [`EventPublisher`], [`EventSubscriber`] | what has happened, told to whoever has subscribed |
//! | [`ServiceProxy`] | one service seen from outside, with `camelCase` methods |
//! | [`DeadLetters`] | the messages that failed for good: look, replay, purge |
//! | [`Registry`] | which instances of a service there are: registering, looking up, [balancing](balance) |
//! | [`redis`] | a registry and a reply store in Redis (feature `redis`, on by default) |
//! | [`ReplyStore`] | remembers which requests have been handled, so that a repeated one is not |
//! | [`Error`], [`ErrorKind`] | what went wrong, and whether it can have run |
//! | [`message`] | the envelope on the wire, for tools and peers |
//! | [`transport`] | raw links to the broker, for what does not follow the contract |
//!
//! # Calls, commands, and what happens to each
//!
//! | | call | command |
//! | --- | --- | --- |
//! | method | [`call`](ServiceClient::call), [`call_async`](ServiceClient::call_async) | [`send`](ServiceClient::send), [`send_async`](ServiceClient::send_async) |
//! | returns when | the reply is here | the broker has it on disk |
//! | nobody serves it by its deadline | it expires | it waits |
//! | the handler fails | the caller gets the error | it is tried again, four times by default, then kept among the [`DeadLetters`] |
//! | it cannot be read, or there is no handler | the caller gets the error, and it is kept | it is kept |
//! | the connection is lost before it is sent | it waits for the next one | it waits for the next one |
//! | the connection is lost after that | [`ErrorKind::ConnectionLost`], or it is sent again if it is [idempotent](CallOptions::idempotent) | the same |
//! | the worker dies over it | another gets it; after five deaths it is kept among the dead letters | the same |
//!
//! Handlers may thus run more than once for one request. Give a server a
//! [`ReplyStore`] ([`deduplicate`](ServiceServerBuilder::deduplicate)) where that
//! matters.
//!
//! # Many calls at once
//!
//! A message costs far more than what is in it. A [`Batch`] holds any number of calls to
//! one service, each with its own type of reply and its own error; 500 go in a message, and
//! its workers share them. Where many threads make calls that know nothing of each other, a
//! client that [coalesces](ServiceClientBuilder::coalesce) lets those share messages that
//! wait to be sent at the same moment; nothing waits for company, and each is answered as
//! soon as it is handled. Services that do not know batches get the calls one by one.
//!
//! ```
//! # use coney::{Broker, ServiceClient, ServiceServer};
//! # fn main() -> coney::Result<()> {
//! # let broker = Broker::memory();
//! # let server = ServiceServer::builder(&broker, "math")
//! #     .handler("double", |n: u64| Ok::<_, String>(n * 2)).start()?;
//! # let client = ServiceClient::new(&broker, "front")?;
//! let mut batch = client.batch("math");
//! for n in 0..1_000 {
//!     batch.add::<_, u64>("double", &n);
//! }
//! for (n, double) in batch.call().into_results::<u64>().into_iter().enumerate() {
//!     assert_eq!(double?, 2 * n as u64);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A call in a batch whose action has no handler gets the error, and is not kept.
//!
//! # Events
//!
//! An event says what has happened; who wants to know is for the others to say. Publishing
//! is confirmed as sending a command is; each [`Subscription`] has a queue, a handler, and
//! attempts and dead letters of its own.
//!
//! ```
//! use coney::{Broker, EventPublisher, EventSubscriber, Subscription};
//!
//! # fn main() -> coney::Result<()> {
//! let broker = Broker::memory();
//! let billing = EventSubscriber::builder(&broker, "billing")
//!     .on("order.created", |order: u64| Ok::<_, String>(println!("a bill for {order}")))
//!     .subscribe(
//!         Subscription::to("order.*", |order: u64| Ok::<_, String>(println!("{order}")))
//!             .ordered_by(|order: &u64| *order) // one order's events one after the other
//!     )
//!     .start()?;
//! EventPublisher::new(&broker, "order-service")?.publish("order.created", &4711)?;
//! billing.drain(std::time::Duration::from_secs(10)) // handles what is queued, then stops
//! # }
//! ```
//!
//! By default a service's instances are a group: one of them gets an event, and while
//! all are offline it waits. A [broadcast](Subscription::broadcast) reaches every instance,
//! a [singleton](Subscription::singleton) is one in the whole system.
//!
//! # Finding services
//!
//! A call needs no registry: it goes into the service's queue, and the first that is free
//! takes it. A [`Registry`] adds what a queue cannot tell. Servers
//! [register](ServiceServerBuilder::registry) their instances with what they say of
//! themselves, and are heard of every 15 s; one that has not been for 60 s is dead. Clients
//! that [look services up](ServiceClientBuilder::registry) fail at once where
//! none is alive, and may send a call to [one instance](CallOptions::instance), or let a
//! [balancer](ServiceClientBuilder::balancer) pick. A server with a
//! [health check](ServiceServerBuilder::health_check) that fails three times in a row is left
//! out until it is well.
//!
//! Look-ups are answered from a cache, in under a microsecond. A registry that is down
//! stops nobody: what was last known is used, and [says that it is old](Lookup::stale_reason).
//!
//! # Sharing and closing
//!
//! [`Broker`], [`Registry`] and [`ServiceClient`] are handles: clone them and use them from any
//! number of threads. All clones of a broker share one connection, all clones
//! of a client one reply queue. Things close when their last handle is dropped:
//! a server after its running handlers have finished (see
//! [`ServiceServer::shutdown`]; one that its own handler drops does not wait for that handler,
//! whose result is lost), a client when no
//! [`PendingReply`] and no callback is waiting for it either, a connection when
//! nothing uses it any more.
//!
//! # Threads
//!
//! | thread | how many | what it runs |
//! | --- | --- | --- |
//! | `coney-io-N` | one per connection (a subscriber with an order has another) | owns the connection: publishes, takes deliveries, routes replies, reconnects. Never user code |
//! | `coney-watch-N` | one per connection | cuts the socket when an operation takes too long; sleeps otherwise |
//! | `amiquip-io` | one per connection | amiquip's: reads and writes the socket |
//! | `coney-worker-SERVICE-N` | 10 per server or subscriber, and one that handles what came back from workers that died | handlers |
//! | `coney-lease-SCOPE` | one per server, or subscription, that deduplicates | renews the claims of handlers that run for long |
//! | `coney-mover-SERVICE` | one per server or subscriber | acknowledges what was moved on to another attempt or the dead letters, once that is confirmed |
//! | `coney-delay-SERVICE` | one per subscriber | waits for what is tried again in its place |
//! | `coney-health-SERVICE` | one per server with health checks | the checks |
//! | `coney-beat-N` | one per registry, from its first registration on | says that what was registered is still there |
//! | `coney-lookup-N` | one per registry, from its first look-up on | asks the store, so that no caller is held up by it |
//! | `coney-redis-N` | two per [`Redis`](redis::Redis) | make its connections |
//! | `coney-state-N` | one per connection with an [`on_state_change`](BrokerBuilder::on_state_change) listener | the listener |
//! | `coney-callback-NAME` | one per client, from its first callback on | callbacks and their timeouts |
//! | `coney-log` | one per process, from the first line on | hands the log lines of the I/O threads and of the memory broker to the logger |
//! | `coney-zone` | for a moment, once | reads the time zone, which takes more stack than a small thread has |
//! | `coney-resolve` | for the moment of a name resolution | the system's resolver, which knows no deadline |
//!
//! In the memory broker, who publishes delivers. It has one thread,
//! `coney-memory-timer`, from the first server on: it moves on what waits for another
//! attempt.
//!
//! # Logging
//!
//! Through the [`log`](https://docs.rs/log) facade, with the targets
//! `coney::amqp`, `coney::client`, `coney::server`, `coney::events`, `coney::worker`,
//! `coney::registry`, `coney::transport` and `coney::dead_letters`. Passwords are in no line of
//! any level, payloads and the values of headers in none of these targets. At `debug` and
//! `trace` amiquip logs every frame, with what is in it, on the thread that sends: filter it
//! (`RUST_LOG=debug,amiquip=info`).
//!
//! A logger may itself use coney. Only on amiquip's and the I/O threads' own lines, those of the
//! target `amiquip`, such a call fails at once ([`ErrorKind::Misuse`]), since it would wait for
//! itself.
//!
//! # After a fork
//!
//! A child process has none of its parent's threads. What it has of a [`Broker`] fails
//! at once with [`ErrorKind::Misuse`], also a call that was made before, which is the parent's
//! to wait for. Dropping things there leaves the parent's connection alone. Connect after the
//! fork.

mod base;
mod client;
mod consumer;
mod dead_letters;
mod error;
mod events;
#[cfg(feature = "_bench")]
#[doc(hidden)]
pub mod internals;
pub mod message;
#[cfg(feature = "redis")]
pub mod redis;
mod registry;
mod server;
mod topology;
pub mod transport;

pub use client::batch::{Batch, BatchLimits, BatchReplies, CallKey, PendingBatch};
pub use client::proxy::{ServiceProxy, ServiceProxyFactory, action_name};
pub use client::{CallOptions, PendingConfirm, PendingReply, ServiceClient, ServiceClientBuilder};
pub use consumer::{ClaimOutcome, Context, HandlerError, MemoryReplyStore, ReplyStore, StoreError};
pub use dead_letters::{DeadLetter, DeadLetters, ReplayReport};
pub use error::{Error, ErrorKind, Phase, Result};
pub use events::{EventPublisher, EventSubscriber, EventSubscriberBuilder, RawEvent, Subscription};
pub use registry::{
    Candidate, HeartbeatResult, Instance, Instances, Lookup, MemoryRegistryStore, PickedInstance,
    Registration, RegistrationState, Registry, RegistryBuilder, RegistryStore, StoredInstances,
    balance,
};
pub use server::{ServerState, ServiceServer, ServiceServerBuilder};
pub use transport::{Broker, BrokerBuilder, ConnectionState};

/// Runs the README's program as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
