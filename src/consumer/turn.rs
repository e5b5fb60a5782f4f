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
