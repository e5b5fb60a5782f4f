use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::topology::QueueOptions;
use crate::transport::Message;

pub(super) type QueueId = u64;
pub(super) type LinkId = u64;

/// A queue: the messages that wait, and the consumers that take turns.
pub(super) struct Queue {
    pub(super) name: String,
    /// An exclusive queue's owner; the queue goes when its owner does.
    pub(super) owner: Option<LinkId>,
    pub(super) options: QueueOptions,
    /// In the order of their arrival, which a requeued message gets back.
    ready: VecDeque<Entry>,
    /// Whose turn is next comes first.
    consumers: VecDeque<LinkId>,
    arrivals: u64,
    /// Of the bodies that wait.
    bytes: usize,
    /// The number of those that were dropped to make room.
    pub(super) dropped: u64,
}

/// The number of messages that a queue holds, and the bytes of bodies: as many as a program
/// that outgrows it should keep on RabbitMQ's disks.
pub(super) const MOST_MESSAGES: usize = 262_144;
pub(super) const MOST_BYTES: usize = 64 << 20;

/// A message in a queue, or delivered from it and not settled yet.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
    /// How often it came back, which only a quorum queue looks at.
    pub(super) returns: u32,
    arrival: u64,
    expires: Option<Instant>,
}

impl Queue {
    pub(super) fn new(name: String, owner: Option<LinkId>, options: QueueOptions) -> Self {
        Self {
            name,
            owner,
            options,
            ready: VecDeque::new(),
            consumers: VecDeque::new(),
            arrivals: 0,
            bytes: 0,
            dropped: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len()
    }

    /// It takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.ready.len() >= MOST_MESSAGES || self.bytes >= MOST_BYTES
    }

    /// Drops its oldest messages until it has room; true if it is the first time.
    pub(super) fn make_room(&mut self) -> bool {
        let before = self.dropped;
        while self.is_full() && self.pop().is_some() {
            self.dropped += 1;
        }
        before == 0 && self.dropped > 0
    }

    pub(super) fn push(&mut self, message: Arc<Message>, now: Instant) {
        self.arrivals += 1;
        let ttl = [message.properties.expiration, self.options.message_ttl];
        let expires = ttl.into_iter().flatten().min().map(|after| now + after);
        self.bytes += message.body.len();
        self.ready.push_back(Entry {
            message,
            redelivered: false,
            returns: 0,
            arrival: self.arrivals,
            expires,
        });
    }

    /// Puts a delivered message back where it was, marked as redelivered.
    pub(super) fn requeue(&mut self, mut entry: Entry) {
        entry.redelivered = true;
        entry.returns += 1;
        self.restore(entry);
    }

    /// Puts back a message that no consumer has seen.
    pub(super) fn restore(&mut self, entry: Entry) {
        let at = self
            .ready
            .partition_point(|other| other.arrival < entry.arrival);
        self.bytes += entry.message.body.len();
        self.ready.insert(at, entry);
    }

    /// Takes off the first message if it has expired. As in RabbitMQ, messages
    /// expire when they come to the head of their queue.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Entry> {
        self.next_expiry().filter(|&at| at <= now)?;
        self.pop()
    }

    /// When the first message expires, if it does.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.ready.front()?.expires
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.ready.pop_front()?;
        self.bytes -= entry.message.body.len();
        Some(entry)
    }

    pub(super) fn add_consumer(&mut self, link: LinkId) {
        self.consumers.push_back(link);
    }

    pub(super) fn remove_consumer(&mut self, link: LinkId) {
        self.consumers.retain(|&id| id != link);
    }

    /// The next consumer in turn for which `has_room` holds.
    pub(super) fn next_consumer(&mut self, has_room: impl Fn(LinkId) -> bool) -> Option<LinkId> {
        if self.options.single_active {
            let first = self.consumers.front().copied();
            return first.filter(|&link| has_room(link));
        }
        let at = self.consumers.iter().position(|&id| has_room(id))?;
        self.consumers.rotate_left(at);
        let link = *self.consumers.front()?;
        self.consumers.rotate_left(1);
        Some(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Arc<Message> {
        Arc::new(Message {
            body: vec![0; bytes],
            ..Message::default()
        })
    }

    #[test]
    fn is_bounded_in_bytes_and_gives_up_its_oldest() {
        let mut queue = Queue::new("q".to_owned(), None, QueueOptions::new());
        let now = Instant::now();
        for _ in 0..64 {
            assert!(!queue.is_full());
            queue.push(message(1 << 20), now);
        }
        assert!(queue.is_full());
        assert!(queue.make_room(), "the first time");
        assert!(!queue.is_full());
        queue.push(message(1 << 20), now);
        assert!(!queue.make_room());
        assert_eq!((queue.dropped, queue.len()), (2, 63));
        while queue.pop().is_some() {}
        assert_eq!(queue.bytes, 0);
    }
}
