//! One subscription at work: from the deliveries of its queue to the workers.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::begun::{Begun, Verdict};
use super::delays::Delays;
use super::lanes::Lanes;
use super::subscription::KeyOf;
use crate::caught::catch;
use crate::consume::{self, Attempt, Dispatch, Processed, Tracked, Workers};
use crate::message::ServiceMessage;
use crate::transport::{Delivery, Publication, Returned, Sink};

/// The time for which an ordered event waits that cannot be begun now.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);

/// Those who work for all subscriptions of a subscriber.
pub(super) struct Crew {
    pub(super) workers: Arc<Workers<Job>>,
    pub(super) delays: Delays<Job>,
}

/// A subscription's handler, and what waits for it where the order matters.
pub(super) struct Feed {
    pub(super) dispatch: Dispatch,
    pub(super) order: Option<Order>,
    /// Its queue goes with the connection: what it holds is held nowhere else.
    pub(super) is_broadcast: bool,
    pub(super) crew: Arc<Crew>,
}

/// The order of a subscription's events.
pub(super) struct Order {
    key: KeyOf,
    lanes: Mutex<Lanes<Event>>,
    /// None where no other process takes over: a broadcast's.
    begun: Option<Begun>,
}

impl Order {
    pub(super) fn by(key: KeyOf, begun: Option<Begun>) -> Self {
        Self {
            key,
            lanes: Mutex::new(Lanes::new()),
            begun,
        }
    }
}

/// An event that waits for a worker.
pub(super) enum Event {
    Fresh(Delivery),
    /// It has been looked into, and is to be processed again.
    Again(Tracked, Attempt),
}

impl Event {
    /// The broker has it again.
    fn forget(self) {
        match self {
            Self::Fresh(delivery) => drop(delivery.forget()),
            Self::Again(tracked, _) => tracked.forget(),
        }
    }

    fn delivery(&self) -> &Delivery {
        match self {
            Self::Fresh(delivery) => delivery,
            Self::Again(tracked, _) => tracked.delivery(),
        }
    }

    /// The event, if no attempt at it has been made here.
    fn into_fresh(self) -> Option<Delivery> {
        match self {
            Self::Fresh(delivery) => Some(delivery),
            Self::Again(..) => None,
        }
    }
}

/// A job for a worker.
pub(super) enum Job {
    /// An event whose place does not matter.
    Event { feed: Arc<Feed>, event: Event },
    /// Look at what has arrived, and put it where it belongs.
    Arrivals(Arc<Feed>),
    /// The next event of a key.
    Lane(Arc<Feed>, String),
}

impl consume::Job for Job {}

impl Job {
    pub(super) fn run(self) {
        match self {
            Self::Event { feed, event } => {
                if let Some((event, delay)) = feed.process(event) {
                    let job = Self::Event {
                        feed: Arc::clone(&feed),
                        event,
                    };
                    feed.crew.delays.add(delay, job);
                }
            }
            Self::Arrivals(feed) => feed.sort(),
            Self::Lane(feed, key) => feed.advance(key),
        }
    }

    /// Is it an event of this feed? Jobs for lanes find out by themselves what is left.
    fn is_event_of(&self, feed: &Arc<Feed>) -> bool {
        matches!(self, Self::Event { feed: its, .. } if Arc::ptr_eq(its, feed))
    }

    /// Puts back an event that no worker has begun with. Blocks at most until `deadline`.
    pub(super) fn give_back(self, deadline: Instant) {
        if let Self::Event { feed, event } = self
            && !feed.is_broadcast
            && let Some(delivery) = event.into_fresh()
        {
            feed.dispatch.give_back(delivery, deadline);
        }
    }
}

impl Feed {
    /// Processes an event; returns it, and how long it waits here, if it is to be processed
    /// again.
    fn process(&self, event: Event) -> Option<(Event, Duration)> {
        // A reply store is the user's code too, and a lane must go on.
        let process = || match event {
            Event::Fresh(delivery) => match self.dispatch.settled.track(delivery) {
                Some(tracked) => self.begin(tracked),
                None => None,
            },
            Event::Again(tracked, attempt) => self.attempt(tracked, attempt),
        };
        catch(process).unwrap_or_else(|_| {
            log::error!(target: "coney::worker", "a worker panicked over an event");
            None
        })
    }

    /// The first attempt here.
    fn begin(&self, tracked: Tracked) -> Option<(Event, Duration)> {
        let id = tracked.message().properties.message_id.clone();
        let begun = self.order.as_ref().and_then(|order| order.begun.as_ref());
        let (Some(begun), Some(id), true) = (
            begun,
            id.filter(|id| !id.is_empty()),
            tracked.delivery().is_redelivered(),
        ) else {
            return self.attempt(tracked, Attempt::default());
        };
        // Its worker may have died of it.
        let mut waiting = Some(tracked);
        let handled = begun.handle(&id, || {
            let tracked = waiting.take()?;
            self.attempt(tracked, Attempt::default())
        });
        match (handled, waiting) {
            (Ok(Verdict::Handled(again)), _) => again,
            (Ok(Verdict::Poison(deaths)), Some(tracked)) => {
                self.dispatch.refuse_poison(tracked, deaths);
                None
            }
            (Err(error), Some(tracked)) => {
                log::warn!(target: "coney::events", "{error}");
                Some((Event::Again(tracked, Attempt::default()), BEGIN_AGAIN))
            }
            (Ok(Verdict::Poison(_)) | Err(_), None) => None,
        }
    }

    fn attempt(&self, tracked: Tracked, attempt: Attempt) -> Option<(Event, Duration)> {
        match self.dispatch.process_tracked(tracked, attempt) {
            Processed::Again(again) => {
                Some((Event::Again(again.delivery, again.attempt), again.delay))
            }
            // Events come one by one.
            Processed::Done | Processed::Batch(_) => None,
        }
    }

    /// Puts arrivals into their lanes, in order: one job at a time does it.
    fn sort(self: &Arc<Self>) {
        let Some(order) = &self.order else { return };
        loop {
            let next = order.lanes.lock().next_arrival();
            let Some((event, epoch)) = next else { return };
            let key = self.key_of(order, event.delivery());
            let entered = order.lanes.lock().enter(&key, event, epoch);
            match entered {
                Ok(true) => drop(self.crew.workers.submit(Job::Lane(Arc::clone(self), key))),
                Ok(false) => {}
                Err(event) => event.forget(),
            }
        }
    }

    /// Those that cannot be read share a lane.
    fn key_of(&self, order: &Order, delivery: &Delivery) -> String {
        let Ok(message) = ServiceMessage::decode(&delivery.message().body) else {
            return String::new();
        };
        let key = catch(|| (order.key)(message.payload));
        key.ok().flatten().unwrap_or_default()
    }

    /// Handles the first event of a lane, and sees to the next.
    fn advance(self: &Arc<Self>, key: String) {
        let Some(order) = &self.order else { return };
        let next = order.lanes.lock().take(&key);
        if let Some((event, epoch)) = next
            && let Some((event, delay)) = self.process(event)
        {
            let kept = order.lanes.lock().put_back(&key, event, epoch);
            match kept {
                Ok(()) => {
                    let job = Job::Lane(Arc::clone(self), key);
                    return self.crew.delays.add(delay, job);
                }
                // Its connection was lost meanwhile: the broker delivers it again.
                Err(event) => event.forget(),
            }
        }
        if order.lanes.lock().has_more(&key) {
            let _ = self.crew.workers.submit(Job::Lane(Arc::clone(self), key));
        }
    }

    /// What waits its turn.
    pub(super) fn take_waiting(&self) -> Vec<Event> {
        let waiting = self.order.iter().flat_map(|it| it.lanes.lock().clear());
        waiting.collect()
    }

    /// The number of events that wait their turn.
    pub(super) fn waiting(&self) -> usize {
        let order = self.order.as_ref();
        order.map_or(0, |order| order.lanes.lock().len())
    }
}

/// Takes a feed's deliveries from the transport. Does not keep it alive: what it holds
/// of the user's must not end on the transport's thread.
pub(super) struct Intake {
    pub(super) feed: Weak<Feed>,
    /// They come from the queue of suspects.
    pub(super) suspects: bool,
}

impl Sink for Intake {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let Some(feed) = self.feed.upgrade() else {
            return Err(delivery);
        };
        let workers = &feed.crew.workers;
        let Some(order) = &feed.order else {
            let job = Job::Event {
                feed: Arc::clone(&feed),
                event: Event::Fresh(delivery),
            };
            let submitted = match self.suspects {
                true => workers.submit_suspect(job),
                false => workers.submit(job),
            };
            return match submitted {
                Err(Job::Event {
                    event: Event::Fresh(delivery),
                    ..
                }) => Err(delivery),
                _ => Ok(Vec::new()),
            };
        };
        let is_first = order.lanes.lock().arrive(Event::Fresh(delivery));
        if is_first {
            // Once stopped, what has arrived is taken out of the lanes.
            let _ = workers.submit(Job::Arrivals(Arc::clone(&feed)));
        }
        Ok(Vec::new())
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// The broker delivers all of it again, but for what was in a queue of our own: that
    /// is handled all the same.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        if let Some(feed) = self.feed.upgrade().filter(|feed| !feed.is_broadcast) {
            if let Some(begun) = feed.order.as_ref().and_then(|order| order.begun.as_ref()) {
                begun.lost();
            }
            for event in feed.take_waiting() {
                event.forget();
            }
            for job in feed.crew.workers.take(|job| job.is_event_of(&feed)) {
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
