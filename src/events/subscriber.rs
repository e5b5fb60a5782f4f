use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::active_subscription::{ActiveSubscription, SharedThreads};
use crate::base::deadline;
use crate::consumer::{Left, drain};
use crate::error::{ErrorKind, Result};
use crate::transport::{Broker, LinkHandle};

/// Running subscriptions: takes events from their queues, runs handlers on workers, and
/// acknowledges after that.
///
/// Keep it as long as it is to run: dropping it shuts it down.
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, EventPublisher, EventSubscriber, Subscription};
///
/// let broker = Broker::memory();
/// # let (told, seen) = std::sync::mpsc::channel();
/// # let too = told.clone();
/// let subscriber = EventSubscriber::builder(&broker, "analytics")
///     .on("order.*", move |order: u64| told.send(order))
///     .subscribe(Subscription::to("config.changed", move |n: u64| too.send(n)).broadcast())
///     .start()?;
/// EventPublisher::new(&broker, "order-service")?.publish("order.paid", &4711)?;
/// # assert_eq!(seen.recv().unwrap(), 4711);
/// subscriber.shutdown(Duration::from_secs(10))?;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the subscriber shuts it down"]
pub struct EventSubscriber {
    pub(super) service: String,
    pub(super) threads: Arc<SharedThreads>,
    pub(super) subscriptions: Vec<Running>,
    /// A connection for those that are in order: only its end gives back everything that
    /// is unsettled in one step. With any other the next instance gets what comes later
    /// first.
    pub(super) in_order: Option<Broker>,
    pub(super) shutdown_timeout: Duration,
    /// It is being shut down, or has been.
    pub(super) closing: AtomicBool,
    pub(super) stopped: AtomicBool,
    /// Keeps the connection open as long as the subscriber runs.
    pub(super) broker: Broker,
}

/// A subscription and its links.
pub(super) struct Running {
    pub(super) subscription: Arc<ActiveSubscription>,
    pub(super) queue: String,
    pub(super) handle: Arc<dyn LinkHandle>,
    /// To the queue of suspects, where it has one that is consumed.
    pub(super) suspects: Option<Arc<dyn LinkHandle>>,
}

impl Running {
    fn is_ordered(&self) -> bool {
        self.subscription.ordering.is_some()
    }

    fn handles(&self) -> impl Iterator<Item = &Arc<dyn LinkHandle>> {
        self.suspects.iter().chain([&self.handle])
    }
}

impl EventSubscriber {
    /// The service it belongs to.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Stops consuming, lets running handlers finish, and ends every worker. Events that
    /// were fetched but not handled, those that wait for another attempt here too, go
    /// back to their queues.
    ///
    /// Blocks until all that is done, at most `timeout`. A second call finds nothing
    /// left to do. Not for the subscriber's own handlers, which it would wait for: there
    /// it does nothing and fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] if handlers still run. Their events go back to the queue,
    /// and their threads end when they do. [`ErrorKind::InvalidConfig`] if a handler of
    /// this subscriber calls it.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        let SharedThreads {
            workers,
            delay_queue,
        } = &*self.threads;
        workers.check_not_worker_thread()?;
        let deadline = deadline::after(timeout);
        self.closing.store(true, Ordering::SeqCst);
        // A broker that does not answer must not use up the handlers' time.
        let soon = deadline::after(timeout / 2);
        let unordered = || {
            self.subscriptions
                .iter()
                .filter(|running| !running.is_ordered())
        };
        for handle in unordered().flat_map(Running::handles) {
            if let Err(error) = handle.stop_consuming(soon)
                && error.kind() != ErrorKind::Closed
            {
                log::warn!(target: "coney::events", "{}: {error}", self.service);
            }
        }
        for job in workers.stop() {
            job.give_back(soon);
        }
        // Dropped deliveries go back.
        drop(delay_queue.stop(deadline));
        let finished = workers.finish(deadline, timeout);
        // The handlers are done; the broker must have their acknowledgements too.
        let was_stopped = self.stopped.swap(true, Ordering::Relaxed);
        let finished = finished.and_then(|()| {
            if was_stopped {
                return Ok(());
            }
            let handles = self.subscriptions.iter().flat_map(Running::handles);
            handles
                .map(|handle| handle.flush(deadline))
                .fold(Ok(()), Result::and)
        });
        self.close(deadline);
        if !was_stopped {
            log::info!(target: "coney::events", "the subscriber of {} has stopped", self.service);
        }
        finished
    }

    /// Ends the links. What waits its turn is dropped after that.
    fn close(&self, deadline: Instant) {
        let unordered = self
            .subscriptions
            .iter()
            .filter(|running| !running.is_ordered());
        unordered
            .flat_map(Running::handles)
            .for_each(|handle| handle.close());
        if let Some(broker) = &self.in_order
            && broker.is_another(&self.broker)
            && let Err(error) = broker.close(deadline.saturating_duration_since(Instant::now()))
        {
            log::warn!(target: "coney::events", "{}: {error}", self.service);
        }
        for running in self
            .subscriptions
            .iter()
            .filter(|running| running.is_ordered())
        {
            running.handle.close();
            drop(running.subscription.take_waiting());
        }
    }

    /// Handles what is in the queues of its subscriptions, and then shuts down, as
    /// [`ServiceServer::drain`](crate::ServiceServer::drain). A broadcast's queue is not
    /// looked at.
    ///
    /// Blocks at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] with how many events are left or wait for another attempt, and those of
    /// [`shutdown`](EventSubscriber::shutdown).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, EventPublisher, EventSubscriber};
    /// let broker = Broker::memory();
    /// let subscriber = EventSubscriber::builder(&broker, "printer")
    ///     .on("page.*", |page: String| Ok::<_, String>(println!("{page}")))
    ///     .start()?;
    /// EventPublisher::new(&broker, "office")?.publish("page.ready", "page 1")?;
    /// subscriber.drain(Duration::from_secs(10))?; // page 1 is printed
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        let workers = &self.threads.workers;
        workers.check_not_worker_thread()?;
        let shared = || {
            self.subscriptions
                .iter()
                .filter(|it| !it.subscription.is_broadcast)
        };
        let drained = drain(timeout / 2, || {
            if self.closing.load(Ordering::SeqCst) {
                return Ok(Left::NOTHING); // another thread shuts it down
            }
            let mut left = Left {
                queued: self
                    .subscriptions
                    .iter()
                    .map(|it| it.subscription.waiting())
                    .sum(),
                running: workers.busy(),
                later: 0,
            };
            for running in shared() {
                left.queued += running.handle.backlog(&running.queue, deadline)?;
                left.running += running.subscription.dispatcher.unsettled();
            }
            if left.queued + left.running == 0 {
                for Running {
                    subscription,
                    handle,
                    ..
                } in shared()
                {
                    left.later += subscription.dispatcher.waiting(&**handle, deadline)?;
                }
            }
            Ok(left)
        });
        let rest = deadline.saturating_duration_since(Instant::now());
        let stopped = self.shutdown(rest);
        let left = drained?;
        stopped?;
        left.told(&self.service, timeout)
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        let SharedThreads {
            workers,
            delay_queue,
        } = &*self.threads;
        if workers.is_worker_thread() {
            drop(workers.stop());
            drop(delay_queue.stop(Instant::now()));
            return self.close(Instant::now());
        }
        if let Err(error) = self.shutdown(self.shutdown_timeout) {
            log::warn!(target: "coney::events", "{error}");
        }
    }
}

impl fmt::Debug for EventSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSubscriber")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
