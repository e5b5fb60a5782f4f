//! Handlers that end when a test lets them, and a record of their runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coney::Context;
use parking_lot::{Condvar, Mutex};

use super::{PATIENCE, eventually};

/// A gate for handlers. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_open: bool,
    /// The number of runs that may end although the gate is shut.
    passes: usize,
    running: usize,
    most_running: usize,
    runs: Vec<Run>,
}

/// A run of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub n: u64,
    pub attempt: u32,
    pub is_redelivered: bool,
}

impl Run {
    /// Returns the first run of a request that was never delivered before.
    pub fn first(n: u64) -> Self {
        Self {
            n,
            attempt: 1,
            is_redelivered: false,
        }
    }
}

impl Gate {
    /// Creates a gate that is shut.
    pub fn shut() -> Self {
        Self::default()
    }

    /// Records a run of a handler, and blocks until it may end. Returns its payload.
    pub fn enter(&self, context: &Context<'_>, n: u64) -> u64 {
        let (state, changed) = &*self.0;
        let mut state = state.lock();
        state.runs.push(Run {
            n,
            attempt: context.attempt(),
            is_redelivered: context.is_redelivered(),
        });
        state.running += 1;
        state.most_running = state.most_running.max(state.running);
        let end = Instant::now() + 3 * PATIENCE;
        while !state.is_open && state.passes == 0 && Instant::now() < end {
            changed.wait_for(&mut state, Duration::from_secs(1));
        }
        state.passes = state.passes.saturating_sub(1);
        state.running -= 1;
        n
    }

    /// Opens the gate: running handlers end, and later ones end at once.
    pub fn open(&self) {
        self.0.0.lock().is_open = true;
        self.0.1.notify_all();
    }

    /// Shuts the gate for handlers that run now or later.
    pub fn close(&self) {
        self.0.0.lock().is_open = false;
    }

    /// Lets one handler end.
    pub fn pass(&self) {
        self.0.0.lock().passes += 1;
        self.0.1.notify_one();
    }

    /// Returns the number of handlers that run.
    pub fn running(&self) -> usize {
        self.0.0.lock().running
    }

    /// Blocks until so many handlers run.
    pub fn wait_for(&self, running: usize) {
        eventually("so many handlers run", || self.running() == running);
    }

    /// Returns the largest number of handlers that ran at the same time.
    pub fn most_running(&self) -> usize {
        self.0.0.lock().most_running
    }

    /// Returns the runs so far, in the order of their payloads.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = self.0.0.lock().runs.clone();
        runs.sort_unstable();
        runs
    }
}

/// Opens a gate when it is dropped: a server that a failed test drops would wait for its handlers.
pub struct OpenAtEnd<'a>(pub &'a Gate);

impl Drop for OpenAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}
