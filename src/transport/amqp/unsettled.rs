//! The deliveries of one channel that are not settled.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// The delivery tags of a channel that are not settled, shared by the threads that deliver and those
/// that settle.
#[derive(Default)]
pub(super) struct Unsettled {
    state: Mutex<State>,
    /// The number of deliveries that have arrived and wait, as more are unsettled than the prefetch
    /// allows.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    tags: HashSet<u64>,
    /// True if there are unsettled deliveries that are not in `tags`.
    has_held: bool,
}

impl Unsettled {
    pub(super) fn insert(&self, tag: u64) {
        self.state.lock().tags.insert(tag);
    }

    /// Takes a delivery that is settled now. Returns false if it is not there: it was settled
    /// before, or belongs to another channel.
    pub(super) fn take(&self, tag: u64) -> bool {
        self.state.lock().tags.remove(&tag)
    }

    /// Leaves a delivery to the end of the link, when the broker requeues it.
    pub(super) fn hold(&self, tag: u64) {
        let mut state = self.state.lock();
        state.has_held |= state.tags.remove(&tag);
    }

    /// Takes all deliveries, which are settled now: returns whether some were held, and the tags of the
    /// others in their order.
    pub(super) fn take_all(&self) -> (bool, Vec<u64>) {
        let mut state = self.state.lock();
        let mut tags: Vec<_> = state.tags.drain().collect();
        tags.sort_unstable();
        (std::mem::take(&mut state.has_held), tags)
    }

    /// Returns the number of deliveries that are neither settled nor held.
    pub(super) fn len(&self) -> usize {
        self.state.lock().tags.len()
    }

    /// Returns true if there is no delivery, not even a held one.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.tags.is_empty() && !state.has_held
    }

    /// Sets the number of deliveries that wait for others to be settled.
    pub(super) fn set_waiting(&self, count: usize) {
        self.waiting.store(count, Ordering::SeqCst);
    }

    /// Returns true if arrived deliveries wait for others to be settled.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}
