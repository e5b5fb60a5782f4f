//! Redis: a pool of connections with deadlines, and the stores that coney keeps there.

mod handle;
mod manager;
mod registry;
mod replies;
mod scripts;
mod url;

pub use self::handle::{Redis, RedisBuilder};
pub use self::registry::RedisRegistryStore;
pub use self::replies::RedisReplyStore;
