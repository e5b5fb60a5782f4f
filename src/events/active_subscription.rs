//! One subscription at work: from the deliveries of its queue to the workers.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::begin_marks::{BeginMarks, MarkedOutcome};
use super::delay_queue::DelayQueue;
use super::key_queues::KeyQueues;
use super::subscription::KeyOf;
use crate::base::catch::catch;
use crate::consumer::{self, AfterDelivery, Dispatcher, LocalAttempts, Tracked, Workers};
use crate::message::ServiceMessage;
use crate::transport::{Delivery, Publication, Returned, Sink};

/// The time for which an ordered event waits that cannot be begun now.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);

/// Those who work for all subscriptions of a subscriber.
pub(super) struct SharedThreads {
    pub(super) workers: Arc<Workers<Job>>,
    pub(super) delay_queue: DelayQueue<Job>,
}

/// A subscription's handler, and what waits for it where the order matters.
pub(super) struct ActiveSubscription {
    pub(super) dispatcher: Dispatcher,
    pub(super) ordering: Option<KeyOrdering>,
    /// Its queue goes with the connection: what it holds is held nowhere else.
    pub(super) is_broadcast: bool,
    pub(super) threads: Arc<SharedThreads>,
}

/// The order of a subscription's events.
pub(super) struct KeyOrdering {
    key: KeyOf,
    key_queues: Mutex<KeyQueues<PendingEvent>>,
    /// None where no other process takes over: a broadcast's.
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
    Fresh(Delivery),
    /// It has been looked into, and is to be processed again.
    Retry(Tracked, LocalAttempts),
}

impl PendingEvent {
    /// The broker has it again.
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

    /// The event, if no attempt at it has been made here.
    fn into_fresh(self) -> Option<Delivery> {
        match self {
            Self::Fresh(delivery) => Some(delivery),
            Self::Retry(..) => None,
        }
    }
}

/// A job for a worker.
pub(super) enum Job {
    /// An event whose place does not matter.
    Event {
        subscription: Arc<ActiveSubscription>,
        event: PendingEvent,
    },
    /// Look at what has arrived, and put it where it belongs.
    Arrivals(Arc<ActiveSubscription>),
    /// The next event of a key.
    Key(Arc<ActiveSubscription>, String),
}

impl consumer::Job for Job {}

impl Job {
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
                    subscription.threads.delay_queue.add(delay, job);
                }
            }
            Self::Arrivals(subscription) => subscription.sort(),
            Self::Key(subscription, key) => subscription.advance(key),
        }
    }

    /// Is it an event of this feed? Jobs for lanes find out by themselves what is left.
    fn is_event_of(&self, subscription: &Arc<ActiveSubscription>) -> bool {
        matches!(self, Self::Event { subscription: its, .. } if Arc::ptr_eq(its, subscription))
    }

    /// Puts back an event that no worker has begun with. Blocks at most until `deadline`.
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
    /// Processes an event; returns it, and how long it waits here, if it is to be processed
    /// again.
    fn process(&self, event: PendingEvent) -> Option<(PendingEvent, Duration)> {
        // A reply store is the user's code too, and a lane must go on.
        let process = || match event {
            PendingEvent::Fresh(delivery) => match self.dispatcher.settled.track(delivery) {
                Some(tracked) => self.begin(tracked),
                None => None,
            },
            PendingEvent::Retry(tracked, attempt) => self.attempt(tracked, attempt),
        };
        catch(process).unwrap_or_else(|_| {
            log::error!(target: "coney::worker", "a worker panicked over an event");
            None
        })
    }

    /// The first attempt here.
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
        // Its worker may have died of it.
        let mut waiting = Some(tracked);
        let handled = marks.handle(&id, || {
            let tracked = waiting.take()?;
            self.attempt(tracked, LocalAttempts::default())
        });
        match (handled, waiting) {
            (Ok(MarkedOutcome::Handled(again)), _) => again,
            (Ok(MarkedOutcome::Poison(deaths)), Some(tracked)) => {
                self.dispatcher.refuse_poison(tracked, deaths);
                None
            }
            (Err(error), Some(tracked)) => {
                log::warn!(target: "coney::events", "{error}");
                Some((
                    PendingEvent::Retry(tracked, LocalAttempts::default()),
                    BEGIN_AGAIN,
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
            AfterDelivery::LocalRetry(again) => Some((
                PendingEvent::Retry(again.delivery, again.attempt),
                again.delay,
            )),
            // Events come one by one.
            AfterDelivery::Done | AfterDelivery::Batch(_) => None,
        }
    }

    /// Puts arrivals into their lanes, in order: one job at a time does it.
    fn sort(self: &Arc<Self>) {
        let Some(ordering) = &self.ordering else {
            return;
        };
        loop {
            let next = ordering.key_queues.lock().next_arrival();
            let Some((event, epoch)) = next else { return };
            let key = self.key_of(ordering, event.delivery());
            let entered = ordering.key_queues.lock().enter(&key, event, epoch);
            match entered {
                Ok(true) => drop(self.threads.workers.submit(Job::Key(Arc::clone(self), key))),
                Ok(false) => {}
                Err(event) => event.forget(),
            }
        }
    }

    /// Those that cannot be read share a lane.
    fn key_of(&self, ordering: &KeyOrdering, delivery: &Delivery) -> String {
        let Ok(message) = ServiceMessage::decode(&delivery.message().body) else {
            return String::new();
        };
        let key = catch(|| (ordering.key)(message.payload));
        key.ok().flatten().unwrap_or_default()
    }

    /// Handles the first event of a lane, and sees to the next.
    fn advance(self: &Arc<Self>, key: String) {
        let Some(ordering) = &self.ordering else {
            return;
        };
        let next = ordering.key_queues.lock().take(&key);
        if let Some((event, epoch)) = next
            && let Some((event, delay)) = self.process(event)
        {
            let kept = ordering.key_queues.lock().put_back(&key, event, epoch);
            match kept {
                Ok(()) => {
                    let job = Job::Key(Arc::clone(self), key);
                    return self.threads.delay_queue.add(delay, job);
                }
                // Its connection was lost meanwhile: the broker delivers it again.
                Err(event) => event.forget(),
            }
        }
        if ordering.key_queues.lock().has_more(&key) {
            let _ = self.threads.workers.submit(Job::Key(Arc::clone(self), key));
        }
    }

    /// What waits its turn.
    pub(super) fn take_waiting(&self) -> Vec<PendingEvent> {
        let waiting = self
            .ordering
            .iter()
            .flat_map(|it| it.key_queues.lock().clear());
        waiting.collect()
    }

    /// The number of events that wait their turn.
    pub(super) fn waiting(&self) -> usize {
        let ordering = self.ordering.as_ref();
        ordering.map_or(0, |ordering| ordering.key_queues.lock().len())
    }
}

/// Takes a feed's deliveries from the transport. Does not keep it alive: what it holds
/// of the user's must not end on the transport's thread.
pub(super) struct EventSink {
    pub(super) subscription: Weak<ActiveSubscription>,
    /// They come from the queue of suspects.
    pub(super) suspects: bool,
}

impl Sink for EventSink {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let Some(subscription) = self.subscription.upgrade() else {
            return Err(delivery);
        };
        let workers = &subscription.threads.workers;
        let Some(ordering) = &subscription.ordering else {
            let job = Job::Event {
                subscription: Arc::clone(&subscription),
                event: PendingEvent::Fresh(delivery),
            };
            let submitted = match self.suspects {
                true => workers.submit_suspect(job),
                false => workers.submit(job),
            };
            return match submitted {
                Err(Job::Event {
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
            // Once stopped, what has arrived is taken out of the lanes.
            let _ = workers.submit(Job::Arrivals(Arc::clone(&subscription)));
        }
        Ok(Vec::new())
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// The broker delivers all of it again, but for what was in a queue of our own: that
    /// is handled all the same.
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
                .threads
                .workers
                .take(|job| job.is_event_of(&subscription))
            {
                if let Job::Event { event, .. } = job {
                    event.forget();
                }
            }
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        log::info!(target: "coney::events", "no more events: {cause}");
    }
}
