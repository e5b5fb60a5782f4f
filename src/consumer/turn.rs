//! The access of a running job to its pool.

use super::lane::Class;
use super::pool_state::PoolStatus;

/// The access of a running job to its pool.
pub(crate) trait Turn {
    /// Returns true while jobs wait that are not shared, and no worker is idle.
    fn others_wait(&self) -> bool;

    /// Counts the job, or a part of it, as running in another class too, unless that class's limit
    /// is reached or jobs of it wait. Returns the number of jobs of the class that wait as the
    /// error.
    fn try_enter(&self, class: Class) -> Result<(), usize>;

    /// Ends what [`try_enter`](Self::try_enter) has counted.
    fn leave(&self, class: Class);

    /// Returns the counts of the pool.
    fn status(&self) -> PoolStatus;

    /// Returns true if another worker may be started in place of this one.
    fn may_grow(&self) -> bool;

    /// Lets one worker end after its job.
    fn end_one_worker(&self);
}

/// The access of a job on the thread for messages that may be poison: classes, counts and the
/// number of workers are those of the other workers.
pub(super) struct SuspectTurn<'a> {
    pub(super) own: &'a dyn Turn,
    pub(super) workers: &'a dyn Turn,
}

impl Turn for SuspectTurn<'_> {
    fn others_wait(&self) -> bool {
        self.own.others_wait()
    }

    fn try_enter(&self, class: Class) -> Result<(), usize> {
        self.workers.try_enter(class)
    }

    fn leave(&self, class: Class) {
        self.workers.leave(class);
    }

    fn status(&self) -> PoolStatus {
        self.workers.status()
    }

    /// The thread is the only one of its kind.
    fn may_grow(&self) -> bool {
        false
    }

    fn end_one_worker(&self) {
        self.workers.end_one_worker();
    }
}
