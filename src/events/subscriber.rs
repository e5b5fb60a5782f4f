//! Running subscriptions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::active_subscription::EventJob;
use super::pause_thread::PauseThread;
use super::running::Running;
use crate::base::deadline;
use crate::consumer::{Left, Lifetime, LoadGate, LoadThread, WorkerLoad, Workers, drain};
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::transport::Broker;

/// Running subscriptions: takes events from their queues, runs handlers on workers, and
/// acknowledges afterwards.
///
/// Keep it as long as it should run: dropping it shuts it down.
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, EventPublisher, EventSubscriber, Subscription};
///
/// let broker = Broker::memory();
/// # let (sender, seen) = std::sync::mpsc::channel();
/// # let sender2 = sender.clone();
/// let subscriber = EventSubscriber::builder(&broker, "analytics")
///     .on("order.*", move |order: u64| sender.send(order))
///     .subscribe(Subscription::to("config.changed", move |n: u64| sender2.send(n)).broadcast())
///     .start()?;
/// EventPublisher::new(&broker, "order-service")?.publish("order.paid", &4711)?;
/// # assert_eq!(seen.recv().unwrap(), 4711);
/// subscriber.shutdown(Duration::from_secs(10))?;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the subscriber shuts it down"]
pub struct EventSubscriber {
    pub(super) service: String,
    pub(super) workers: Arc<Workers<EventJob>>,
    pub(super) load: Arc<LoadGate>,
    pub(super) subscriptions: Arc<Vec<Running>>,
    pub(super) load_thread: Mutex<Option<LoadThread>>,
    pub(super) pause_thread: Mutex<Option<PauseThread>>,
    /// The connection of the ordered subscriptions: only its end requeues all unsettled events in
    /// one step. Otherwise the next instance would get later events first.
    pub(super) ordered_connection: Option<Broker>,
    pub(super) shutdown_timeout: Duration,
    pub(super) stopped: AtomicBool,
    /// The lock of a shutdown.
    pub(super) shutting_down: Mutex<()>,
    pub(super) lifetime: Arc<Lifetime>,
    /// The handle that keeps the connection open as long as the subscriber runs.
    pub(super) broker: Broker,
}

impl EventSubscriber {
    /// Returns the name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Returns the faults that keep the subscriber from working as it should, for a readiness
    /// probe. Does not block.
    ///
    /// ```
    /// # use coney::{Broker, EventSubscriber};
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "analytics")
    ///     .listen("order.*", |order: u64| println!("{order}"))
    ///     .start()?;
    /// assert!(subscriber.state().is_healthy());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn state(&self) -> SubscriberState {
        SubscriberState {
            dead_letters_refused: self.workers.dead_letter_fault(),
            refused: self.subscriptions.iter().find_map(|it| it.handle.refusal()),
            paused: self.pauses(),
            overdue_handlers: self.load.overdue().0,
            disconnected: self.lifetime.disconnect_reason(),
            shut_down: self.lifetime.is_closing(),
        }
    }

    fn pauses(&self) -> Vec<String> {
        let now = Instant::now();
        let paused = self.subscriptions.iter().filter_map(|running| {
            let pause = running.paused(now)?;
            Some(format!("{}: {}", running.queue, pause.reason))
        });
        paused.collect()
    }

    /// Returns the load of the subscriber now: its workers, what waits for them and for how long,
    /// for an autoscaler or a graph. Does not block.
    ///
    /// ```
    /// # use coney::{Broker, EventSubscriber};
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "analytics")
    ///     .listen("order.*", |order: u64| println!("{order}"))
    ///     .start()?;
    /// let load = subscriber.load();
    /// assert_eq!((load.workers, load.is_saturated), (10, false));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn load(&self) -> WorkerLoad {
        self.load.load(self.workers.status())
    }

    /// Blocks until the subscriber has ended: because another thread has shut it down, or
    /// because its broker connection was closed for good.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the subscriber has lost its broker; [`ErrorKind::Misuse`] if a
    /// handler of this subscriber calls it, or a forked child.
    pub fn wait(&self) -> Result<()> {
        self.wait_until(None).unwrap_or(Ok(()))
    }

    /// Blocks until the subscriber has ended, as [`wait`](EventSubscriber::wait), at most
    /// `timeout`; `None` means not yet.
    ///
    /// # Errors
    ///
    /// Fails as [`wait`](EventSubscriber::wait) does.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.wait_until(Some(deadline::after(timeout)))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        if let Err(error) = self.workers.check_not_worker_thread() {
            return Some(Err(error));
        }
        self.lifetime.wait(&self.service, deadline)
    }

    /// Shuts the subscriber down: stops consuming, lets running handlers finish, and ends every
    /// worker. Events that were fetched but not handled, and those that wait for another attempt
    /// in this process, go back to their queues.
    ///
    /// Blocks until all that is done, at most `timeout`. A second call finds nothing
    /// left to do. A handler of the subscriber must not call it, because it would wait for
    /// itself: there it does nothing and fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] if handlers still run: their events go back to the queue,
    /// and their threads end when they do; or if the broker has not confirmed by then that it has
    /// the last acknowledgements, during a memory alarm for example: unacknowledged events are then
    /// redelivered. [`ErrorKind::Misuse`] if a handler of
    /// this subscriber calls it, or a forked child.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        let workers = &self.workers;
        workers.check_not_worker_thread()?;
        let deadline = deadline::after(timeout);
        // A second call must not close the links while the first one gives events back.
        let Some(_shutdown) = self.shutting_down.try_lock_until(deadline) else {
            let text = format!(
                "another thread still shuts the subscriber of {} down",
                self.service
            );
            return Err(Error::timed_out(Phase::Shutdown, text));
        };
        self.lifetime.closing();
        // They would start workers, change the prefetch and consume again.
        if let Some(thread) = self.load_thread.lock().take() {
            thread.stop(deadline::after(timeout / 8));
        }
        if let Some(thread) = self.pause_thread.lock().take() {
            thread.stop(deadline::after(timeout / 8));
        }
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
        // Ordered events go back all at once, when their connection is closed.
        let (ordered, others): (Vec<_>, Vec<_>) =
            workers.stop().into_iter().partition(EventJob::is_ordered);
        for job in others {
            job.give_back(soon);
        }
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
        self.close(deadline, ordered);
        if !was_stopped {
            log::info!(target: "coney::events", "the subscriber of {} has stopped", self.service);
        }
        self.lifetime.shut_down();
        finished
    }

    /// Closes the links, and then drops the ordered events that were not handled.
    fn close(&self, deadline: Instant, ordered: Vec<EventJob>) {
        let unordered = self
            .subscriptions
            .iter()
            .filter(|running| !running.is_ordered());
        unordered
            .flat_map(Running::handles)
            .for_each(|handle| handle.close());
        if let Some(broker) = &self.ordered_connection
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
        }
        drop((ordered, self.workers.end_left()));
    }

    /// Handles the events in the queues of its subscriptions, and then shuts down, as
    /// [`ServiceServer::drain`](crate::ServiceServer::drain). The queues of broadcast
    /// subscriptions are left out.
    ///
    /// Blocks at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] with the numbers of events that are left and that wait for another
    /// attempt, or with the reason why they cannot be counted; and the errors of
    /// [`shutdown`](EventSubscriber::shutdown).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, EventPublisher, EventSubscriber};
    /// let broker = Broker::memory();
    /// let subscriber = EventSubscriber::builder(&broker, "printer")
    ///     .listen("page.*", |page: String| println!("{page}"))
    ///     .start()?;
    /// EventPublisher::new(&broker, "office")?.publish("page.ready", "page 1")?;
    /// subscriber.drain(Duration::from_secs(10))?; // page 1 is printed
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        let workers = &self.workers;
        workers.check_not_worker_thread()?;
        let shared = || {
            self.subscriptions
                .iter()
                .filter(|it| !it.subscription.is_broadcast)
        };
        let drained = drain(&self.service, timeout, |end| {
            if self.lifetime.is_closing() {
                return Ok(Left::NOTHING); // another thread shuts it down
            }
            let mut left = Left {
                queued: 0,
                running: workers.busy(),
                waiting: 0,
            };
            for running in shared() {
                left.queued += self.broker.queue_depth_until(&running.queue, end)?.messages;
                left.running += running.subscription.dispatcher.unsettled();
            }
            if left.queued + left.running == 0 {
                for running in shared() {
                    left.waiting += running.subscription.dispatcher.count_waiting(end)?;
                }
            }
            Ok(left)
        });
        let rest = deadline.saturating_duration_since(Instant::now());
        let stopped = self.shutdown(rest);
        let left = drained?;
        stopped?;
        left.into_result(&self.service, timeout)
    }
}

/// The faults that keep a subscriber from working as it should. From
/// [`EventSubscriber::state`].
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriberState {
    /// The reason why the broker refused the last dead letter, until it accepts one
    /// again. Meanwhile such events wait, and hold nothing up.
    pub dead_letters_refused: Option<String>,
    /// The reason why the broker refused, after a reconnect, to let the subscriber consume a
    /// queue. It is tried again every 10 s.
    pub refused: Option<String>,
    /// The subscriptions that are paused because too large a share of their attempts failed: of
    /// each the name of its queue, and the reason.
    pub paused: Vec<String>,
    /// The number of handlers that run for longer than
    /// [`handler_timeout`](crate::events::EventSubscriberBuilder::handler_timeout).
    pub overdue_handlers: usize,
    /// The reason why the broker connection was closed for good, if it was.
    pub disconnected: Option<String>,
    /// True once a shutdown has begun: the subscriber takes no more events.
    pub shut_down: bool,
}

impl SubscriberState {
    /// Returns true if there are no faults.
    pub fn is_healthy(&self) -> bool {
        *self == Self::default()
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        if self.broker.is_forked() {
            let threads = (
                self.load_thread.get_mut().take(),
                self.pause_thread.get_mut().take(),
            );
            let shared = (Arc::clone(&self.workers), Arc::clone(&self.subscriptions));
            std::mem::forget((shared, threads));
            return;
        }
        if self.workers.is_worker_thread() {
            let left = self.workers.stop();
            return self.close(Instant::now(), left);
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
