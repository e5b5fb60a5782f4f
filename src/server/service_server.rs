//! A running server.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::health::Health;
use super::sources::Consumers;
use crate::base::deadline;
use crate::consumer::{Left, LoadThread, WorkerLoad, drain};
use crate::error::{Error, Phase, Result};
use crate::registry::{Registration, RegistrationState};
use crate::topology;
use crate::transport::Broker;

/// A running service: takes requests from its queue, runs handlers on its
/// workers, replies, and acknowledges after the reply.
///
/// Several servers of one service, in one process or on many machines, share the queue:
/// each request goes to one of them. Keep the server as long as it should serve:
/// dropping it shuts it down. Its queue stays, and keeps the callers' requests until
/// the next server of the service consumes them.
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, ServiceServer};
///
/// let server = ServiceServer::builder(&Broker::memory(), "math")
///     .respond("double", |n: u64| n * 2)
///     .handler("divide", |(a, b): (u64, u64)| {
///         a.checked_div(b).ok_or("division by zero")
///     })
///     .start()?;
/// server.shutdown(Duration::from_secs(10))?;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the server shuts it down"]
pub struct ServiceServer {
    pub(super) service: String,
    pub(super) consumers: Arc<Consumers>,
    pub(super) registration: Option<Arc<Registration>>,
    pub(super) health: Mutex<Option<Health>>,
    pub(super) load_thread: Mutex<Option<LoadThread>>,
    pub(super) shutdown_timeout: Duration,
    pub(super) stopped: AtomicBool,
    /// The lock of a shutdown.
    pub(super) shutting_down: Mutex<()>,
    /// Keeps the connection open as long as the server runs.
    pub(super) broker: Broker,
}

impl ServiceServer {
    /// Returns the name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Returns the id by which this instance is registered, if it has a
    /// [registry](crate::server::ServiceServerBuilder::registry).
    pub fn instance_id(&self) -> Option<&str> {
        self.registration.as_deref().map(Registration::id)
    }

    /// Returns the state of the instance's registration; `None` without a registry. Starting
    /// does not fail if the registry does not answer: this shows it.
    pub fn registration_state(&self) -> Option<RegistrationState> {
        self.registration.as_deref().map(Registration::state)
    }

    /// Returns the faults that keep the server from working as it should, for a readiness
    /// probe. Does not block.
    ///
    /// ```
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "math")
    ///     .respond("double", |n: u64| n * 2)
    ///     .start()?;
    /// assert!(server.state().is_healthy());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn state(&self) -> ServerState {
        let consumers = &self.consumers;
        let lifetime = &consumers.requests.lifetime;
        ServerState {
            unhealthy: consumers.unhealthy.lock().clone(),
            dead_letters_refused: consumers.requests.workers.dead_letter_fault(),
            refused: consumers.refusal(),
            disconnected: lifetime.disconnect_reason(),
            overdue_handlers: consumers.dispatcher.executor.load.overdue().0,
            shut_down: lifetime.is_closing(),
        }
    }

    /// Returns the load of the server now: its workers, what waits for them and for how long, for an
    /// autoscaler or a graph. Does not block.
    ///
    /// ```
    /// # use coney::{Broker, ServiceServer};
    /// let server = ServiceServer::builder(&Broker::memory(), "math")
    ///     .respond("double", |n: u64| n * 2)
    ///     .start()?;
    /// let load = server.load();
    /// assert_eq!((load.workers, load.is_saturated), (10, false));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn load(&self) -> WorkerLoad {
        let status = self.consumers.requests.workers.status();
        let gate = &self.consumers.dispatcher.executor.load;
        gate.load(status)
    }

    /// Blocks until the server has ended: because another thread has shut it down, or because
    /// its broker connection was closed for good. For a `main` that has nothing else to do:
    /// `server.wait()?`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) if the server has lost its broker;
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) if a handler of this server calls it,
    /// or a forked child.
    ///
    /// ```
    /// # use std::{sync::Arc, thread, time::Duration};
    /// # use coney::{Broker, ServiceServer};
    /// let server = Arc::new(
    ///     ServiceServer::builder(&Broker::memory(), "math")
    ///         .respond("double", |n: u64| n * 2)
    ///         .start()?,
    /// );
    /// let other = Arc::clone(&server);
    /// thread::spawn(move || other.shutdown(Duration::from_secs(10)));
    /// server.wait()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn wait(&self) -> Result<()> {
        self.wait_until(None).unwrap_or(Ok(()))
    }

    /// Blocks until the server has ended, as [`wait`](ServiceServer::wait), at most `timeout`;
    /// `None` means not yet.
    ///
    /// # Errors
    ///
    /// Fails as [`wait`](ServiceServer::wait) does.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.wait_until(Some(deadline::after(timeout)))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        let requests = &self.consumers.requests;
        if let Err(error) = requests.workers.check_not_worker_thread() {
            return Some(Err(error));
        }
        requests.lifetime.wait(&self.service, deadline)
    }

    /// Handles the requests in the service's queue, and then shuts down: for programs that end
    /// when their work is done. Goes on until the queue is empty, no handler runs and no command that
    /// this server has put off waits for another attempt, or half of `timeout` is over; the shutdown
    /// has the rest. Commands that others have put off, or that were sent for
    /// [later](crate::SendOptions::after), are not waited for.
    ///
    /// Blocks at most `timeout`. Other servers of the service go on, and may take the requests
    /// that this one waits for. Requests that are left at the end stay in their queue: with
    /// [`Broker::memory`] they are gone with the process.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) with the numbers of requests that are
    /// left in the queue and that wait for another attempt, or with the reason why they cannot be
    /// counted, a broker that does not answer for example; and the errors of
    /// [`shutdown`](ServiceServer::shutdown).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// let broker = Broker::memory();
    /// let server = ServiceServer::builder(&broker, "printer")
    ///     .respond("print", |page: String| println!("{page}"))
    ///     .start()?;
    /// ServiceClient::new(&broker, "office")?.send("printer", "print", "page 1")?;
    /// server.drain(Duration::from_secs(10))?; // page 1 is printed
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        let workers = &self.consumers.requests.workers;
        workers.check_not_worker_thread()?;
        let queue = topology::request_queue(&self.service);
        let dispatcher = &self.consumers.dispatcher;
        let drained = drain(&self.service, timeout, |end| {
            if self.consumers.closed.load(Ordering::SeqCst) {
                return Ok(Left::NOTHING); // another thread shuts it down
            }
            let mut queued = self.broker.queue_depth_until(&queue, end)?.messages;
            for bulkhead in dispatcher.bulkheads.iter() {
                queued += self
                    .broker
                    .queue_depth_until(&bulkhead.queue, end)?
                    .messages;
            }
            let running = workers.busy() + dispatcher.unsettled();
            let waiting = match queued + running {
                0 => dispatcher.count_waiting(end)?,
                _ => 0,
            };
            Ok(Left {
                queued,
                running,
                waiting,
            })
        });
        let rest = deadline.saturating_duration_since(Instant::now());
        let stopped = self.shutdown(rest);
        let left = drained?;
        stopped?;
        left.into_result(&self.service, timeout)
    }

    /// Shuts the server down: deregisters, stops consuming, lets running handlers finish, reply
    /// and acknowledge, and ends every worker. Requests that were fetched but not started go
    /// back to the queue, for other servers of the service. A registry that does not answer
    /// is no error: the instance then counts as dead after its heartbeat TTL.
    ///
    /// Blocks until all that is done, at most `timeout`. A second call finds
    /// nothing left to do. A handler of the server must not call it, because it would wait for
    /// itself: there it does nothing and fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if handlers still
    /// run: their requests go back to the queue, their replies are dropped,
    /// and their threads end when they do; or if the broker has not confirmed by then that it
    /// has the last replies and acknowledgements, during a memory alarm for example:
    /// unacknowledged requests are then redelivered.
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) if a
    /// handler of this server calls it, or a forked child.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        let workers = &self.consumers.requests.workers;
        workers.check_not_worker_thread()?;
        let deadline = deadline::after(timeout);
        // A second call must not close the links while the first one gives requests back.
        let Some(_shutdown) = self.shutting_down.try_lock_until(deadline) else {
            let text = format!("another thread still shuts {} down", self.service);
            return Err(Error::timed_out(Phase::Shutdown, text));
        };
        self.consumers.requests.lifetime.closing();
        // A registry or a broker that does not answer must not use up the handlers' time.
        if let Some(registration) = &self.registration
            && let Err(error) = registration.deregister(timeout / 4)
        {
            log::warn!(target: "coney::server", "{}: {error}", self.service);
        }
        self.consumers.closed.store(true, Ordering::SeqCst);
        // It would start workers and change the prefetch.
        if let Some(thread) = self.load_thread.lock().take() {
            thread.stop(deadline::after(timeout / 8));
        }
        if let Some(health) = self.health.lock().take() {
            health.stop(deadline::after(timeout / 8));
        }
        let soon = deadline::after(timeout / 4);
        self.consumers.pause(soon);
        self.consumers.give_back_jobs(workers.stop(), soon);
        // Requests that a worker had begun to read, and that then had to wait for their places.
        if workers.join(deadline) {
            self.consumers.give_back_jobs(workers.end_left(), deadline);
        }
        let finished = workers.finish(deadline, timeout);
        // The handlers are done; the broker must have what they have answered too.
        let was_stopped = self.stopped.swap(true, Ordering::Relaxed);
        let finished = finished.and_then(|()| match was_stopped {
            false => self.consumers.flush(deadline),
            true => Ok(()),
        });
        self.consumers.close();
        if !was_stopped {
            log::info!(target: "coney::server", "{} has stopped", self.service);
        }
        self.consumers.requests.lifetime.shut_down();
        finished
    }
}

/// The faults that keep a server from working as it should. From [`ServiceServer::state`].
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerState {
    /// The health check that fails, and its error, or the share of the attempts that failed: the
    /// server consumes nothing.
    pub unhealthy: Option<String>,
    /// The reason why the broker refused the last dead letter, until it accepts one
    /// again. Meanwhile such messages wait as failed ones do, and hold nothing up.
    pub dead_letters_refused: Option<String>,
    /// The reason why the broker refused, after a reconnect, to let the server consume its queue or
    /// the instance's own. It is tried again every 10 s.
    pub refused: Option<String>,
    /// The number of handlers that run for longer than
    /// [`handler_timeout`](crate::server::ServiceServerBuilder::handler_timeout).
    pub overdue_handlers: usize,
    /// The reason why the broker connection was closed for good, if it was.
    pub disconnected: Option<String>,
    /// True once a shutdown has begun: the server takes no more requests.
    pub shut_down: bool,
}

impl ServerState {
    /// Returns true if there are no faults.
    pub fn is_healthy(&self) -> bool {
        *self == Self::default()
    }
}

impl Drop for ServiceServer {
    fn drop(&mut self) {
        if self.broker.is_forked() {
            let threads = (self.load_thread.lock().take(), self.health.lock().take());
            std::mem::forget((Arc::clone(&self.consumers), threads));
            return;
        }
        if self.consumers.requests.workers.is_worker_thread() {
            drop(self.consumers.requests.workers.stop());
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
