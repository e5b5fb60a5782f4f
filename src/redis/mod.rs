//! Registry, reply store and shared rate limits in Redis, over a pool of connections with deadlines.
//!
//! Begin with a [`Redis`] handle: [`registry`](Redis::registry) returns a registry for
//! servers and clients, [`reply_store`](Redis::reply_store) a reply store for servers that
//! deduplicate requests, and [`RateLimit::shared`](crate::resilience::RateLimit::shared) counts the
//! calls of several processes in it. The module needs the feature `redis`, which is on by default.
//!
//! ```
//! use coney::redis::Redis;
//!
//! let registry = Redis::new("redis://localhost")?.registry();
//! # let _ = registry;
//! # Ok::<(), coney::Error>(())
//! ```

mod handle;
mod manager;
mod registry_store;
mod reply_store;
mod scripts;
mod token_source;
mod url;
mod written;

pub use self::handle::{Redis, RedisBuilder};
pub use self::registry_store::RedisRegistryStore;
pub use self::reply_store::RedisReplyStore;
