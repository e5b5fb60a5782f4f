//! Queues of the memory broker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::topology::QueueOptions;
use crate::transport::Message;

pub(super) type QueueId = u64;
pub(super) type LinkId = u64;

/// A queue: its messages, and the consumers that take turns.
pub(super) struct MemoryQueue {
    pub(super) name: String,
    /// The link that an exclusive queue belongs to; the queue is deleted with it.
    pub(super) owner: Option<LinkId>,
    pub(super) options: QueueOptions,
    /// The messages in the order of their arrival; a requeued message gets its old place.
    ready: VecDeque<Entry>,
    /// The consumers, the next one first.
    consumers: VecDeque<LinkId>,
    arrivals: u64,
    /// The size of the bodies in `ready`, in bytes.
    bytes: usize,
    /// The number of messages dropped to make room.
    pub(super) dropped: u64,
}

/// The bounds of a queue, in messages and in bytes of bodies: a program that outgrows them should
/// store its messages on RabbitMQ's disks.
pub(super) const MAX_MESSAGES: usize = 262_144;
pub(super) const MAX_BYTES: usize = 64 << 20;

/// A message in a queue, or delivered from it and not settled yet.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
    /// The number of times that it was requeued, which only matters in a quorum queue.
    pub(super) requeues: u32,
    arrival: u64,
    expires: Option<Instant>,
}

impl MemoryQueue {
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

    /// Returns the number of consumers.
    pub(super) fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// Returns true if the queue is at one of its bounds.
    pub(super) fn is_full(&self) -> bool {
        self.ready.len() >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    /// Drops the oldest messages until the queue has room; returns true if these are the first that
    /// it drops.
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
            requeues: 0,
            arrival: self.arrivals,
            expires,
        });
    }

    /// Puts a delivered message back into its old place, marked as redelivered.
    pub(super) fn requeue(&mut self, mut entry: Entry) {
        entry.redelivered = true;
        entry.requeues += 1;
        self.restore(entry);
    }

    /// Puts back a message that no consumer has received.
    pub(super) fn restore(&mut self, entry: Entry) {
        let at = self
            .ready
            .partition_point(|other| other.arrival < entry.arrival);
        self.bytes += entry.message.body.len();
        self.ready.insert(at, entry);
    }

    /// Takes off the first message if it has expired. As in RabbitMQ, messages expire when they
    /// reach the head of their queue.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Entry> {
        self.next_expiry().filter(|&at| at <= now)?;
        self.pop()
    }

    /// Returns the time at which the first message expires, if it does.
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

    /// Returns the next consumer in turn for which `has_room` is true.
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
    fn is_bounded_in_bytes_and_drops_its_oldest() {
        let mut queue = MemoryQueue::new("q".to_owned(), None, QueueOptions::new());
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
