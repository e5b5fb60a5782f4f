//! The state of the memory broker behind its lock.

use parking_lot::{Condvar, Mutex};

use super::state::State;
use crate::base::thread::OwnerProcess;

/// The state, which is `None` after the broker was closed, and the wake-up of its timer.
pub(super) struct SharedState {
    pub(super) owner: OwnerProcess,
    pub(super) state: Mutex<Option<State>>,
    /// Signalled when the timer may have to wake earlier, and when the broker closes.
    pub(super) tick: Condvar,
}

impl SharedState {
    /// Runs `act` on the state; returns `None` after the broker was closed.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> Option<R> {
        let mut guard = self.state.lock();
        let result = act(guard.as_mut()?);
        self.wake_timer(&mut guard);
        Some(result)
    }

    pub(super) fn wake_timer(&self, state: &mut Option<State>) {
        if let Some(state) = state
            && std::mem::take(&mut state.timer_due)
        {
            self.tick.notify_one();
        }
    }
}
