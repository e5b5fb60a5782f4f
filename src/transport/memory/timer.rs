//! The expiry timer of the memory broker.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::shared_state::SharedState;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Result};

/// The thread that dead-letters expired messages of queues without consumers, such as the retry
/// queues. Ends with the broker; dropping this after the state is gone joins the thread.
pub(super) struct Timer(Option<JoinHandle<()>>, Arc<SharedState>, OwnerProcess);

impl Timer {
    pub(super) fn start(shared: &Arc<SharedState>) -> Result<Self> {
        let thread = thread::Builder::new()
            .name("coney-memory-timer".to_owned())
            .spawn({
                let shared = Arc::clone(shared);
                move || run(&shared)
            })
            .map_err(|error| {
                Error::new(ErrorKind::Io, "cannot start the memory broker's timer")
                    .with_source(error)
            })?;
        Ok(Self(
            Some(thread),
            Arc::clone(shared),
            OwnerProcess::current(),
        ))
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.1.tick.notify_one();
        match self.0.take() {
            // Dropping it would detach the thread of the child that has this id now.
            Some(thread) if self.2.is_another() => std::mem::forget(thread),
            Some(thread) => drop(thread.join()),
            None => {}
        }
    }
}

fn run(shared: &SharedState) {
    let mut guard = shared.state.lock();
    while let Some(state) = guard.as_mut() {
        let next = state.expire_due(Instant::now());
        match next {
            Some(next) => {
                shared.tick.wait_until(&mut guard, next);
            }
            None => shared.tick.wait(&mut guard),
        }
    }
}
