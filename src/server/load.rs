//! The parts of a server that its load thread watches and changes.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::sources::Consumers;
use crate::consumer::{LoadQueueDepth, PoolStatus, WatchedWorkers};
use crate::error::Result;
use crate::topology;
use crate::transport::Broker;

/// The workers and queues of a server, for its load thread.
pub(super) struct ServerQueues {
    pub(super) broker: Broker,
    pub(super) queue: String,
    pub(super) consumers: Arc<Consumers>,
}

impl WatchedWorkers for ServerQueues {
    fn status(&self) -> PoolStatus {
        self.consumers.requests.workers.status()
    }

    fn grow(&self, workers: usize) -> std::io::Result<()> {
        self.consumers.requests.workers.grow(workers)
    }

    fn replace_worker(&self) -> std::io::Result<()> {
        self.consumers.requests.workers.replace_worker()
    }

    fn notify_when_busy(&self, sender: Sender<()>) {
        self.consumers.requests.workers.notify_when_busy(sender);
    }

    fn depth(&self, deadline: Instant) -> Result<LoadQueueDepth> {
        let depth = self.broker.queue_depth_until(&self.queue, deadline)?;
        Ok(LoadQueueDepth {
            shared: depth.messages as u64,
            consumers: depth.consumers as u64,
            // The broker counts an exclusive queue for no other connection.
            own: 0,
        })
    }

    fn set_prefetch(&self, prefetch: u16, deadline: Instant) -> Result<()> {
        self.consumers.set_prefetch(prefetch, deadline)
    }
}

impl ServerQueues {
    pub(super) fn new(broker: &Broker, service: &str, consumers: &Arc<Consumers>) -> Self {
        Self {
            broker: broker.clone(),
            queue: topology::request_queue(service),
            consumers: Arc::clone(consumers),
        }
    }
}
