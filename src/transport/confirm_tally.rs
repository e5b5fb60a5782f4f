//! The count of a lane's unconfirmed messages: for which destinations they are, and for how long
//! the broker has answered none of them.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The exchange and the routing key of a message.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Destination<'a> {
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
}

/// A hash of a destination. Two destinations with the same one only share a lane.
pub(super) type DestinationId = u64;

/// The broker's answer to a message with a publisher confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The broker accepted the message, or returned it.
    Confirmed,
    /// The broker refused the message.
    Refused,
    /// None: the connection was lost, or the message was never sent.
    None,
}

/// The unconfirmed messages of a lane. A plain struct that is passed the time.
#[derive(Debug, Default)]
pub(super) struct ConfirmTally {
    destinations: HashMap<DestinationId, Unconfirmed>,
    /// The number of messages that ever entered the lane.
    entered: u64,
    /// The number of unconfirmed messages.
    messages: usize,
    /// The number of those that were sent.
    sent: usize,
    /// The time of the broker's last answer, or of sending the first message that it has not
    /// answered, if there is one.
    quiet_since: Option<Instant>,
    /// True if the last answer was a confirm.
    is_confirming: bool,
}

/// The unconfirmed messages of one destination.
#[derive(Debug)]
struct Unconfirmed {
    name: String,
    messages: usize,
    /// The place of the first one among the messages of the lane.
    first: u64,
}

impl Destination<'_> {
    pub(super) fn id(self) -> DestinationId {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Returns the destination's name for logs and errors.
    pub(super) fn name(self) -> String {
        match self.exchange {
            "" => format!("queue {:?}", self.routing_key),
            exchange => format!(
                "routing key {:?} of exchange {exchange:?}",
                self.routing_key
            ),
        }
    }
}

impl ConfirmTally {
    fn enter(&mut self, destination: Destination<'_>) {
        self.entered += 1;
        self.messages += 1;
        match self.destinations.entry(destination.id()) {
            Entry::Occupied(mut entry) => entry.get_mut().messages += 1,
            Entry::Vacant(entry) => {
                entry.insert(Unconfirmed {
                    name: destination.name(),
                    messages: 1,
                    first: self.entered,
                });
            }
        }
    }

    fn sent(&mut self, now: Instant) {
        self.sent += 1;
        self.quiet_since.get_or_insert(now);
    }

    /// Records that a sent message waits to be sent again.
    fn unsent(&mut self) {
        self.sent = self.sent.saturating_sub(1);
        if self.sent == 0 {
            self.quiet_since = None;
        }
    }

    fn leave(&mut self, destination: DestinationId, answer: Answer, now: Instant) {
        if let Entry::Occupied(mut entry) = self.destinations.entry(destination) {
            entry.get_mut().messages -= 1;
            if entry.get().messages == 0 {
                entry.remove();
            }
            self.messages -= 1;
        }
        if answer != Answer::None {
            self.is_confirming = answer == Answer::Confirmed;
            self.quiet_since = (self.sent > 0).then_some(now);
        }
    }

    /// Returns the time for which the broker has answered nothing, while it has messages to answer.
    pub(super) fn quiet_for(&self, now: Instant) -> Duration {
        self.quiet_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Returns the number of unconfirmed messages, sent or not.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Returns true if the broker's last answer was a confirm.
    pub(super) fn is_confirming(&self) -> bool {
        self.is_confirming
    }

    /// Returns the destinations with unconfirmed messages and their names, the one that has waited
    /// longest first.
    pub(super) fn destinations(&self) -> Vec<(DestinationId, String)> {
        let mut waiting: Vec<_> = self.destinations.iter().collect();
        waiting.sort_unstable_by_key(|(_, unconfirmed)| unconfirmed.first);
        let waiting = waiting.into_iter();
        waiting.map(|(&id, it)| (id, it.name.clone())).collect()
    }
}

/// The tally of a lane, shared by the lane and the confirms of its messages.
#[derive(Debug, Default)]
pub(super) struct SharedTally {
    tally: Mutex<ConfirmTally>,
    left: Condvar,
}

impl SharedTally {
    /// Returns the result of `read`.
    pub(super) fn read<T>(&self, read: impl FnOnce(&ConfirmTally) -> T) -> T {
        read(&self.tally.lock())
    }

    /// Counts a message until its place is dropped.
    pub(super) fn enter(self: &Arc<Self>, destination: Destination<'_>) -> TallyPlace {
        self.tally.lock().enter(destination);
        TallyPlace {
            tally: Arc::clone(self),
            destination: destination.id(),
            is_sent: false,
            answer: Answer::None,
        }
    }

    /// Blocks until fewer than `messages` are unconfirmed, at most until `deadline`.
    pub(super) fn wait_until_fewer(&self, messages: usize, deadline: Instant) {
        let mut tally = self.tally.lock();
        while tally.messages() >= messages {
            if self.left.wait_until(&mut tally, deadline).timed_out() {
                return;
            }
        }
    }
}

/// The place of one message in the tally of its lane.
#[derive(Debug)]
pub(super) struct TallyPlace {
    tally: Arc<SharedTally>,
    destination: DestinationId,
    is_sent: bool,
    answer: Answer,
}

impl TallyPlace {
    /// Records that the message was sent.
    pub(super) fn sent(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_sent, true) {
            self.tally.tally.lock().sent(now);
        }
    }

    /// Records that the message was lost and waits to be sent again.
    pub(super) fn unsent(&mut self) {
        if std::mem::take(&mut self.is_sent) {
            self.tally.tally.lock().unsent();
        }
    }

    /// Records the broker's answer, and ends the count of the message.
    pub(super) fn answered(mut self, answer: Answer) {
        self.answer = answer;
    }
}

impl Drop for TallyPlace {
    fn drop(&mut self) {
        let mut tally = self.tally.tally.lock();
        if self.is_sent {
            tally.unsent();
        }
        tally.leave(self.destination, self.answer, Instant::now());
        drop(tally);
        self.tally.left.notify_all();
    }
}
