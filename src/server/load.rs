//! The load of a server, and the parts of it that its load thread changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::sources::Consumers;
use crate::consumer::{LoadQueueDepth, PoolStatus, WatchedWorkers};
use crate::error::Result;
use crate::topology;
use crate::transport::Broker;

/// The load of a server at one moment, for an autoscaler or a graph. From
/// [`ServiceServer::load`](crate::ServiceServer::load).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLoad {
    /// The number of workers.
    pub workers: usize,
    /// The number of workers that are busy.
    pub running: usize,
    /// The number of requests that this process has and no worker runs.
    pub waiting: usize,
    /// The estimated time for which a request that arrives now waits until a worker takes it.
    /// Includes the requests in the queue only while the server is saturated, and sheds calls or
    /// has a range of workers; otherwise the queue is not counted.
    pub estimated_wait: Duration,
    /// True if all workers have been busy and the prefetch full for 100 ms.
    pub is_saturated: bool,
    /// The number of handlers that run for longer than
    /// [`handler_timeout`](crate::server::ServiceServerBuilder::handler_timeout).
    pub overdue: usize,
    /// The number of handlers that ever did.
    pub overdue_total: u64,
}

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
