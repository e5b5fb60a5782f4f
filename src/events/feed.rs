//! One subscription at work: from the deliveries of its queue to the workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::delays::Delays;
use super::lanes::Lanes;
use super::subscription::KeyOf;
use crate::consume::{Again, Attempt, Dispatch, Workers};
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

    /// A job that was put off, or waits, has lost its delivery to the broker.
    fn forget(self, crew: &Crew) {
        match self {
            Self::Event { delivery, .. } => drop(delivery.forget()),
            // These find out by themselves.
            job @ (Self::Arrivals(_) | Self::Lane(..)) => drop(crew.workers.submit(job)),
        }
    }
}

impl Feed {
    fn process(&self, delivery: Delivery, attempt: Attempt) -> Option<Again> {
        // A reply store is the user's code too, and a lane must go on.
        let process = AssertUnwindSafe(|| self.dispatch.process(delivery, attempt));
        catch_unwind(process).unwrap_or_else(|_| {
            log::error!(target: "coney::worker", "a worker panicked over an event");
            None
        })
    }

    /// Puts arrivals into their lanes, in order: one job at a time does it.
    fn sort(self: &Arc<Self>) {
        let Some(order) = &self.order else { return };
        loop {
            let next = order.lanes.lock().next_arrival();
            let Some((delivery, attempt)) = next else {
                return;
            };
            let key = self.key_of(order, &delivery);
            let is_first = order.lanes.lock().enter(&key, (delivery, attempt));
            if is_first {
                let _ = self.crew.workers.submit(Job::Lane(Arc::clone(self), key));
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
        let again = next.and_then(|(delivery, attempt)| self.process(delivery, attempt));
        if let Some(again) = again {
            let item = (again.delivery, again.attempt);
            order.lanes.lock().put_back(&key, item);
            let job = Job::Lane(Arc::clone(self), key);
            return self.crew.delays.add(again.delay, job);
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
    fn delivery(&self, delivery: Delivery) -> Result<(), Delivery> {
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
                _ => Ok(()),
            };
        };
        let is_first = order.lanes.lock().arrive((delivery, attempt));
        if is_first {
            // Once stopped, what has arrived is taken out of the lanes.
            let _ = workers.submit(Job::Arrivals(Arc::clone(&feed)));
        }
        Ok(())
    }

    fn returned(&self, _returned: Returned) -> Option<Publication> {
        None
    }

    /// The broker delivers all of it again.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        if let Some(feed) = self.0.upgrade() {
            for delivery in feed.take_waiting() {
                delivery.forget();
            }
            let crew = &feed.crew;
            for job in crew.workers.clear().into_iter().chain(crew.delays.clear()) {
                job.forget(crew);
            }
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        log::info!(target: "coney::events", "no more events: {cause}");
    }
}
