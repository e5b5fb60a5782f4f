//! The part of a pool that its workers share.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::lane::Class;
use super::pool_state::{Job, PoolState, PoolStatus};
use super::turn::Turn;

/// The part of a pool that its workers share.
pub(super) struct Shared<J> {
    pub(super) state: Mutex<PoolState<J>>,
    /// True while jobs wait that are not shared, and no worker is idle.
    pub(super) others_wait: AtomicBool,
    pub(super) may_grow: bool,
}

impl<J: Job> Shared<J> {
    /// Queues a job of a class. Returns it if the pool has been stopped.
    pub(super) fn submit_to(&self, class: Class, job: J) -> Result<(), J> {
        let effects = {
            let mut state = self.state.lock();
            let effects = state.submit(class, job)?;
            self.note_others(&state);
            effects
        };
        effects.carry_out();
        Ok(())
    }

    pub(super) fn note_others(&self, state: &MutexGuard<'_, PoolState<J>>) {
        let others_wait = state.others_wait();
        if self.others_wait.load(Ordering::Relaxed) != others_wait {
            self.others_wait.store(others_wait, Ordering::Relaxed);
        }
    }
}

impl<J: Job> Turn for Shared<J> {
    fn others_wait(&self) -> bool {
        self.others_wait.load(Ordering::Relaxed)
    }

    fn try_enter(&self, class: Class) -> Result<(), usize> {
        let mut state = self.state.lock();
        let waiting = state.schedule.waiting_of(class);
        if waiting == 0 && state.schedule.try_enter(class) {
            return Ok(());
        }
        Err(waiting)
    }

    fn leave(&self, class: Class) {
        let effects = {
            let mut state = self.state.lock();
            state.schedule.leave(class);
            self.note_others(&state);
            state.effects(None)
        };
        effects.carry_out();
    }

    fn status(&self) -> PoolStatus {
        self.state.lock().status()
    }

    fn may_grow(&self) -> bool {
        self.may_grow
    }

    fn end_one_worker(&self) {
        let mut state = self.state.lock();
        state.end_one_worker();
    }
}
