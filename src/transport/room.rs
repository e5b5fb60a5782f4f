//! How much may wait to be sent: so many messages, and so many bytes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Instant;

use parking_lot::Mutex;

/// A bound on messages and on their bytes. Senders that find no room wait for it in turn:
/// a large message is not overtaken for ever by small ones.
pub(crate) struct Budget {
    state: Mutex<State>,
    /// A message that is larger than all of the room gets all of it.
    most_bytes: usize,
}

#[derive(Debug)]
struct State {
    messages: usize,
    bytes: usize,
    /// The threads that wait, the next first. Only that one is woken: with a thousand of
    /// them, waking all for each place would take longer than the sending.
    waiting: VecDeque<(u64, Thread)>,
    last: u64,
}

/// A place among the messages, given back when dropped.
pub(crate) struct Place(Arc<Budget>);

/// Room for a message's bytes, given back when dropped.
pub(crate) struct Room {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(messages: usize, bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                messages,
                bytes,
                waiting: VecDeque::new(),
                last: 0,
            }),
            most_bytes: bytes,
        }
    }

    /// Takes a place for a message. Blocks while there is none, at most until `deadline`.
    pub(crate) fn take_place(self: &Arc<Self>, deadline: Instant) -> Option<Place> {
        let taken = self.take(1, 0, Some(deadline));
        taken.then(|| Place(Arc::clone(self)))
    }

    /// Takes room for so many bytes. Blocks while there is none, at most until `deadline`;
    /// without one not at all.
    pub(crate) fn take_room(
        self: &Arc<Self>,
        bytes: usize,
        deadline: Option<Instant>,
    ) -> Option<Room> {
        let bytes = bytes.min(self.most_bytes);
        self.take(0, bytes, deadline).then(|| Room {
            budget: Arc::clone(self),
            bytes,
        })
    }

    fn take(&self, messages: usize, bytes: usize, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && state.take(messages, bytes) {
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
            let taken = is_next && state.take(messages, bytes);
            let now = Instant::now();
            if taken || now >= deadline {
                state.waiting.retain(|(other, _)| *other != turn);
                // There may be room for the next too.
                state.wake_next();
                return taken;
            }
            drop(state);
            thread::park_timeout(deadline - now);
        }
    }

    fn give_back(&self, messages: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.messages += messages;
        state.bytes += bytes;
        state.wake_next();
    }
}

impl State {
    fn wake_next(&self) {
        if let Some((_, thread)) = self.waiting.front() {
            thread.unpark();
        }
    }

    fn take(&mut self, messages: usize, bytes: usize) -> bool {
        let fits = self.messages >= messages && self.bytes >= bytes;
        if fits {
            self.messages -= messages;
            self.bytes -= bytes;
        }
        fits
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give_back(1, 0);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.give_back(0, self.bytes);
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({} bytes)", self.bytes)
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
    fn messages_and_bytes_are_bounded() {
        let budget = Arc::new(Budget::new(1, 100));
        let room = |bytes| budget.take_room(bytes, Some(soon()));
        let first = room(60).unwrap();
        assert!(room(60).is_none());
        assert!(budget.take_room(60, None).is_none());
        let second = budget.take_room(40, None).unwrap();
        let place = budget.take_place(soon()).unwrap();
        assert!(budget.take_place(soon()).is_none());
        drop(place);
        assert!(budget.take_place(soon()).is_some());
        drop((first, second));
        assert!(room(1_000).is_some(), "larger than all the room");
    }

    #[test]
    fn a_large_message_has_its_turn() {
        let budget = Arc::new(Budget::new(100, 100));
        let small: Vec<_> = (0..10)
            .map(|_| budget.take_room(10, None).unwrap())
            .collect();
        let later = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.take_room(100, Some(later)).is_some());
            while budget.state.lock().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(budget.take_room(0, None).is_none(), "it waits its turn");
            drop(small);
            assert!(large.join().unwrap());
        });
        assert!(budget.take_room(100, None).is_some());
    }
}
