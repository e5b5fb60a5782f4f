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

/// A handle on a Redis server, for a [`RedisRegistryStore`] or a [`RedisReplyStore`].
///
/// Cheap to clone and free to share: all clones use one pool of connections, which
/// are made when they are needed. So Redis may be down when this is made. It must be
/// one server, of version 5 or later, not a cluster.
///
/// ```
/// use std::time::{Duration, Instant};
/// use coney::Redis;
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
    peer: Arc<str>,
    timeout: Duration,
}

/// Options for a [`Redis`]; made by [`Redis::builder`].
#[derive(Debug)]
#[must_use = "nothing is made before build"]
pub struct RedisBuilder {
    address: Result<Address>,
    timeout: Duration,
    connections: u32,
}

/// More than anybody waits.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

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
            address: Address::parse(url),
            timeout: Duration::from_millis(700),
            connections: 4,
        }
    }

    /// Checks that Redis answers: for a health check of a service that needs it. Blocks at
    /// most the timeout.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`] if it does not.
    ///
    /// ```
    /// # use coney::{Broker, Redis, ServiceServer};
    /// let redis = Redis::new("redis://localhost")?;
    /// let builder = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .handler("get_user", |id: u64| Ok::<_, String>(id))
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

    /// Where it is: host, port and database.
    pub fn address(&self) -> &str {
        &self.peer
    }

    /// Asks one thing. Blocks until it is answered, at most the timeout. `what` completes
    /// "cannot …".
    pub(super) fn ask<T: FromRedisValue>(&self, what: &str, command: &Cmd) -> Result<T> {
        let answers = self.ask_all(what, std::slice::from_ref(command))?;
        let answer = answers.into_iter().next().unwrap_or(Value::Nil);
        T::from_redis_value(&answer).map_err(|error| self.failed(what, &explain(&error)))
    }

    /// Asks several things in one round trip. Blocks until all are answered, at most the
    /// timeout.
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
                Err(_) => {} // it had been closed: the next one
            }
        }
    }

    pub(super) fn failed(&self, what: &str, cause: &str) -> Error {
        let peer = &self.peer;
        Error::new(
            ErrorKind::Registry,
            format!("cannot {what} in Redis at {peer}: {cause}"),
        )
    }
}

impl RedisBuilder {
    /// How long to wait for a connection and the answer together. Default: 700 ms,
    /// less than a look-up waits, so that it can say what is wrong; the most is an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST_TIMEOUT);
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
        let address = self.address?;
        if self.timeout.is_zero() || self.connections == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "Redis needs a timeout and at least one connection",
            ));
        }
        let peer = address.address().into();
        // They make connections; one that hangs must not hold up the next.
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
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
