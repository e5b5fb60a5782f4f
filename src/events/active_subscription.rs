//! A running subscription: its events go from the deliveries of its queue to the workers.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::begin_marks::{BeginMarks, MarkedOutcome};
use super::subscription::KeyOf;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::consumer::{
    self, AfterDelivery, Class, Dispatcher, Job, Lifetime, LocalAttempts, Next, Shareable, Tracked,
    Turn, Workers,
};
use crate::message::ServiceMessage;
use crate::transport::{Delivery, Publication, Returned, Sink};

/// The delay before the next attempt at an ordered event that could not be marked.
const MARK_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A subscription with its handler and, if it is ordered, the events that wait for their turn.
pub(super) struct ActiveSubscription {
    pub(super) dispatcher: Dispatcher,
    pub(super) ordering: Option<KeyOrdering>,
    /// True if the queue is deleted with the connection: its events exist nowhere else.
    pub(super) is_broadcast: bool,
    /// The workers of all subscriptions of the subscriber.
    pub(super) workers: Arc<Workers<EventJob>>,
    /// The class of its events; of an ordered subscription, those whose keys have been read.
    pub(super) class: Class,
}

/// The ordering of a subscription's events by a key.
pub(super) struct KeyOrdering {
    pub(super) key: KeyOf,
    /// The class of the events whose keys have not been read: one job at a time, so that they are
    /// added to the lanes of their keys in the order of their arrival.
    pub(super) arrivals: Class,
    /// `None` for a broadcast, whose events no other process takes over.
    pub(super) marks: Option<BeginMarks>,
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
}

/// A job for a worker: an event of a subscription.
pub(super) struct EventJob {
    subscription: Arc<ActiveSubscription>,
    event: PendingEvent,
    /// True for an event of an ordered subscription whose key has not been read.
    is_arrival: bool,
}

impl Shareable for EventJob {}

impl consumer::Job for EventJob {
    fn discard(self) {
        self.event.forget();
    }
}

impl EventJob {
    /// Handles the event, or reads its key.
    pub(super) fn run(self, turn: &dyn Turn) -> Next<Self> {
        let Self {
            subscription,
            event,
            is_arrival,
        } = self;
        if let (true, Some(ordering)) = (is_arrival, &subscription.ordering) {
            let key = subscription.key_of(ordering, event.delivery());
            return Next::Enter {
                class: subscription.class,
                key: Some(key),
                job: Self {
                    event,
                    is_arrival: false,
                    subscription,
                },
            };
        }
        match subscription.process(event, turn) {
            None => Next::Done,
            Some((event, delay)) => {
                let job = Self {
                    event,
                    is_arrival: false,
                    subscription,
                };
                Next::Later(job, deadline::after(delay))
            }
        }
    }

    /// Returns true if the event keeps its order among others.
    pub(super) fn is_ordered(&self) -> bool {
        self.subscription.ordering.is_some()
    }

    /// Republishes the event if there was no attempt at it in this process. Blocks at most until
    /// `deadline`.
    pub(super) fn give_back(self, deadline: Instant) {
        if let PendingEvent::Fresh(delivery) = self.event
            && !self.subscription.is_broadcast
        {
            self.subscription.dispatcher.give_back(delivery, deadline);
        }
    }
}

impl ActiveSubscription {
    /// Processes an event. Returns it with the delay before the next attempt, if it is to be
    /// processed again.
    fn process(&self, event: PendingEvent, turn: &dyn Turn) -> Option<(PendingEvent, Duration)> {
        // A reply store is user code too and may panic, and the key's next event must be handled.
        let process = || match event {
            PendingEvent::Fresh(delivery) => match self.dispatcher.settled.track(delivery) {
                Some(tracked) => self.begin(tracked, turn),
                None => None,
            },
            PendingEvent::Retry(tracked, attempt) => self.attempt(tracked, attempt, turn),
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
    fn begin(&self, tracked: Tracked, turn: &dyn Turn) -> Option<(PendingEvent, Duration)> {
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
            return self.attempt(tracked, LocalAttempts::default(), turn);
        };
        // The event may be poison.
        let mut unstarted = Some(tracked);
        let handled = marks.handle(&id, || {
            let tracked = unstarted.take()?;
            self.attempt(tracked, LocalAttempts::default(), turn)
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
        turn: &dyn Turn,
    ) -> Option<(PendingEvent, Duration)> {
        match self.dispatcher.process_tracked(tracked, attempt, turn) {
            AfterDelivery::LocalRetry(retry) => Some((
                PendingEvent::Retry(retry.delivery, retry.attempt),
                retry.delay,
            )),
            // Events are not batched, and the bound of a subscription is that of its class.
            AfterDelivery::Done | AfterDelivery::Batch(_) | AfterDelivery::Wait(..) => None,
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

    /// Drops the events that wait: the broker redelivers them.
    fn drop_waiting(&self) {
        let arrivals = self.ordering.as_ref().map(|ordering| ordering.arrivals);
        for class in arrivals.into_iter().chain([self.class]) {
            for job in self.workers.clear(class) {
                job.discard();
            }
        }
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
        let ordering = subscription.ordering.as_ref();
        let class = ordering.map_or(subscription.class, |ordering| ordering.arrivals);
        let job = EventJob {
            event: PendingEvent::Fresh(delivery),
            is_arrival: ordering.is_some(),
            subscription: Arc::clone(&subscription),
        };
        let submitted = match self.suspects {
            true => subscription.workers.submit_suspect_to(class, job),
            false => subscription.workers.submit_to(class, job),
        };
        // After the stop an ordered event is kept: events requeued one by one would change places.
        let kept = submitted.or_else(|job| match job.is_ordered() {
            true => subscription.workers.keep(job),
            false => Err(job),
        });
        match kept {
            Err(EventJob {
                event: PendingEvent::Fresh(delivery),
                ..
            }) => Err(delivery),
            _ => Ok(Vec::new()),
        }
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
            subscription.drop_waiting();
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
