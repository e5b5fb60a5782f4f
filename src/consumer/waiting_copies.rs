//! The messages that this process has put off, until they come back.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::transport::x_death::{ATTEMPTS, COPIES};
use crate::transport::{Message, Properties, Publication};

/// The time for which a message may be late before it counts as gone to another server: then it is
/// in its queue, or handled elsewhere.
const LATE: Duration = Duration::from_secs(5);

/// The largest number of messages that are known one by one. Beyond it, only the time at which the
/// last of the others comes back is known.
const MOST: usize = 65_536;

/// The number of bytes at either end of a body that identify it.
const HASHED_BYTES: usize = 512;

/// The messages of one queue that wait in the broker for another attempt, as far as this process
/// has put them there. The queues in which they wait are shared by all services, so their depths
/// do not say it.
pub(crate) struct WaitingCopies {
    table: Mutex<Table>,
    hasher: RandomState,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<u64, Waiting>,
    /// The time at which the last message returns that is not in `waiting` because that was full.
    others_until: Option<Instant>,
}

/// The copies with one identity; several if senders use the same message id.
struct Waiting {
    copies: u32,
    /// The latest time at which one comes back.
    due: Instant,
}

impl WaitingCopies {
    pub(crate) fn new() -> Self {
        Self {
            table: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    /// Adds a copy that comes back after `delay`. It is removed again if the returned ticket is
    /// dropped and not [kept](WaitTicket::keep).
    pub(super) fn add(self: &Arc<Self>, copy: &Publication, delay: Duration) -> WaitTicket {
        let key = self.key(&copy.properties, copy.body.as_bytes());
        let now = Instant::now();
        self.table.lock().add(key, now + delay, now);
        WaitTicket {
            table: Arc::clone(self),
            key,
            is_kept: false,
        }
    }

    /// Removes a message that has come back.
    pub(super) fn returned(&self, message: &Message) {
        if message.properties.headers.get(COPIES).is_some() {
            let key = self.key(&message.properties, &message.body);
            self.table.lock().remove(key);
        }
    }

    /// Returns the number of messages that wait.
    pub(super) fn count(&self) -> usize {
        self.table.lock().count(Instant::now())
    }

    /// Returns the identity of a copy, which it keeps on its way.
    fn key(&self, properties: &Properties, body: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        properties.message_id.hash(&mut hasher);
        properties.correlation_id.hash(&mut hasher);
        for header in [ATTEMPTS, COPIES] {
            properties.headers.int(header).hash(&mut hasher);
        }
        body.len().hash(&mut hasher);
        hasher.write(&body[..body.len().min(HASHED_BYTES)]);
        hasher.write(&body[body.len().saturating_sub(HASHED_BYTES)..]);
        hasher.finish()
    }
}

impl Table {
    fn add(&mut self, key: u64, due: Instant, now: Instant) {
        if self.waiting.len() >= MOST && self.others_until.is_none_or(|until| until <= now) {
            self.forget_late(now);
        }
        if self.waiting.len() >= MOST && !self.waiting.contains_key(&key) {
            let until = due + LATE;
            self.others_until = Some(self.others_until.map_or(until, |other| other.max(until)));
            return;
        }
        let waiting = self
            .waiting
            .entry(key)
            .or_insert(Waiting { copies: 0, due });
        waiting.copies += 1;
        waiting.due = waiting.due.max(due);
    }

    fn remove(&mut self, key: u64) {
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.copies -= 1;
            if waiting.copies == 0 {
                self.waiting.remove(&key);
            }
        }
    }

    fn count(&mut self, now: Instant) -> usize {
        self.forget_late(now);
        let known: usize = self.waiting.values().map(|it| it.copies as usize).sum();
        known + usize::from(self.others_until.is_some_and(|until| until > now))
    }

    fn forget_late(&mut self, now: Instant) {
        self.waiting.retain(|_, waiting| waiting.due + LATE > now);
    }
}

/// A copy among the [`WaitingCopies`] whose publisher confirm is still to come.
pub(super) struct WaitTicket {
    table: Arc<WaitingCopies>,
    key: u64,
    is_kept: bool,
}

impl WaitTicket {
    /// Leaves the copy among those that wait: the broker has it, or may have it.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for WaitTicket {
    fn drop(&mut self) {
        if !self.is_kept {
            self.table.table.lock().remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn copy(id: &str, copies: i64) -> Publication {
        let mut copy = Publication::new("", "q", b"{}".to_vec());
        copy.properties.message_id = Some(id.to_owned());
        copy.properties.headers.insert(COPIES, copies);
        copy
    }

    fn delivered(copy: &Publication) -> Message {
        let mut message = Message {
            properties: copy.properties.clone(),
            body: copy.body.as_bytes().to_vec(),
            ..Message::default()
        };
        message.properties.headers.insert("x-death", "anything");
        message
    }

    #[test]
    fn a_copy_waits_until_it_comes_back() {
        let table = Arc::new(WaitingCopies::new());
        let (one, next) = (copy("a", 1), copy("a", 2));
        table.add(&one, SECOND).keep();
        table.add(&one, SECOND).keep();
        table.add(&next, SECOND).keep();
        assert_eq!(table.count(), 3);
        table.returned(&delivered(&one));
        table.returned(&delivered(&copy("b", 1)));
        assert_eq!(table.count(), 2);
        table.returned(&delivered(&one));
        table.returned(&delivered(&one));
        table.returned(&delivered(&next));
        assert_eq!(table.count(), 0);
    }

    #[test]
    fn a_copy_that_the_broker_does_not_take_is_not_waited_for() {
        let table = Arc::new(WaitingCopies::new());
        let ticket = table.add(&copy("a", 1), SECOND);
        assert_eq!(table.count(), 1);
        drop(ticket);
        assert_eq!(table.count(), 0);
    }

    #[test]
    fn the_table_is_bounded_and_waits_for_the_last_of_the_others() {
        let start = Instant::now();
        let mut table = Table::default();
        for key in 0..2 * MOST as u64 {
            table.add(key, start + SECOND, start);
        }
        assert_eq!(table.waiting.len(), MOST);
        for key in 0..2 * MOST as u64 {
            table.remove(key);
        }
        assert_eq!(table.count(start + SECOND), 1, "one of them may wait");
        assert_eq!(table.count(start + SECOND + LATE), 0);
        let late = start + 2 * SECOND + LATE;
        for key in 0..MOST as u64 {
            table.add(key, start, start);
        }
        table.add(MOST as u64, late + SECOND, late);
        assert_eq!(table.count(late), 1, "the late ones have made room");
    }

    proptest! {
        #[test]
        fn counts_what_is_neither_back_nor_late(
            steps in vec((0_u64..4, 0_u32..20, any::<bool>(), 0_u32..3), 0..60),
        ) {
            let start = Instant::now();
            let (mut table, mut model): (Table, Vec<(u64, u32)>) = Default::default();
            let mut now = 0_u32;
            for (key, delay, comes_back, passed) in steps {
                now += passed;
                let at = |second| start + second * SECOND;
                if comes_back {
                    table.remove(key);
                    if let Some(at) = model.iter().position(|(it, _)| *it == key) {
                        model.remove(at);
                    }
                } else {
                    // Copies with one identity are late when the last of them is.
                    let same = model.iter().filter(|(it, _)| *it == key);
                    let due = same.map(|(_, due)| *due).max().unwrap_or(0).max(now + delay);
                    model.push((key, due));
                    for (it, other) in &mut model {
                        if *it == key {
                            *other = due;
                        }
                    }
                    table.add(key, at(now + delay), at(now));
                }
                model.retain(|(_, due)| due + LATE.as_secs() as u32 > now);
                prop_assert_eq!(table.count(at(now)), model.len());
            }
        }
    }
}
