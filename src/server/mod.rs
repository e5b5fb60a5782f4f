//! The serving side: deliveries in, handlers on a pool of workers, replies out.

mod builder;
mod health;
mod intake;
mod start;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub use self::builder::ServiceServerBuilder;
use self::health::Health;
use self::intake::Consumers;
use crate::deadline;
use crate::error::Result;
use crate::registry::{Registration, RegistrationState};
use crate::transport::Broker;

/// A running service: takes requests from its queue, runs handlers on its
/// workers, replies, and acknowledges after the reply.
///
/// Several servers of one service, here or on other machines, share the queue:
/// each request goes to one of them. Keep the server as long as it is to serve:
/// dropping it shuts it down. Its queue stays, and keeps what callers send, until
/// the next server of the service takes it.
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, ServiceServer};
///
/// let server = ServiceServer::builder(&Broker::memory(), "math")
///     .handler("double", |n: u64| Ok::<_, String>(n * 2))
///     .handler("divide", |(a, b): (u64, u64)| {
///         a.checked_div(b).ok_or("division by zero")
///     })
///     .start()?;
/// server.shutdown(Duration::from_secs(10))?;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the server shuts it down"]
pub struct ServiceServer {
    service: String,
    consumers: Arc<Consumers>,
    registration: Option<Arc<Registration>>,
    health: Mutex<Option<Health>>,
    shutdown_timeout: Duration,
    stopped: AtomicBool,
    /// Keeps the connection open as long as the server runs.
    _broker: Broker,
}

impl ServiceServer {
    /// Options and handlers for a server of `service`.
    pub fn builder(broker: &Broker, service: &str) -> ServiceServerBuilder {
        ServiceServerBuilder::new(broker, service)
    }

    /// The service it serves.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The id by which this instance is registered, where it has a
    /// [registry](ServiceServerBuilder::registry).
    pub fn instance_id(&self) -> Option<&str> {
        self.registration.as_deref().map(Registration::id)
    }

    /// Whether this instance is in its registry, as far as is known; `None` without a
    /// registry. Starting does not fail where the registry cannot be reached: this tells.
    pub fn registration_state(&self) -> Option<RegistrationState> {
        self.registration.as_deref().map(Registration::state)
    }

    /// Deregisters, stops consuming, lets running handlers finish, reply and acknowledge,
    /// and ends every worker. Requests that were fetched but not started go
    /// back to the queue, for other servers of the service. A registry that does not answer
    /// is no error: the instance then counts as dead after a while.
    ///
    /// Blocks until all that is done, at most `timeout`. A second call finds
    /// nothing left to do. Not for the server's own handlers, which it would
    /// wait for: there it does nothing and fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if handlers still
    /// run. Their requests go back to the queue, their replies are dropped,
    /// and their threads end when they do. [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if a
    /// handler of this server calls it.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        let workers = &self.consumers.intake.workers;
        workers.check_not_one_of_them()?;
        let deadline = deadline::after(timeout);
        // A registry or a broker that does not answer must not use up the handlers' time.
        if let Some(registration) = &self.registration
            && let Err(error) = registration.deregister(timeout / 4)
        {
            log::warn!(target: "coney::server", "{}: {error}", self.service);
        }
        self.consumers.closed.store(true, Ordering::SeqCst);
        if let Some(health) = self.health.lock().take() {
            health.stop(deadline::after(timeout / 8));
        }
        self.consumers.pause(deadline::after(timeout / 4));
        self.consumers.give_back_jobs(workers.stop());
        let finished = workers.finish(deadline, timeout);
        self.consumers.close();
        if !self.stopped.swap(true, Ordering::Relaxed) {
            log::info!(target: "coney::server", "{} has stopped", self.service);
        }
        finished
    }
}

impl Drop for ServiceServer {
    fn drop(&mut self) {
        if self.consumers.intake.workers.is_one_of_them() {
            drop(self.consumers.intake.workers.stop());
            return self.consumers.close();
        }
        if let Err(error) = self.shutdown(self.shutdown_timeout) {
            log::warn!(target: "coney::server", "{error}");
        }
    }
}

impl fmt::Debug for ServiceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceServer")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
