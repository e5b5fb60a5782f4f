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
}

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
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn push(&mut self, message: Arc<Message>, now: Instant) {
        self.arrivals += 1;
        let ttl = [message.properties.expiration, self.options.message_ttl];
        let expires = ttl.into_iter().flatten().min().map(|after| now + after);
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
        self.ready.insert(at, entry);
    }

    /// Takes off the first message if it has expired. As in RabbitMQ, messages
    /// expire when they come to the head of their queue.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Entry> {
        self.next_expiry().filter(|&at| at <= now)?;
        self.ready.pop_front()
    }

    /// When the first message expires, if it does.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.ready.front()?.expires
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
