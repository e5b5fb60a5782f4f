//! The response cache: stored responses of actions, with single flight, and invalidated by events.
//!
//! A client with a [`ResponseCache`] answers repeated calls in the calling thread:
//!
//! - A response is returned while it is fresh. If the settings say so, it is returned a while longer
//!   while it is refreshed in the background, and longer still if the service is unavailable.
//! - Callers that need the same response at the same time send one request. Each waits until its own
//!   deadline. An error of the one that calls is the error of all that wait for it, except a
//!   timeout: then the one with most time left calls next, if that can help.
//! - Events invalidate responses by their tags. A process that is connected uses none that an event
//!   has invalidated, once the event has arrived, a few milliseconds after the broker has confirmed
//!   it. When the connection was lost, no earlier response is fresh.
//! - The stored bytes are bounded.
//!
//! The store is [quick_cache](https://crates.io/crates/quick_cache). Its single flight is not used:
//! it cannot share an error, nor replace a response that is present and stale, nor hand over.
//!
//! ```
//! use std::time::Duration;
//! use coney::cache::{Cached, ResponseCache};
//! use coney::{Broker, EventPublisher, ServiceClient, ServiceServer};
//!
//! let broker = Broker::memory();
//! let server = ServiceServer::builder(&broker, "user-service")
//!     .respond("get_name", |user_id: u64| format!("user {user_id}"))
//!     .start()?;
//! let cache = ResponseCache::new();
//! let names = Cached::fresh_for(Duration::from_secs(60))
//!     .tags(|user_id: &u64| [*user_id])
//!     .invalidated_by("user.renamed", |user_id: &u64| [*user_id]);
//! let client = ServiceClient::builder(&broker, "shop")
//!     .cache(&cache, "user-service", "get_name", names)
//!     .build()?;
//! let name: String = client.call("user-service", "get_name", &7)?;
//! assert_eq!(name, "user 7");
//! // In the user service, after the change:
//! EventPublisher::new(&broker, "user-service")?.publish("user.renamed", &7)?;
//! # Ok::<(), coney::Error>(())
//! ```

mod action;
#[cfg(test)]
mod action_tests;
mod builder;
mod cached;
mod cached_action;
#[cfg(test)]
mod cached_action_tests;
mod core;
mod entries;
mod epoch;
mod fill;
mod flight;
mod flights;
#[cfg(test)]
mod flights_shuttle_tests;
#[cfg(test)]
mod flights_tests;
mod invalidation;
#[cfg(test)]
mod invalidation_tests;
mod job_thread;
mod key;
mod response_cache;
mod standing;
mod stats;
#[cfg(test)]
mod support_tests;
mod sync;
mod tags;

pub use self::cached::Cached;
pub use self::response_cache::ResponseCache;
pub use self::stats::CacheStats;
