//! The handle on a Redis server, and its options.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use r2d2::{NopErrorHandler, Pool};
use r2d2_redis::redis::{self, Cmd, FromRedisValue, RedisError, Value};
use scheduled_thread_pool::ScheduledThreadPool;

use super::manager::Manager;
use super::url::Address;
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};

/// A handle on a Redis server: a pool of connections for registries and reply stores.
///
/// Clones share the pool and are cheap. Connections are made when they are needed, so Redis
/// may be down when the handle is created. It must be one server (or a primary with replicas)
/// of version 5 or later, not a cluster.
///
/// ```
/// use std::time::Duration;
/// use coney::redis::Redis;
///
/// let redis = Redis::builder("redis://:secret@localhost:6379/0")
///     .timeout(Duration::from_millis(500))
///     .build()?;
/// assert_eq!(redis.address(), "localhost:6379/0");
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct Redis {
    pool: Pool<Manager>,
    address: Arc<str>,
    timeout: Duration,
}

/// Options of a [`Redis`] handle; made by [`Redis::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until build is called"]
pub struct RedisBuilder {
    address: Result<Address>,
    timeout: Duration,
    connections: u32,
}

/// The longest timeout, an hour.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

impl Redis {
    /// Creates a handle with the default options. Does not connect.
    ///
    /// The URL is `redis://user:password@host:port/database`. Without user and password there
    /// is no login; host, port and database default to `localhost`, `6379` and `0`.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::InvalidConfig`] if the URL cannot be used. The text never contains
    /// the password.
    pub fn new(url: &str) -> Result<Self> {
        Self::builder(url).build()
    }

    /// Returns a builder for a handle with other options. An invalid URL is reported by
    /// [`build`](RedisBuilder::build).
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder {
            address: Address::parse(url),
            timeout: Duration::from_millis(700),
            connections: 4,
        }
    }

    /// Checks that Redis answers: for the health check of a service that needs it. Blocks for
    /// at most the [`timeout`](RedisBuilder::timeout).
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Registry`] if it does not answer.
    ///
    /// ```
    /// # use coney::redis::Redis;
    /// # use coney::{Broker, ServiceServer};
    /// let redis = Redis::new("redis://localhost")?;
    /// let builder = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .respond("get_user", |id: u64| id)
    ///     .health_check("redis", move || redis.ping());
    /// # let _ = builder;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn ping(&self) -> Result<()> {
        let answer: String = self.ask("ping", &redis::cmd("PING"))?;
        match &*answer {
            "PONG" => Ok(()),
            _ => Err(self.failed("ping", "it does not answer PING with PONG")),
        }
    }

    /// Returns host, port and database as `host:port/database`, without credentials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends one command. Blocks until its reply has arrived, at most the timeout. `what`
    /// completes the error text "cannot …".
    pub(super) fn ask<T: FromRedisValue>(&self, what: &str, command: &Cmd) -> Result<T> {
        let replies = self.ask_all(what, std::slice::from_ref(command))?;
        let reply = replies.into_iter().next().unwrap_or(Value::Nil);
        T::from_redis_value(&reply).map_err(|error| self.failed(what, &explain(&error)))
    }

    /// Sends several commands in one round trip. Blocks until all replies have arrived, at
    /// most the timeout.
    pub(super) fn ask_all(&self, what: &str, commands: &[Cmd]) -> Result<Vec<Value>> {
        let deadline = deadline::after(self.timeout);
        let explain = |error: RedisError| match error.is_timeout() {
            true => self.failed(what, &format!("no answer within {:?}", self.timeout)),
            false => self.failed(what, &explain(&error)),
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut conn = self.pool.get_timeout(left).map_err(|error| {
                let text = error.to_string();
                let cause = text.split_once("connection: ").map(|(_, cause)| cause);
                self.failed(what, cause.unwrap_or("no connection within the timeout"))
            })?;
            match conn.check(deadline) {
                Ok(()) => return conn.ask(commands, deadline).map_err(explain),
                Err(error) if Instant::now() >= deadline => return Err(explain(error)),
                Err(_) => {} // Redis had closed it: take the next one
            }
        }
    }

    pub(super) fn failed(&self, what: &str, cause: &str) -> Error {
        let address = &self.address;
        Error::new(
            ErrorKind::Registry,
            format!("cannot {what} in Redis at {address}: {cause}"),
        )
    }
}

impl RedisBuilder {
    /// Sets the time for getting a connection and the reply together. Defaults to 700 ms: less
    /// than the look-up timeout, so that the error of a look-up has the cause. At most an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST_TIMEOUT);
        self
    }

    /// Sets the maximum number of connections. Defaults to 4. A registry uses two, a shared rate
    /// limit one; a reply store uses one for each worker that is waiting for it.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Creates the handle. Does not connect.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::InvalidConfig`] if the URL cannot be used, or if the timeout or the
    /// number of connections is zero.
    pub fn build(self) -> Result<Redis> {
        let server = self.address?;
        if self.timeout.is_zero() || self.connections == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "Redis needs a timeout and at least one connection",
            ));
        }
        let address = server.address().into();
        // They make connections: two, so that one attempt that hangs does not block the next.
        let threads = ScheduledThreadPool::builder()
            .num_threads(2)
            .thread_name_pattern("coney-redis-{}")
            .build();
        let pool = Pool::builder()
            .max_size(self.connections)
            .min_idle(Some(0))
            .connection_timeout(self.timeout)
            .test_on_check_out(false)
            .thread_pool(Arc::new(threads))
            // Callers that wait for a connection get the error: no log line for each attempt.
            .error_handler(Box::new(NopErrorHandler))
            .build_unchecked(Manager::new(server, self.timeout));
        Ok(Redis {
            pool,
            address,
            timeout: self.timeout,
        })
    }
}

/// Returns the text of an error, with Redis's own code and detail where it sent them.
fn explain(error: &RedisError) -> String {
    let text = match (error.code(), error.detail()) {
        (Some(_), Some(detail)) if detail.contains('\n') => {
            return "it does not speak Redis's protocol; is the port (6379) right?".to_owned();
        }
        (Some(code @ ("MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN")), _) => format!(
            "it runs in cluster mode ({code}), in which a service's keys are on several servers; \
             coney needs one Redis server (or a primary with replicas)"
        ),
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (None, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    };
    match error.is_io_error() {
        true => format!("the connection was lost ({text})"),
        false => text,
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
