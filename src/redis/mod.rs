//! Redis: a pool of connections that never wait for ever, and what coney keeps there.

mod manager;
mod registry;
mod replies;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use r2d2::{NopErrorHandler, Pool};
use r2d2_redis::redis::{Connection, RedisError, RedisResult};
use scheduled_thread_pool::ScheduledThreadPool;

use self::manager::Manager;
pub use self::registry::RedisRegistry;
pub use self::replies::RedisReplyStore;
use self::url::Address;
use crate::error::{Error, ErrorKind, Result};

/// A handle on a Redis server, for a [`RedisRegistry`] or a [`RedisReplyStore`].
///
/// Cheap to clone and free to share: all clones use one pool of connections, which
/// are made when they are needed. So Redis may be down when this is made. It must be
/// one server, of version 5 or later, not a cluster.
///
/// ```
/// use std::time::Duration;
/// use coney::Redis;
///
/// let redis = Redis::builder("redis://:secret@localhost:6379/0")
///     .timeout(Duration::from_millis(500))
///     .build()?;
/// assert_eq!(redis.peer(), "localhost:6379/0");
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct Redis {
    pool: Pool<Manager>,
    peer: Arc<str>,
    timeout: Duration,
}

/// Options for a [`Redis`]; made by [`Redis::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is made before build"]
pub struct RedisBuilder {
    url: String,
    timeout: Duration,
    connections: u32,
}

impl Redis {
    /// With the default options. The URL is `redis://user:password@host:port/database`;
    /// what is left out is no login, `localhost`, `6379` and `0`. Does not connect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the URL cannot be used. It never contains the
    /// password.
    pub fn new(url: &str) -> Result<Self> {
        Self::builder(url).build()
    }

    /// Options for a handle.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder {
            url: url.to_owned(),
            timeout: Duration::from_secs(1),
            connections: 4,
        }
    }

    /// Where it is: host, port and database.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Does something over a connection. Blocks until there is one, at most the
    /// timeout, and then for the answer, at most that again. `what` completes "cannot …".
    ///
    /// After an error the connection is not used again: the answer to what was asked
    /// may still come, and would be taken for that to the next question.
    fn run<T>(&self, what: &str, act: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T> {
        let peer = &self.peer;
        let mut pooled = self.pool.get_timeout(self.timeout).map_err(|error| {
            let text = error.to_string();
            let cause = text
                .rsplit_once("connection: ")
                .map_or("no answer", |(_, it)| it);
            Error::new(
                ErrorKind::Registry,
                format!("cannot {what}: no connection to Redis at {peer}: {cause}"),
            )
        })?;
        pooled.run(act).map_err(|error| {
            let timeout = self.timeout;
            let cause = match error.is_io_error() && error.is_timeout() {
                true => format!("no answer within {timeout:?}"),
                false => explain(&error),
            };
            Error::new(
                ErrorKind::Registry,
                format!("cannot {what}: Redis at {peer}: {cause}"),
            )
        })
    }
}

impl RedisBuilder {
    /// How long to wait for a connection, and then for an answer. Default: 1 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many connections there may be at a time. A registry uses two; a reply store
    /// one for each worker that is busy with it. Default: 4.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Makes the handle. Does not connect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the URL cannot be used, or a limit is zero.
    pub fn build(self) -> Result<Redis> {
        let address = Address::parse(&self.url)?;
        if self.timeout.is_zero() || self.connections == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "Redis needs a timeout and at least one connection",
            ));
        }
        let peer = address.peer().into();
        // They make connections; one that hangs must not hold up the next.
        let threads = ScheduledThreadPool::builder()
            .num_threads(2)
            .thread_name_pattern("coney-redis-{}")
            .build();
        let pool = Pool::builder()
            .max_size(self.connections)
            .min_idle(Some(0))
            .connection_timeout(self.timeout)
            .thread_pool(Arc::new(threads))
            // Whoever waits for a connection is told; a line for each try says no more.
            .error_handler(Box::new(NopErrorHandler))
            .build_unchecked(Manager::new(address, self.timeout));
        Ok(Redis {
            pool,
            peer,
            timeout: self.timeout,
        })
    }
}

/// An error in Redis's own words, as far as it has any.
fn explain(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (None, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
