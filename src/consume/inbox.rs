use std::time::Duration;

use crate::topology;

/// A queue that is consumed with handlers, and the names that go with it.
pub(crate) struct Inbox {
    /// Whose it is, for texts.
    pub(crate) owner: String,
    pub(crate) queue: String,
    /// What the names of the queues between attempts begin with.
    pub(crate) stem: String,
    /// The queue counts redeliveries itself.
    pub(crate) counts: bool,
}

impl Inbox {
    /// Where what failed waits for its next attempt.
    pub(super) fn retry_queue(&self, delay: Duration) -> String {
        topology::retry_queue(&self.stem, delay)
    }
}
