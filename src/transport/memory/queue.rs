use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::transport::Message;

pub(super) type QueueId = u64;
pub(super) type LinkId = u64;

/// A queue: the messages that wait, and the consumers that take turns.
pub(super) struct Queue {
    pub(super) name: String,
    /// An exclusive queue's owner; the queue goes when its owner does.
    pub(super) owner: Option<LinkId>,
    /// In the order of their arrival, which a requeued message gets back.
    ready: VecDeque<Entry>,
    /// Whose turn is next comes first.
    consumers: VecDeque<LinkId>,
    arrivals: u64,
}

/// A message in a queue, or delivered from it and not settled yet.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
    arrival: u64,
    expires: Option<Instant>,
}

impl Queue {
    pub(super) fn new(name: String, owner: Option<LinkId>) -> Self {
        Self {
            name,
            owner,
            ready: VecDeque::new(),
            consumers: VecDeque::new(),
            arrivals: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn push(&mut self, message: Arc<Message>, now: Instant) {
        self.arrivals += 1;
        let expires = message.properties.expiration.map(|after| now + after);
        self.ready.push_back(Entry {
            message,
            redelivered: false,
            arrival: self.arrivals,
            expires,
        });
    }

    /// Puts a delivered message back where it was, marked as redelivered.
    pub(super) fn requeue(&mut self, mut entry: Entry) {
        entry.redelivered = true;
        self.restore(entry);
    }

    /// Puts back a message that no consumer has seen.
    pub(super) fn restore(&mut self, entry: Entry) {
        let at = self
            .ready
            .partition_point(|other| other.arrival < entry.arrival);
        self.ready.insert(at, entry);
    }

    /// As in RabbitMQ, messages expire when they come to the head of their
    /// queue.
    pub(super) fn drop_expired(&mut self, now: Instant) {
        let expired = |entry: &Entry| entry.expires.is_some_and(|at| at <= now);
        while self.ready.front().is_some_and(expired) {
            self.ready.pop_front();
        }
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.ready.pop_front()
    }

    pub(super) fn add_consumer(&mut self, link: LinkId) {
        self.consumers.push_back(link);
    }

    pub(super) fn remove_consumer(&mut self, link: LinkId) {
        self.consumers.retain(|&id| id != link);
    }

    /// The next consumer in turn for which `has_room` holds.
    pub(super) fn next_consumer(&mut self, has_room: impl Fn(LinkId) -> bool) -> Option<LinkId> {
        let at = self.consumers.iter().position(|&id| has_room(id))?;
        self.consumers.rotate_left(at);
        let link = *self.consumers.front()?;
        self.consumers.rotate_left(1);
        Some(link)
    }
}
