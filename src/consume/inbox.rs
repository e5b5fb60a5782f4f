use std::time::Duration;

use crate::topology;
use crate::transport::Message;

/// A queue that is consumed with handlers, and the names that go with it.
pub(crate) struct Inbox {
    /// Whose it is, for texts.
    pub(crate) owner: String,
    pub(crate) queue: String,
    /// What the names of the queues between attempts begin with.
    pub(crate) stem: String,
    /// Its events are in order, or the queue goes with this process: none of them may leave
    /// it and come back.
    pub(crate) is_ordered: bool,
}

impl Inbox {
    /// Where what failed waits for its next attempt.
    pub(super) fn retry_queue(&self, delay: Duration) -> String {
        topology::retry_queue(&self.stem, delay)
    }

    /// The place where messages are handled one at a time that a worker may have died of.
    pub(crate) fn suspect_queue(&self) -> String {
        topology::suspect_queue(&self.stem)
    }

    /// Was it taken from there? Copies go there by the default exchange.
    pub(super) fn is_suspect(&self, message: &Message) -> bool {
        message.exchange.is_empty() && message.routing_key == self.suspect_queue()
    }
}
