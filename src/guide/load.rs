//! A server under load: what it does when more arrives than it can handle, and what its callers and
//! its operators see of that.
//!
//! | setting | when too much arrives |
//! | --- | --- |
//! | [`workers(2..=32)`](crate::server::ServiceServerBuilder::workers) | there are more workers, as long as they help |
//! | [`shed`](crate::server::ServiceServerBuilder::shed) | calls that would be answered too late are refused at once |
//! | [`at_most`](crate::server::ServiceServerBuilder::at_most) | an expensive action leaves workers to the others |
//! | [`limit`, `limit_by`](crate::server::ServiceServerBuilder::limit) | no more requests run than a rate allows, for all or for each key |
//! | [`pause_on_failures`](crate::server::ServiceServerBuilder::pause_on_failures) | a server whose handlers fail takes nothing more for a while |
//! | [`handler_timeout`](crate::server::ServiceServerBuilder::handler_timeout) | a worker whose handler hangs is replaced |
//! | [`max_backlog`](crate::client::ServiceClientBuilder::max_backlog) | senders of commands wait |
//!
//! Only calls are refused, and each refusal is an answer
//! ([`ErrorKind::Busy`](crate::ErrorKind::Busy)) that names the time after which another attempt is
//! worth while; nothing has run. A client with
//! [`Resilience`](crate::resilience::Resilience) waits for that long, and sends less while it is
//! refused: to all actions of the service, as its throttle counts a refusal by a limit or a bound too
//! (give an action with a tight limit a client of its own, or
//! [`resilience_for`](crate::client::ServiceClientBuilder::resilience_for)). A call that is retried
//! late may end as timed out: for quick answers set a short timeout, since the default bound of `shed`
//! is a quarter of it. Commands and events are never refused: they wait, in the broker, and that uses up no
//! attempt.
//!
//! ```
//! use std::time::Duration;
//!
//! use coney::resilience::RateLimit;
//! use coney::server::{Scaling, Shed};
//! use coney::{Broker, Context, ServiceServer};
//!
//! let server = ServiceServer::builder(&Broker::memory(), "shop")
//!     .respond("price", |article: u64| article * 100)
//!     .respond("report", |year: u32| format!("sales of {year}"))
//!     .workers(2..=32)
//!     .scaling(Scaling::new().target_wait(Duration::from_millis(20)))
//!     .shed(Shed::new())
//!     .at_most("report", 2)
//!     .limit_by("price", RateLimit::per_second(50), |context: &Context<'_>| {
//!         context.source_service().to_owned()
//!     })
//!     .start()?;
//! assert_eq!(server.load().workers, 2);
//! # Ok::<(), coney::Error>(())
//! ```
//!
//! # The estimated wait
//!
//! Workers are added, and calls refused, by one number: the time for which a request that arrives
//! now would wait. It is the number of messages that wait, times the mean time of the handlers,
//! divided by the number of workers, so no clock of another machine is in it. The queue is counted
//! every 100 ms, over a connection of its own, and only while all workers are busy.
//! [`ServiceServer::load`](crate::ServiceServer::load) shows it.
//!
//! A load needs as many workers as its rate times the time of a handler: 300 calls a second of 30 ms
//! need nine. More than that is no overload, only a reason for more workers.
//!
//! # A command for later
//!
//! [`SendOptions::after`](crate::SendOptions::after) delays a command by up to 30 days, and
//! [`HandlerError::retry_after`](crate::HandlerError::retry_after) the next attempt at one. The
//! message waits in RabbitMQ, and no process has to run meanwhile.
//!
//! # Several processes
//!
//! All servers of a service share its queue, so more processes help as more workers do. coney starts
//! none; an autoscaler can, by the number of messages that wait. With KEDA:
//!
//! ```yaml
//! triggers:
//!   - type: rabbitmq
//!     metadata: { hostFromEnv: AMQP_URL, queueName: service.shop.request, mode: QueueLength, value: "100" }
//! ```
//!
//! A program reads the same number by [`Broker::queue_depth`](crate::Broker::queue_depth). For a
//! horizontal pod autoscaler, export `server.load().estimated_wait` as a metric of each pod, with a
//! target of, for example, 100 ms; for systemd or a script, start another process while
//! `is_saturated` is true for a minute:
//!
//! ```
//! # use coney::{Broker, ServiceServer};
//! # let broker = Broker::memory();
//! # let server = ServiceServer::builder(&broker, "shop").respond("price", |n: u64| n).start()?;
//! let depth = broker.queue_depth("service.shop.request")?;
//! let load = server.load();
//! println!(
//!     "{} wait for {} servers; here {} of {} workers are busy, and a request waits for {:?}",
//!     depth.messages, depth.consumers, load.running, load.workers, load.estimated_wait
//! );
//! # Ok::<(), coney::Error>(())
//! ```
