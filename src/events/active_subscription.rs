//! A running subscription: its events go from the deliveries of its queue to the workers.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::begin_marks::{BeginMarks, MarkedOutcome};
use super::delay_queue::DelayQueue;
use super::key_queues::KeyQueues;
use super::subscription::KeyOf;
use crate::base::catch::catch;
use crate::base::log_relay;
use crate::consumer::{self, AfterDelivery, Dispatcher, Lifetime, LocalAttempts, Tracked, Workers};
use crate::message::ServiceMessage;
use crate::transport::{Delivery, Publication, Returned, Sink};

/// The delay before the next attempt at an ordered event that could not be marked.
const MARK_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The threads that serve all subscriptions of a subscriber.
pub(super) struct SharedThreads {
    pub(super) workers: Arc<Workers<EventJob>>,
    pub(super) delay_queue: DelayQueue<EventJob>,
}

/// A subscription with its handler and, if it is ordered, the events that wait for their turn.
pub(super) struct ActiveSubscription {
    pub(super) dispatcher: Dispatcher,
    pub(super) ordering: Option<KeyOrdering>,
    /// True if the queue is deleted with the connection: its events exist nowhere else.
    pub(super) is_broadcast: bool,
    pub(super) shared_threads: Arc<SharedThreads>,
}

/// The ordering of a subscription's events by a key.
pub(super) struct KeyOrdering {
    key: KeyOf,
    key_queues: Mutex<KeyQueues<PendingEvent>>,
    /// `None` for a broadcast, whose events no other process takes over.
    marks: Option<BeginMarks>,
}

impl KeyOrdering {
    pub(super) fn by(key: KeyOf, marks: Option<BeginMarks>) -> Self {
        Self {
            key,
            key_queues: Mutex::new(KeyQueues::new()),
            marks,
        }
    }
}

/// An event that waits for a worker.
pub(super) enum PendingEvent {
    /// An event without an attempt in this process.
    Fresh(Delivery),
    /// An event to be processed again.
    Retry(Tracked, LocalAttempts),
}

impl PendingEvent {
    /// Leaves the event unsettled: the broker has requeued it.
    fn forget(self) {
        match self {
            Self::Fresh(delivery) => drop(delivery.forget()),
            Self::Retry(tracked, _) => tracked.forget(),
        }
    }

    fn delivery(&self) -> &Delivery {
        match self {
            Self::Fresh(delivery) => delivery,
            Self::Retry(tracked, _) => tracked.delivery(),
        }
    }

    /// Returns the event, if there was no attempt at it in this process.
    fn into_fresh(self) -> Option<Delivery> {
        match self {
            Self::Fresh(delivery) => Some(delivery),
            Self::Retry(..) => None,
        }
    }
}

/// A job for a worker.
pub(super) enum EventJob {
    /// An event of an unordered subscription.
    Event {
        subscription: Arc<ActiveSubscription>,
        event: PendingEvent,
    },
    /// The distribution of new events to the queues of their keys.
    Arrivals(Arc<ActiveSubscription>),
    /// The next event of a key.
    Key(Arc<ActiveSubscription>, String),
}

impl consumer::Job for EventJob {}

impl EventJob {
    pub(super) fn run(self) {
        match self {
            Self::Event {
                subscription,
                event,
            } => {
                if let Some((event, delay)) = subscription.process(event) {
                    let job = Self::Event {
                        subscription: Arc::clone(&subscription),
                        event,
                    };
                    subscription.shared_threads.delay_queue.add(delay, job);
                }
            }
            Self::Arrivals(subscription) => subscription.distribute(),
            Self::Key(subscription, key) => subscription.advance(key),
        }
    }

    /// Returns true if this is an event of that unordered subscription. Jobs of ordered ones check
    /// for themselves which events are left.
    fn is_event_of(&self, subscription: &Arc<ActiveSubscription>) -> bool {
        matches!(self, Self::Event { subscription: own, .. } if Arc::ptr_eq(own, subscription))
    }

    /// Republishes an event that no worker has started. Blocks at most until `deadline`.
    pub(super) fn give_back(self, deadline: Instant) {
        if let Self::Event {
            subscription,
            event,
        } = self
            && !subscription.is_broadcast
            && let Some(delivery) = event.into_fresh()
        {
            subscription.dispatcher.give_back(delivery, deadline);
        }
    }
}

impl ActiveSubscription {
    /// Processes an event. Returns it with the delay before the next attempt, if it is to be
    /// processed again.
    fn process(&self, event: PendingEvent) -> Option<(PendingEvent, Duration)> {
        // A reply store is user code too and may panic, and the key's next event must be handled.
        let process = || match event {
            PendingEvent::Fresh(delivery) => match self.dispatcher.settled.track(delivery) {
                Some(tracked) => self.begin(tracked),
                None => None,
            },
            PendingEvent::Retry(tracked, attempt) => self.attempt(tracked, attempt),
        };
        catch(process).unwrap_or_else(|_| {
            // Not here: a logger may panic too.
            log_relay::log(
                log::Level::Error,
                "coney::worker",
                format_args!("a worker panicked while processing an event"),
            );
            None
        })
    }

    /// Makes the first attempt in this process; under a mark if the event is ordered and was
    /// redelivered.
    fn begin(&self, tracked: Tracked) -> Option<(PendingEvent, Duration)> {
        let id = tracked.message().properties.message_id.clone();
        let marks = self
            .ordering
            .as_ref()
            .and_then(|ordering| ordering.marks.as_ref());
        let (Some(marks), Some(id), true) = (
            marks,
            id.filter(|id| !id.is_empty()),
            tracked.delivery().is_redelivered(),
        ) else {
            return self.attempt(tracked, LocalAttempts::default());
        };
        // The event may be poison.
        let mut unstarted = Some(tracked);
        let handled = marks.handle(&id, || {
            let tracked = unstarted.take()?;
            self.attempt(tracked, LocalAttempts::default())
        });
        match (handled, unstarted) {
            (Ok(MarkedOutcome::Handled(retry)), _) => retry,
            (Ok(MarkedOutcome::Poison(deaths)), Some(tracked)) => {
                self.dispatcher.refuse_poison(tracked, deaths);
                None
            }
            (Err(error), Some(tracked)) => {
                log::warn!(target: "coney::events", "{error}");
                Some((
                    PendingEvent::Retry(tracked, LocalAttempts::default()),
                    MARK_RETRY_DELAY,
                ))
            }
            (Ok(MarkedOutcome::Poison(_)) | Err(_), None) => None,
        }
    }

    fn attempt(
        &self,
        tracked: Tracked,
        attempt: LocalAttempts,
    ) -> Option<(PendingEvent, Duration)> {
        match self.dispatcher.process_tracked(tracked, attempt) {
            AfterDelivery::LocalRetry(retry) => Some((
                PendingEvent::Retry(retry.delivery, retry.attempt),
                retry.delay,
            )),
            // Events are not batched.
            AfterDelivery::Done | AfterDelivery::Batch(_) => None,
        }
    }

    /// Distributes arrivals to the queues of their keys, in order: one job at a time does this.
    fn distribute(self: &Arc<Self>) {
        let Some(ordering) = &self.ordering else {
            return;
        };
        loop {
            let next = ordering.key_queues.lock().next_arrival();
            let Some((event, epoch)) = next else { return };
            let key = self.key_of(ordering, event.delivery());
            let entered = ordering.key_queues.lock().enter(&key, event, epoch);
            match entered {
                Ok(true) => drop(
                    self.shared_threads
                        .workers
                        .submit(EventJob::Key(Arc::clone(self), key)),
                ),
                Ok(false) => {}
                Err(event) => event.forget(),
            }
        }
    }

    /// Returns the key of an event. Events without a readable key all have the empty one.
    fn key_of(&self, ordering: &KeyOrdering, delivery: &Delivery) -> String {
        let Ok(message) = ServiceMessage::decode(&delivery.message().body) else {
            return String::new();
        };
        let key = catch(|| (ordering.key)(message.payload));
        key.ok().flatten().unwrap_or_default()
    }

    /// Handles the first event of a key, and submits a job for the next one.
    fn advance(self: &Arc<Self>, key: String) {
        let Some(ordering) = &self.ordering else {
            return;
        };
        let next = ordering.key_queues.lock().take(&key);
        if let Some((event, epoch)) = next
            && let Some((event, delay)) = self.process(event)
        {
            let returned = ordering.key_queues.lock().put_back(&key, event, epoch);
            match returned {
                Ok(()) => {
                    let job = EventJob::Key(Arc::clone(self), key);
                    return self.shared_threads.delay_queue.add(delay, job);
                }
                // The connection was lost meanwhile: the broker redelivers the event.
                Err(event) => event.forget(),
            }
        }
        if ordering.key_queues.lock().has_more(&key) {
            let _ = self
                .shared_threads
                .workers
                .submit(EventJob::Key(Arc::clone(self), key));
        }
    }

    /// Removes all events that wait for their turn.
    pub(super) fn take_waiting(&self) -> Vec<PendingEvent> {
        let waiting = self
            .ordering
            .iter()
            .flat_map(|it| it.key_queues.lock().clear());
        waiting.collect()
    }

    /// Returns the number of events that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        let ordering = self.ordering.as_ref();
        ordering.map_or(0, |ordering| ordering.key_queues.lock().len())
    }
}

/// The sink of a subscription's queue: passes deliveries to the subscription. Holds a weak
/// reference: the user's handler must not be dropped on the transport's thread.
pub(super) struct EventSink {
    pub(super) subscription: Weak<ActiveSubscription>,
    /// True if the deliveries come from the suspect queue.
    pub(super) suspects: bool,
    pub(super) lifetime: Arc<Lifetime>,
}

impl Sink for EventSink {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let Some(subscription) = self.subscription.upgrade() else {
            return Err(delivery);
        };
        let workers = &subscription.shared_threads.workers;
        let Some(ordering) = &subscription.ordering else {
            let job = EventJob::Event {
                subscription: Arc::clone(&subscription),
                event: PendingEvent::Fresh(delivery),
            };
            let submitted = match self.suspects {
                true => workers.submit_suspect(job),
                false => workers.submit(job),
            };
            return match submitted {
                Err(EventJob::Event {
                    event: PendingEvent::Fresh(delivery),
                    ..
                }) => Err(delivery),
                _ => Ok(Vec::new()),
            };
        };
        let is_first = ordering
            .key_queues
            .lock()
            .arrive(PendingEvent::Fresh(delivery));
        if is_first {
            // If the workers have been stopped, `take_waiting` removes the event.
            let _ = workers.submit(EventJob::Arrivals(Arc::clone(&subscription)));
        }
        Ok(Vec::new())
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// Drops the events that wait: the broker redelivers them. A broadcast's events are kept and
    /// handled, as their queue is gone.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        if let Some(subscription) = self
            .subscription
            .upgrade()
            .filter(|subscription| !subscription.is_broadcast)
        {
            if let Some(marks) = subscription
                .ordering
                .as_ref()
                .and_then(|ordering| ordering.marks.as_ref())
            {
                marks.lost();
            }
            for event in subscription.take_waiting() {
                event.forget();
            }
            for job in subscription
                .shared_threads
                .workers
                .take(|job| job.is_event_of(&subscription))
            {
                if let EventJob::Event { event, .. } = job {
                    event.forget();
                }
            }
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        self.lifetime.disconnected(cause);
        log_relay::log(
            log::Level::Info,
            "coney::events",
            format_args!("a subscription gets no more events: {cause}"),
        );
    }
}
