//! The subscriptions to the events that invalidate responses.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::epoch::{Consuming, Epoch};
use super::job_thread::{Job, Jobs};
use crate::base::text;
use crate::error::Result;
use crate::topology::{self, EVENT_EXCHANGE};
use crate::transport::{
    Broker, Delivery, LinkHandle, LinkSpec, Message, Publication, Returned, Sink,
};

/// The number of events that the broker sends ahead: it bounds those that wait in this process.
const PREFETCH: u16 = 256;

/// The longest beginning of a queue's name, in bytes: the broker's limit is 255.
const LONGEST_NAME: usize = 200;

/// A receiver of events, for each of its subscriptions by number.
pub(super) trait EventTarget: Send + Sync {
    /// Handles an event. Called by the thread for events; may run user code.
    fn handle(&self, subscription: usize, event: &Message);
}

/// An event for the thread that decodes it.
pub(super) struct EventJob {
    target: Weak<dyn EventTarget>,
    subscription: usize,
    delivery: Delivery,
}

impl Job for EventJob {
    fn run(self) {
        if let Some(target) = self.target.upgrade() {
            target.handle(self.subscription, self.delivery.message());
        }
        self.delivery.ack();
    }
}

/// The open subscriptions of an action. Each has a queue of its own, which the broker deletes with the
/// connection, so that every process gets every event.
pub(super) struct Subscriptions {
    broker: Broker,
    links: Vec<Arc<dyn LinkHandle>>,
}

impl Subscriptions {
    /// Subscribes to the events whose names match each pattern. Blocks until the broker has started
    /// the subscriptions, at most 10 s for each and at most until `deadline`.
    pub(super) fn open<'p>(
        broker: &Broker,
        client: &str,
        patterns: impl Iterator<Item = &'p str>,
        target: &Arc<dyn EventTarget>,
        jobs: &Jobs<EventJob>,
        epoch: &Arc<Epoch>,
        deadline: Option<Instant>,
    ) -> Result<Self> {
        let mut opened = Self {
            broker: broker.clone(),
            links: Vec::new(),
        };
        for (subscription, pattern) in patterns.enumerate() {
            let sink = EventSink {
                subscription,
                target: Arc::downgrade(target),
                jobs: jobs.clone(),
                consuming: Consuming::not_yet(epoch),
            };
            let queue = topology::group_queue(client, &format!("cache.{pattern}"), None);
            let queue = format!(
                "{}.{:016x}",
                text::prefix(&queue, LONGEST_NAME),
                fastrand::u64(..)
            );
            let spec = LinkSpec::new(topology::for_events())
                .only_replies()
                .consume_own(queue, (EVENT_EXCHANGE, pattern), PREFETCH);
            let link = broker.open_until(spec, Arc::new(sink), deadline)?;
            opened.links.push(link);
        }
        Ok(opened)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        if self.broker.is_forked() {
            std::mem::forget(std::mem::take(&mut self.links));
            return;
        }
        self.links.iter().for_each(|link| link.close());
    }
}

/// The sink of a subscription: passes its events to the thread that decodes them, as user code must
/// not run here. Holds a weak reference for the same reason.
struct EventSink {
    subscription: usize,
    target: Weak<dyn EventTarget>,
    jobs: Jobs<EventJob>,
    consuming: Consuming,
}

impl Sink for EventSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        let job = EventJob {
            target: Weak::clone(&self.target),
            subscription: self.subscription,
            delivery,
        };
        if let Err(job) = self.jobs.add(job) {
            // The thread has ended with the cache, and the queue will with this link. Until then no
            // event has an effect.
            self.consuming.end();
            let _ = job.delivery.forget();
        }
        Ok(Vec::new())
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    fn opened(&self) {
        self.consuming.begin();
    }

    /// Ends the time in which no event was missed: the queue is gone with the connection.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        self.consuming.end();
        Vec::new()
    }

    fn closed(&self, _cause: &str) {
        self.consuming.end();
    }
}
