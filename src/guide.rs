//! The guide: calls, commands, events, batches, discovery, failure, testing, operations.
//!
//! # Hello, service
//!
//! A [`Broker`](crate::Broker) is the one thing that clients and servers need.
//! [`Broker::memory`](crate::Broker::memory) has RabbitMQ's semantics inside the process;
//! [`Broker::connect`](crate::Broker::connect) is RabbitMQ. Nothing else in a program changes.
//!
//! ```
//! use coney::{Broker, ServiceClient, ServiceServer};
//!
//! # fn main() -> coney::Result<()> {
//! let broker = Broker::memory();
//! let _server = ServiceServer::builder(&broker, "math")
//!     .respond("double", |n: u64| n * 2)
//!     .start()?;
//! let client = ServiceClient::new(&broker, "order-service")?;
//! assert_eq!(client.call::<u64>("math", "double", &21)?, 42);
//! # Ok(())
//! # }
//! ```
//!
//! Requests and responses are any types with serde's traits; an action without a request takes `()`,
//! `|()| …`, and is called with `&()`. The type of the response is named at the call,
//! `call::<u64>(…)`, or follows from where it goes. The name given to the client is the service
//! that calls. A server runs as long as it is kept: a `main` that has nothing else to do
//! ends with [`server.wait()?`](crate::ServiceServer::wait); another thread ends it by
//! [`shutdown`](crate::ServiceServer::shutdown), as the example `user_service` does at SIGTERM.
//!
//! # Calls
//!
//! A handler that can fail returns a `Result`, with any error type that displays. The caller gets
//! an [`Error`](crate::Error) with the text, and the code if there is one:
//!
//! ```
//! use coney::{Broker, ErrorKind, HandlerError, HandlerResult, ServiceClient, ServiceServer};
//!
//! fn charge(cents: u64) -> HandlerResult<String> {
//!     if cents > 10_000 {
//!         return Err(HandlerError::new("over the limit").with_code("card_declined"));
//!     }
//!     Ok(format!("receipt for {cents}"))
//! }
//!
//! # fn main() -> coney::Result<()> {
//! let broker = Broker::memory();
//! let _server = ServiceServer::builder(&broker, "pay-service")
//!     .handler("charge", charge)
//!     .start()?;
//! let client = ServiceClient::new(&broker, "shop")?;
//! let error = client.call::<String>("pay-service", "charge", &20_000).unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Remote);
//! assert_eq!(error.remote_code(), Some("card_declined"));
//! # Ok(())
//! # }
//! ```
//!
//! A handler with a [`Context`](crate::Context) knows the caller, its headers and the remaining
//! time, and has a client whose nested calls end before the caller stops waiting:
//!
//! ```
//! use coney::{Broker, Context, HandlerResult, ServiceClient, ServiceServer};
//!
//! # fn main() -> coney::Result<()> {
//! # let broker = Broker::memory();
//! # let _prices = ServiceServer::builder(&broker, "price-service")
//! #     .respond("price", |article: u64| article * 100).start()?;
//! let _server = ServiceServer::builder(&broker, "order-service")
//!     .handler_with_context("total", |context: &Context<'_>, articles: Vec<u64>| -> HandlerResult<u64> {
//!         let client = context.client()?;
//!         let mut total = 0;
//!         for article in articles {
//!             total += client.call::<u64>("price-service", "price", &article)?;
//!         }
//!         Ok(total)
//!     })
//!     .start()?;
//! # let client = ServiceClient::new(&broker, "shop")?;
//! # assert_eq!(client.call::<u64>("order-service", "total", &[1, 2])?, 300);
//! # Ok(())
//! # }
//! ```
//!
//! [`CallOptions`](crate::CallOptions) set the timeout, headers and more of one call.
//! [`call_async`](crate::ServiceClient::call_async) returns a [`PendingReply`](crate::PendingReply)
//! to wait for later, or to give to a [callback](crate::PendingReply::then);
//! [`wait_any`](crate::client::wait_any) waits for the first of several.
//!
//! A *layer* is code around all handlers of a server: it logs, measures, or refuses. Headers named by
//! [`propagate`](crate::server::ServiceServerBuilder::propagate) go on to nested calls, so one id
//! marks a request in the logs of every service that it passes (the example `request_id`):
//!
//! ```
//! use coney::{Broker, HandlerError, ServiceServer};
//!
//! # fn main() -> coney::Result<()> {
//! # let broker = Broker::memory();
//! let _server = ServiceServer::builder(&broker, "order-service")
//!     .respond("total", |articles: Vec<u64>| articles.len())
//!     .layer(|context, next| match context.header::<String>("tenant") {
//!         Some(_) => next.run(),
//!         None => Err(HandlerError::new("no tenant").with_code("no_tenant")),
//!     })
//!     .propagate(["tenant", "request-id"])
//!     .start()?;
//! # Ok(())
//! # }
//! ```
//!
//! Handlers run on several threads. What they share goes into an `Arc`, one clone for each handler;
//! a closure with `?` in it names its result, `|id: u64| -> HandlerResult<User> { … }`.
//!
//! # Commands
//!
//! A *command* is a one-way request that must not be lost. [`send`](crate::ServiceClient::send)
//! returns when the broker has it on disk; the service carries it out at least once, however late.
//!
//! ```
//! use std::time::Duration;
//! use coney::{Broker, ServiceClient, ServiceServer};
//!
//! # fn main() -> coney::Result<()> {
//! let broker = Broker::memory();
//! let server = ServiceServer::builder(&broker, "mailer")
//!     .handler("mail", |text: String| match text.is_empty() {
//!         true => Err("nothing to send"), // retried after 1, 5, 25 and 125 s
//!         false => Ok(println!("sent: {text}")),
//!     })
//!     .start()?;
//! ServiceClient::new(&broker, "shop")?.send("mailer", "mail", "thank you")?;
//! server.drain(Duration::from_secs(10))?; // handles the queue, then stops
//! # Ok(())
//! # }
//! ```
//!
//! An error is retried after growing [delays](crate::server::ServiceServerBuilder::retry_delays), or
//! after the one that the handler [names](crate::HandlerError::retry_after);
//! after the last attempt, or at once with
//! [`do_not_retry`](crate::HandlerError::do_not_retry), the command is kept among the
//! [`DeadLetters`](crate::DeadLetters), from which it can be replayed. A handler can run twice
//! for one command: after its process died, for example.
//! [`is_redelivered`](crate::Context::is_redelivered) shows it, and
//! [`deduplicate`](crate::server::ServiceServerBuilder::deduplicate) prevents it, for calls too:
//! give every attempt the same [`message_id`](crate::CallOptions::message_id), and a repeated
//! request gets the first one's reply.
//!
//! A command may be sent for [later](crate::SendOptions::after): it waits in the broker, up to 30 days.
//!
//! | | call | command |
//! | --- | --- | --- |
//! | returns | with the reply | when the broker has it on disk |
//! | no server takes it before its deadline | it expires | it waits |
//! | the handler fails | the caller gets the error | it is retried, then dead-lettered |
//! | it cannot be read, or has no handler | the caller gets the error, and it is dead-lettered | it is dead-lettered |
//! | the connection is lost before it is sent | it waits for the next connection | the same |
//! | the connection is lost after that | [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost), or it is sent again if it is [idempotent](crate::CallOptions::idempotent) | the same |
//! | the worker process dies | another worker gets it; after the fifth redelivery it is dead-lettered | the same |
//!
//! # Events
//!
//! An *event* notifies every subscription that matches its name. Publishing is confirmed as
//! sending a command is; each [`Subscription`](crate::Subscription) has a queue, a handler, and
//! attempts and dead letters of its own.
//!
//! ```
//! use std::time::Duration;
//! use coney::{Broker, EventPublisher, EventSubscriber, Subscription};
//!
//! # fn main() -> coney::Result<()> {
//! let broker = Broker::memory();
//! let billing = EventSubscriber::builder(&broker, "billing")
//!     .listen("order.created", |order: u64| println!("a bill for {order}"))
//!     .subscribe(
//!         Subscription::listen("order.*", |order: u64| println!("{order}"))
//!             .named("history")
//!             .ordered_by(|order: &u64| *order), // one order's events stay in order
//!     )
//!     .start()?;
//! EventPublisher::new(&broker, "order-service")?.publish("order.created", &4711)?;
//! billing.drain(Duration::from_secs(10))?;
//! # Ok(())
//! # }
//! ```
//!
//! The instances of a service are a group: one of them gets each event, and while all are offline
//! the event waits. A [broadcast](crate::Subscription::broadcast) reaches every instance, a
//! [singleton](crate::Subscription::singleton) one subscriber in the whole system.
//!
//! # Batches
//!
//! A message costs far more than its contents. A [`Batch`](crate::Batch) holds any number of calls
//! to one service, each with its own type of reply and its own error; 500 go into a message, and
//! the service's workers share them. Where many threads make single calls,
//! [`coalesce`](crate::client::ServiceClientBuilder::coalesce) lets calls share messages that wait
//! to be sent at the same moment, without a delay. Services that do not know batches get the calls
//! one by one.
//!
//! ```
//! # use coney::{Broker, ServiceClient, ServiceServer};
//! # fn main() -> coney::Result<()> {
//! # let broker = Broker::memory();
//! # let _server = ServiceServer::builder(&broker, "math")
//! #     .respond("double", |n: u64| n * 2).start()?;
//! # let client = ServiceClient::new(&broker, "front")?;
//! let mut batch = client.batch("math");
//! for n in 0..1_000 {
//!     batch.add::<u64>("double", &n);
//! }
//! for (n, double) in batch.call().into_results::<u64>().into_iter().enumerate() {
//!     assert_eq!(double?, 2 * n as u64);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Discovery
//!
//! A call needs no registry: it goes into the service's queue, and a free instance takes it. A
//! [`Registry`](crate::Registry) adds the instances: servers register with a description, and
//! renew a heartbeat every 15 s; an instance without one for 60 s is dead. Clients with the
//! registry fail at once if a service has no live and healthy instance, and may address
//! [one instance](crate::CallOptions::instance) or let a
//! [balancer](crate::client::ServiceClientBuilder::balancer) pick: one of
//! [`balance`](crate::balance), or a closure of your own.
//!
//! ```
//! use coney::balance::LowestLatency;
//! use coney::{Broker, Instance, Registry, ServiceClient, ServiceServer};
//!
//! # fn main() -> coney::Result<()> {
//! let (broker, registry) = (Broker::memory(), Registry::memory());
//! let _server = ServiceServer::builder(&broker, "user-service")
//!     .respond("get_user", |id: u64| format!("user {id}"))
//!     .registry(&registry)
//!     .instance(Instance::new().with_version("1.4.2"))
//!     .start()?;
//! let client = ServiceClient::builder(&broker, "shop")
//!     .registry(&registry)
//!     .balancer(LowestLatency)
//!     .build()?;
//! assert_eq!(client.call::<String>("user-service", "get_user", &7)?, "user 7");
//! # Ok(())
//! # }
//! ```
//!
//! In Redis the registry is `coney::redis::Redis::new(url)?.registry()`. Look-ups are answered
//! from a cache, in under a microsecond. A store that does not answer stops no call: look-ups
//! return the last known instances, [marked as stale](crate::registry::Lookup::stale_reason).
//!
//! # Failure
//!
//! Every operation ends by its deadline. [`Error::kind`](crate::Error::kind) classifies the
//! failure and [`Error::is_safe_to_retry`](crate::Error::is_safe_to_retry) says whether the request
//! certainly did not run:
//!
//! ```
//! use std::time::Duration;
//! use coney::{Broker, CallOptions, ErrorKind, Phase, ServiceClient, ServiceServer};
//!
//! # fn main() -> coney::Result<()> {
//! # let broker = Broker::memory();
//! # let _server = ServiceServer::builder(&broker, "slow")
//! #     .respond("nap", |()| std::thread::sleep(Duration::from_millis(200))).start()?;
//! # let client = ServiceClient::new(&broker, "shop")?;
//! let options = CallOptions::new().timeout(Duration::from_millis(50));
//! let error = client.call_with::<()>("slow", "nap", &(), &options).unwrap_err();
//! assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Reply)));
//! assert!(!error.is_safe_to_retry()); // the handler may have run
//!
//! let error = client.call::<()>("no-such-service", "nap", &()).unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::NoRoute);
//! assert!(error.is_safe_to_retry()); // nothing ran
//! # Ok(())
//! # }
//! ```
//!
//! A handler that has too much to do, and has not begun, returns
//! [`HandlerError::busy`](crate::HandlerError::busy): the caller gets
//! [`ErrorKind::Busy`](crate::ErrorKind::Busy), and a command comes back later without having used up
//! an attempt.
//!
//! # Resilience
//!
//! By default a client sends each call once, and the caller decides what a failure means. With
//! [`Resilience`](crate::resilience::Resilience) the client does, for the services that are slow,
//! failing, overloaded or gone:
//!
//! | policy | what it does |
//! | --- | --- |
//! | [`Retry`](crate::resilience::Retry) | tries again what certainly did not run, within a budget and the deadline |
//! | [`Breaker`](crate::resilience::Breaker) | refuses calls at once while the service fails, and probes whether it is back |
//! | [`Throttle`](crate::resilience::Throttle) | holds calls back while the service answers that it is busy |
//! | [`Ejection`](crate::resilience::Ejection) | with a balancer, leaves out an instance that fails or is slow |
//! | [`RateLimit`](crate::resilience::RateLimit), [`max_in_flight`](crate::resilience::Resilience::max_in_flight) | bound what is sent to a service; a server [limits](crate::server::ServiceServerBuilder::limit) what it takes by the same type |
//!
//! A [`fallback`](crate::client::ServiceClientBuilder::fallback) answers in the place of a service
//! that [is unavailable](crate::Error::is_unavailable):
//!
//! ```
//! use coney::client::Origin;
//! use coney::resilience::{Refusal, Resilience};
//! use coney::{Broker, CallOptions, ServiceClient};
//!
//! # fn main() -> coney::Result<()> {
//! let client = ServiceClient::builder(&Broker::memory(), "shop")
//!     .resilience(Resilience::new())
//!     .fallback("reviews", "stars", |_article: &u64, _error| Some(Vec::<u8>::new()))
//!     .build()?;
//! let stars = client.call_detailed::<Vec<u8>>("reviews", "stars", &7, &CallOptions::new())?;
//! assert_eq!(stars.origin(), Origin::Fallback);
//! assert_eq!(stars.attempts(), 3); // the service might have come up meanwhile
//!
//! if let Some(breaker) = client.breaker("pay-service") {
//!     breaker.hold_open(std::time::Duration::from_secs(60));
//! }
//! let error = client.call::<()>("pay-service", "charge", &5).unwrap_err();
//! assert_eq!(error.refused_by(), Some(Refusal::Breaker));
//! # Ok(())
//! # }
//! ```
//!
//! The policies always work in [one order](crate::resilience::Resilience), and no call outlasts its
//! deadline. A [`CallLayer`](crate::client::CallLayer) is code of the program's around each call or
//! each attempt: to add headers, to measure, to refuse. A
//! [`ResponseCache`](crate::cache::ResponseCache) keeps answers, and has stale ones for a service that
//! is gone.
//!
//! A lost connection is repaired in the background. The errors and panics of a handler become
//! error replies. In a handler, the error of a nested call keeps its kind and code
//! ([`HandlerError`](crate::HandlerError)); its caller gets the code, as a reply of this service.
//!
//! # Testing
//!
//! [`Broker::memory`](crate::Broker::memory) and
//! [`Registry::memory`](crate::Registry::memory) start in microseconds and need nothing: each test
//! makes its own. Write services as functions over a `&Broker`; the program gives them RabbitMQ:
//!
//! ```
//! use coney::{Broker, ServiceClient, ServiceServer};
//!
//! fn start(broker: &Broker) -> coney::Result<ServiceServer> {
//!     ServiceServer::builder(broker, "math")
//!         .respond("double", |n: u64| n * 2)
//!         .start()
//! }
//!
//! # fn main() -> coney::Result<()> {
//! // In a test:
//! let broker = Broker::memory();
//! let _server = start(&broker)?;
//! let client = ServiceClient::new(&broker, "test")?;
//! assert_eq!(client.call::<u64>("math", "double", &2)?, 4);
//! # Ok(())
//! # }
//! ```
//!
//! # Operations
//!
//! **Readiness** is one line, `broker.is_connected() && server.state().is_healthy()`:
//! [`Broker::is_connected`](crate::Broker::is_connected),
//! [`ServiceServer::state`](crate::ServiceServer::state) and
//! [`EventSubscriber::state`](crate::EventSubscriber::state) do not block. A server or subscriber is
//! not healthy once its shutdown has begun, nor while the broker refuses one of its consumers. A
//! [health check](crate::server::ServiceServerBuilder::health_check) that fails three times in a
//! row makes the server stop consuming until it passes twice; with
//! [`pause_on_failures`](crate::server::ServiceServerBuilder::pause_on_failures) so does a large
//! share of failed attempts, for half a minute at a time.
//!
//! **Dead letters.** [`DeadLetters`](crate::DeadLetters) lists, replays and purges; the example
//! `dead_letters` does so from the command line.
//!
//! **Logs** go through the [`log`](https://docs.rs/log) facade, with the targets
//! `coney::amqp`, `coney::client`, `coney::server`, `coney::events`, `coney::worker`,
//! `coney::registry`, `coney::transport`, `coney::dead_letters` and, for lines that were dropped
//! because the logger is too slow, `coney::log`. No line of any level contains
//! a password, and no line of these targets a payload or the value of a header. At `trace` amiquip
//! logs whole frames, on the thread that sends: filter it (`RUST_LOG=debug,amiquip=info`). A logger
//! may itself use coney; only on lines of the target `amiquip` such a call fails at once with
//! [`ErrorKind::Misuse`](crate::ErrorKind::Misuse), because it would wait for itself.
//!
//! **A fork.** A child process has none of its parent's threads. Its copies of a
//! [`Broker`](crate::Broker) fail at once with [`ErrorKind::Misuse`](crate::ErrorKind::Misuse), also
//! for calls that the parent made. Dropping them leaves the parent's connection alone. Connect
//! after the fork.
