//! The settings of a server's health: its checks, and the pause when too many attempts fail.

use std::fmt;
use std::time::Duration;

use super::ServiceServerBuilder;
use super::health::Check;
use crate::consumer::PauseOnFailures;

impl ServiceServerBuilder {
    /// Adds a check of something that the handlers need, such as a database. It runs every
    /// [`health_interval`](ServiceServerBuilder::health_interval) on a thread of
    /// the server's, `coney-health-SERVICE`, one check after the other; a panic is a failure.
    ///
    /// While a check fails, with or without a registry, the server consumes nothing: requests
    /// that it has not begun go to the other instances, and calls without a look-up wait for it
    /// or for another instance. In the registry the instance is marked as unhealthy, and
    /// look-ups leave it out. Every reader of the registry can read the check's error, of which
    /// 200 bytes are stored: it should have no secret in it.
    ///
    /// A check should have a timeout of its own: while one hangs, the last result stands.
    /// [`start`](ServiceServerBuilder::start) waits for the first round of all checks, and
    /// treats one of over 10 s as a failure.
    ///
    /// ```
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .respond("get_user", |id: u64| id)
    ///     .health_check("disk", || std::fs::metadata("/").map(drop))
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn health_check<E, F>(mut self, name: impl Into<String>, check: F) -> Self
    where
        F: Fn() -> std::result::Result<(), E> + Send + Sync + 'static,
        E: fmt::Display,
    {
        self.checks.push(Check {
            name: name.into(),
            run: Box::new(move || check().map_err(|error| error.to_string())),
            fails_at_once: false,
        });
        self
    }

    /// Sets the pause between two rounds of checks, at least 1 ms. Defaults to 5 s.
    pub fn health_interval(mut self, interval: Duration) -> Self {
        self.health_interval = interval;
        self
    }

    /// Sets the number of failures of a check in a row after which the server stops consuming.
    /// At the start, and while the server is unhealthy, one failure is enough. 0 counts as 1.
    /// Defaults to 3.
    pub fn health_failures(mut self, failures: u32) -> Self {
        self.health_failures = failures;
        self
    }
    /// Sets the number of rounds in a row in which all checks pass after which an unhealthy server
    /// consumes again: a database that comes back for a moment is no reason to. 0 counts as 1.
    /// Defaults to 2.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .respond("get_user", |id: u64| id)
    ///     .health_check("disk", || std::fs::metadata("/").map(drop))
    ///     .health_interval(Duration::from_secs(1))
    ///     .health_failures(5)
    ///     .health_successes(3)
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn health_successes(mut self, successes: u32) -> Self {
        self.health_successes = successes;
        self
    }

    /// Makes the server stop consuming for a while when too large a share of the attempts fails: a
    /// kill switch. Requests stay in the queue or go to other instances, as while a
    /// [health check](ServiceServerBuilder::health_check) fails, and the reason is in the
    /// [state](crate::ServiceServer::state) and in the registry. Defaults to off.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use coney::server::PauseOnFailures;
    /// use coney::{Broker, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "mailer")
    ///     .handler("mail", |_: String| Err::<(), _>("no network"))
    ///     .pause_on_failures(PauseOnFailures::new().pause_for(Duration::from_secs(60)))
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    #[doc(alias = "kill switch")]
    pub fn pause_on_failures(mut self, settings: PauseOnFailures) -> Self {
        self.pause_on_failures = Some(settings);
        self
    }
}
