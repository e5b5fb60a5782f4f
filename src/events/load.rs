//! The parts of a subscriber that its load thread watches and changes.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::active_subscription::EventJob;
use super::running::Running;
use crate::consumer::{LoadQueueDepth, PoolStatus, WatchedWorkers, Workers};
use crate::error::Result;
use crate::transport::Broker;

/// The workers and queues of a subscriber, for its load thread.
pub(super) struct SubscribedQueues {
    pub(super) broker: Broker,
    pub(super) workers: Arc<Workers<EventJob>>,
    pub(super) subscriptions: Arc<Vec<Running>>,
}

impl WatchedWorkers for SubscribedQueues {
    fn status(&self) -> PoolStatus {
        self.workers.status()
    }

    fn grow(&self, workers: usize) -> std::io::Result<()> {
        self.workers.grow(workers)
    }

    fn replace_worker(&self) -> std::io::Result<()> {
        self.workers.replace_worker()
    }

    fn notify_when_busy(&self, sender: Sender<()>) {
        self.workers.notify_when_busy(sender);
    }

    fn depth(&self, deadline: Instant) -> Result<LoadQueueDepth> {
        let (mut shared, mut counted, mut failure) = (0, 0, None);
        for running in &*self.subscriptions {
            match running.depth(&self.broker, deadline) {
                Ok(depth) => {
                    shared += depth as u64;
                    counted += 1;
                }
                Err(error) => failure = Some(error),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        // A queue that is gone, or that there was no time for, does not hide the others.
        if let (0, Some(error)) = (counted, failure) {
            return Err(error);
        }
        // The share of this process in each queue, whose consumers differ.
        Ok(LoadQueueDepth {
            shared,
            consumers: 1,
            own: 0,
        })
    }

    fn set_prefetch(&self, prefetch: u16, deadline: Instant) -> Result<()> {
        let mut subscriptions = self.subscriptions.iter();
        subscriptions.try_for_each(|running| running.set_prefetch(prefetch, deadline))
    }

    fn full_at(&self, prefetch: u16) -> usize {
        full_at(&self.subscriptions, prefetch)
    }
}

/// Returns the number of unsettled events with which one of the queues may have its prefetch full.
pub(super) fn full_at(subscriptions: &[Running], prefetch: u16) -> usize {
    let prefetches = subscriptions.iter().map(|it| it.prefetch.of(prefetch));
    prefetches.min().unwrap_or(prefetch).into()
}
