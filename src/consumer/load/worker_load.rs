//! The load of workers at one moment.

use std::time::Duration;

/// The load of the workers of a server or a subscriber at one moment, for an autoscaler or a graph.
/// From [`ServiceServer::load`](crate::ServiceServer::load) and
/// [`EventSubscriber::load`](crate::EventSubscriber::load).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// The number of workers.
    pub workers: usize,
    /// The number of workers that are busy.
    pub running: usize,
    /// The number of requests or events that this process has and no worker runs.
    pub waiting: usize,
    /// The estimated time for which a request or an event that arrives now waits until a worker
    /// takes it. Includes those in the queue only while the workers are saturated, and calls are
    /// shed or there is a range of workers; otherwise the queue is not counted.
    pub estimated_wait: Duration,
    /// True if all workers have been busy and the prefetch full for 100 ms. Known only if calls are
    /// shed or there is a range of workers; false otherwise.
    pub is_saturated: bool,
    /// The number of handlers that run for longer than the
    /// [`handler_timeout`](crate::server::ServiceServerBuilder::handler_timeout).
    pub overdue: usize,
    /// The number of handlers that ever did.
    pub overdue_total: u64,
}
