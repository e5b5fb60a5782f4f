//! Bounds on the messages that are queued to be sent, with waiting in turn.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Instant;

use parking_lot::Mutex;

/// A bound on queued messages: on their number, or on their bytes. Each has a budget of its own, so
/// that a sender with enough bytes does not queue for its slot behind one that lacks bytes. Blocked
/// senders are served in turn: small messages cannot overtake a large one forever.
pub(crate) struct Budget {
    state: Mutex<State>,
    /// The whole budget; a larger request gets all of it.
    capacity: usize,
}

#[derive(Debug)]
struct State {
    left: usize,
    /// The blocked threads, the next one first. Only that one is woken: with a thousand of them,
    /// waking all for each free slot would take longer than the sending.
    waiting: VecDeque<(u64, Thread)>,
    last: u64,
}

/// A share of a budget, released on drop.
pub(crate) struct Room {
    budget: Arc<Budget>,
    size: usize,
}

impl Budget {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                left: capacity,
                waiting: VecDeque::new(),
                last: 0,
            }),
            capacity,
        }
    }

    /// Takes a share of this size. Blocks while there is none, at most until `deadline`, and not at
    /// all without a deadline.
    pub(crate) fn take(self: &Arc<Self>, size: usize, deadline: Option<Instant>) -> Option<Room> {
        let size = size.min(self.capacity);
        self.wait_for(size, deadline).then(|| Room {
            budget: Arc::clone(self),
            size,
        })
    }

    fn wait_for(&self, size: usize, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && state.take(size) {
            return true;
        }
        let Some(deadline) = deadline else {
            return false;
        };
        state.last += 1;
        let turn = state.last;
        state.waiting.push_back((turn, thread::current()));
        drop(state);
        loop {
            let mut state = self.state.lock();
            let is_next = state.waiting.front().is_some_and(|(next, _)| *next == turn);
            let taken = is_next && state.take(size);
            let now = Instant::now();
            if taken || now >= deadline {
                state.waiting.retain(|(other, _)| *other != turn);
                // The rest may be enough for the next thread.
                state.wake_next();
                return taken;
            }
            drop(state);
            thread::park_timeout(deadline - now);
        }
    }
}

impl State {
    fn wake_next(&self) {
        if let Some((_, thread)) = self.waiting.front() {
            thread.unpark();
        }
    }

    fn take(&mut self, size: usize) -> bool {
        let fits = self.left >= size;
        if fits {
            self.left -= size;
        }
        fits
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.left += self.size;
        state.wake_next();
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({})", self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn queued_messages_are_bounded() {
        let budget = Arc::new(Budget::new(100));
        let room = |size| budget.take(size, Some(soon()));
        let first = room(60).unwrap();
        assert!(room(60).is_none());
        assert!(budget.take(60, None).is_none());
        let second = budget.take(40, None).unwrap();
        drop((first, second));
        assert!(room(1_000).is_some(), "larger than all the room");
    }

    #[test]
    fn a_large_message_is_not_overtaken() {
        let budget = Arc::new(Budget::new(100));
        let small: Vec<_> = (0..10).map(|_| budget.take(10, None).unwrap()).collect();
        let later = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.take(100, Some(later)).is_some());
            while budget.state.lock().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(budget.take(0, None).is_none(), "it waits its turn");
            drop(small);
            assert!(large.join().unwrap());
        });
        assert!(budget.take(100, None).is_some());
    }
}
