//! The depth of a queue.

use crate::error::{Error, ErrorKind};

/// The depth of a queue: how much waits in it, and for how many consumers. From
/// [`Broker::queue_depth`](crate::Broker::queue_depth).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// The number of messages that no consumer has fetched. Those that consumers have fetched and
    /// not acknowledged do not count.
    pub messages: usize,
    /// The number of consumers: one for each server of a service.
    pub consumers: usize,
}

impl QueueDepth {
    /// Creates the error of a queue that does not exist.
    pub(super) fn no_queue(queue: &str) -> Error {
        Error::new(ErrorKind::NoRoute, format!("there is no queue {queue:?}"))
    }
}
