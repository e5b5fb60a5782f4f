//! The jobs of a worker pool.

use std::time::Instant;

use super::lane::{Class, Shareable};

/// A job of a pool. Each worker runs one at a time.
pub(crate) trait Job: Shareable + Send + 'static {
    /// Starts no further part of the job.
    fn stop(&self) {}

    /// Returns true for a part of a job that has begun: the workers finish it before they end.
    fn is_begun(&self) -> bool {
        false
    }

    /// Ends the job without settling its message, which the broker has requeued.
    fn discard(self) {}
}

/// The rest of a job that a worker has run.
pub(crate) enum Next<J> {
    Done,
    /// The parts of the job, for as many workers as it can be shared by.
    Shared(J),
    /// The job, to be run as one of another class, after those before it with the same key.
    Enter {
        class: Class,
        key: Option<String>,
        job: J,
    },
    /// Parts of the job, to be run as jobs of these classes.
    Parts(Vec<(Class, J)>),
    /// The job, to be run again at that time.
    Later(J, Instant),
}

/// The counts of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolStatus {
    pub(crate) workers: usize,
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    /// The number of those that wait for nothing but a worker.
    pub(crate) ready: usize,
}
