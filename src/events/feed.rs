//! One subscription at work: from the deliveries of its queue to the workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::delays::Delays;
use super::lanes::Lanes;
use super::subscription::KeyOf;
use crate::consume::{self, Again, Attempt, Dispatch, Processed, Workers};
use crate::message::ServiceMessage;
use crate::transport::{Delivery, Publication, Returned, Sink};

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

pub(super) struct Order {
    key: KeyOf,
    lanes: Mutex<Lanes<(Delivery, Attempt)>>,
}

impl Order {
    pub(super) fn by(key: KeyOf) -> Self {
        Self {
            key,
            lanes: Mutex::new(Lanes::new()),
        }
    }
}

/// What a worker is given to do.
pub(super) enum Job {
    /// An event whose place does not matter.
    Event {
        feed: Arc<Feed>,
        delivery: Delivery,
        attempt: Attempt,
    },
    /// Look at what has arrived, and put it where it belongs.
    Arrivals(Arc<Feed>),
    /// The next event of a key.
    Lane(Arc<Feed>, String),
}

impl consume::Job for Job {}

impl Job {
    pub(super) fn run(self) {
        match self {
            Self::Event {
                feed,
                delivery,
                attempt,
            } => {
                if let Some(again) = feed.process(delivery, attempt) {
                    let job = Self::Event {
                        feed: Arc::clone(&feed),
                        delivery: again.delivery,
                        attempt: again.attempt,
                    };
                    feed.crew.delays.add(again.delay, job);
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
}

impl Feed {
    fn process(&self, delivery: Delivery, attempt: Attempt) -> Option<Again> {
        // A reply store is the user's code too, and a lane must go on.
        let process = AssertUnwindSafe(|| self.dispatch.process(delivery, attempt));
        match catch_unwind(process) {
            Ok(Processed::Again(again)) => Some(again),
            // Events come one by one.
            Ok(Processed::Done | Processed::Batch(_)) => None,
            Err(_) => {
                log::error!(target: "coney::worker", "a worker panicked over an event");
                None
            }
        }
    }

    /// Puts arrivals into their lanes, in order: one job at a time does it.
    fn sort(self: &Arc<Self>) {
        let Some(order) = &self.order else { return };
        loop {
            let next = order.lanes.lock().next_arrival();
            let Some((item, epoch)) = next else { return };
            let key = self.key_of(order, &item.0);
            let entered = order.lanes.lock().enter(&key, item, epoch);
            match entered {
                Ok(true) => drop(self.crew.workers.submit(Job::Lane(Arc::clone(self), key))),
                Ok(false) => {}
                Err((delivery, _)) => drop(delivery.forget()),
            }
        }
    }

    /// Those that cannot be read share a lane.
    fn key_of(&self, order: &Order, delivery: &Delivery) -> String {
        let Ok(message) = ServiceMessage::decode(&delivery.message().body) else {
            return String::new();
        };
        let key = catch_unwind(AssertUnwindSafe(|| (order.key)(message.payload)));
        key.ok().flatten().unwrap_or_default()
    }

    /// Handles the first event of a lane, and sees to the next.
    fn advance(self: &Arc<Self>, key: String) {
        let Some(order) = &self.order else { return };
        let next = order.lanes.lock().take(&key);
        if let Some(((delivery, attempt), epoch)) = next
            && let Some(again) = self.process(delivery, attempt)
        {
            let item = (again.delivery, again.attempt);
            let kept = order.lanes.lock().put_back(&key, item, epoch);
            match kept {
                Ok(()) => {
                    let job = Job::Lane(Arc::clone(self), key);
                    return self.crew.delays.add(again.delay, job);
                }
                // Its connection was lost meanwhile: the broker delivers it again.
                Err((delivery, _)) => drop(delivery.forget()),
            }
        }
        if order.lanes.lock().has_more(&key) {
            let _ = self.crew.workers.submit(Job::Lane(Arc::clone(self), key));
        }
    }

    /// What waits its turn.
    pub(super) fn take_waiting(&self) -> Vec<Delivery> {
        let waiting = self.order.iter().flat_map(|it| it.lanes.lock().clear());
        waiting.map(|(delivery, _)| delivery).collect()
    }
}

/// Takes a feed's deliveries from the transport. Does not keep it alive: what it holds
/// of the user's must not end on the transport's thread.
pub(super) struct Intake(pub(super) Weak<Feed>);

impl Sink for Intake {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let Some(feed) = self.0.upgrade() else {
            return Err(delivery);
        };
        let attempt = Attempt::default();
        let workers = &feed.crew.workers;
        let Some(order) = &feed.order else {
            let job = Job::Event {
                feed: Arc::clone(&feed),
                delivery,
                attempt,
            };
            return match workers.submit(job) {
                Err(Job::Event { delivery, .. }) => Err(delivery),
                _ => Ok(Vec::new()),
            };
        };
        let is_first = order.lanes.lock().arrive((delivery, attempt));
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
        if let Some(feed) = self.0.upgrade().filter(|feed| !feed.is_broadcast) {
            for delivery in feed.take_waiting() {
                delivery.forget();
            }
            for job in feed.crew.workers.take(|job| job.is_event_of(&feed)) {
                if let Job::Event { delivery, .. } = job {
                    delivery.forget();
                }
            }
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        log::warn!(target: "coney::events", "no more events: {cause}");
    }
}
