//! The state of the memory broker, and the way of a message through it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::exchange::Exchange;
use super::link_state::LinkState;
use super::queue::{Entry, LinkId, MAX_BYTES, MAX_MESSAGES, MemoryQueue, QueueId};
use crate::base::log_relay;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::DEAD_QUEUE;
use crate::transport::{
    ConfirmOutcome, ConfirmSender, Delivery, Disposition, HeaderTable, Message, Publication,
    QueueDepth, Returned, Sink,
};

/// Everything the broker holds, as one plain struct with no lock and no clock of its own, so that a
/// test can drive it step by step against a model.
///
/// Sinks are called while it is borrowed: a queue's deliveries reach a consumer in the queue's
/// order only if no other thread can interfere.
#[derive(Default)]
pub(super) struct State {
    pub(super) exchanges: HashMap<String, Exchange>,
    pub(super) queues: HashMap<QueueId, MemoryQueue>,
    pub(super) queue_names: HashMap<String, QueueId>,
    pub(super) links: HashMap<LinkId, LinkState>,
    last_id: u64,
    /// True if a message has entered a queue for which the timer runs.
    pub(super) timer_due: bool,
}

impl State {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Returns the queues that a message would be routed to.
    pub(super) fn route(
        &self,
        exchange: &str,
        key: &str,
        headers: &HeaderTable,
    ) -> Result<Vec<QueueId>> {
        let mut queues = Vec::with_capacity(1);
        if exchange.is_empty() {
            queues.extend(self.queue_names.get(key));
            return Ok(queues);
        }
        let first = self.exchanges.get_key_value(exchange).ok_or_else(|| {
            Error::new(
                ErrorKind::Broker,
                format!("there is no exchange {exchange:?}"),
            )
        })?;
        let mut seen = Vec::new();
        let mut next = vec![first];
        while let Some((name, exchange)) = next.pop() {
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let (queues_before, next_before) = (queues.len(), next.len());
            exchange.route(key, headers, &mut queues);
            let destinations = exchange.destinations(headers);
            next.extend(destinations.filter_map(|name| self.exchanges.get_key_value(name)));
            if (queues.len(), next.len()) == (queues_before, next_before) {
                let alternate = exchange.alternate.as_ref();
                next.extend(alternate.and_then(|name| self.exchanges.get_key_value(name)));
            }
        }
        if seen.len() > 1 {
            queues.sort_unstable();
            queues.dedup();
        }
        Ok(queues)
    }

    /// Returns true if a queue accepts no more messages. The dead-letter queue makes room instead,
    /// by dropping its oldest messages, so that it never holds up a publisher.
    pub(super) fn is_full(&mut self, queue: QueueId) -> bool {
        let Some(queue) = self.queues.get_mut(&queue).filter(|it| it.is_full()) else {
            return false;
        };
        if queue.name != DEAD_QUEUE {
            return true;
        }
        if queue.make_room() {
            log_relay::log(
                log::Level::Warn,
                "coney::transport",
                format_args!(
                    "{DEAD_QUEUE} is full: the memory broker drops its oldest dead letters"
                ),
            );
        }
        false
    }

    /// Returns the error text for a full queue.
    pub(super) fn full_error_text(&self, queue: QueueId) -> String {
        let name = self.queues.get(&queue).map_or("", |queue| &queue.name);
        format!(
            "the queue {name:?} is full: the memory broker holds at most {MAX_MESSAGES} messages or \
             {} MiB in a queue",
            MAX_BYTES >> 20
        )
    }

    /// Puts a message into `queues`, which [`route`](State::route) returned.
    pub(super) fn publish(
        &mut self,
        link: LinkId,
        mut publication: Publication,
        confirm: Option<ConfirmSender>,
        queues: &[QueueId],
        now: Instant,
    ) {
        if !publication.start_sending() {
            return;
        }
        if queues.is_empty() && publication.mandatory {
            let reason = "NO_ROUTE".to_owned();
            match (confirm, self.links.get(&link)) {
                (Some(confirm), _) => confirm.settle(ConfirmOutcome::Returned(reason)),
                (None, Some(from)) => {
                    let instead = Arc::clone(&from.sink).returned(Returned {
                        exchange: publication.exchange,
                        routing_key: publication.routing_key,
                        message_id: publication.properties.message_id,
                        correlation_id: publication.properties.correlation_id,
                        reason,
                    });
                    for instead in instead {
                        self.send(link, instead, now);
                    }
                }
                (None, None) => {}
            }
            return;
        }
        let mut properties = publication.properties;
        let body = if publication.body.wants_reply_queue() {
            let from = self.links.get(&link);
            properties.reply_to = from.and_then(|link| link.reply_queue.clone());
            let name = properties.reply_to.as_deref().unwrap_or_default();
            publication.body.fill(name)
        } else {
            publication.body.fill("")
        };
        let body = Arc::try_unwrap(body).unwrap_or_else(|shared| (*shared).clone());
        let message = Message {
            exchange: publication.exchange,
            routing_key: publication.routing_key,
            properties,
            body,
            oversized: None,
        };
        self.push(message, queues, now);
        if let Some(confirm) = confirm {
            confirm.settle(ConfirmOutcome::Confirmed);
        }
    }

    /// Puts a message into queues and delivers from them.
    pub(super) fn push(&mut self, message: Message, queues: &[QueueId], now: Instant) {
        let message = Arc::new(message);
        for &id in queues {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.push(Arc::clone(&message), now);
                self.timer_due |= queue.options.dead_letter_to.is_some();
            }
        }
        drop(message);
        for &id in queues {
            self.dispatch_to(Some(id), now);
        }
    }

    /// Takes the first message off a queue; returns it with the number of messages behind it.
    pub(super) fn get(
        &mut self,
        link: LinkId,
        queue: &str,
        now: Instant,
    ) -> Result<Option<(Delivery, usize)>> {
        let &id = self
            .queue_names
            .get(queue)
            .ok_or_else(|| Error::new(ErrorKind::Broker, format!("there is no queue {queue:?}")))?;
        self.expire(id, now);
        let tag = self.next_id();
        let (Some(queue), Some(link)) = (self.queues.get_mut(&id), self.links.get_mut(&link))
        else {
            return Ok(None);
        };
        let entry = queue.pop();
        Ok(entry.map(|entry| (link.hand_out(id, entry, tag), queue.len())))
    }

    /// Takes the first message off the queue of the link's own, if it has one.
    pub(super) fn get_own(
        &mut self,
        link: LinkId,
        now: Instant,
    ) -> Result<Option<(Delivery, usize)>> {
        let own = self.queues.values().find(|queue| queue.owner == Some(link));
        match own.map(|queue| queue.name.clone()) {
            Some(name) => self.get(link, &name, now),
            None => Ok(None),
        }
    }

    /// Counts the messages in a queue that no consumer has fetched, and its consumers.
    pub(super) fn queue_depth(&mut self, queue: &str, now: Instant) -> Result<QueueDepth> {
        let found = self.queue_names.get(queue).copied();
        let id = found.ok_or_else(|| QueueDepth::no_queue(queue))?;
        self.expire(id, now);
        let queue = self.queues.get(&id);
        Ok(QueueDepth {
            messages: queue.map_or(0, MemoryQueue::len),
            consumers: queue.map_or(0, MemoryQueue::consumers),
        })
    }

    /// Routes and publishes a message. If its exchange does not exist the message is lost, as in
    /// RabbitMQ.
    fn send(&mut self, link: LinkId, publication: Publication, now: Instant) {
        let queues = self
            .route(
                &publication.exchange,
                &publication.routing_key,
                &publication.properties.headers,
            )
            .unwrap_or_default();
        self.publish(link, publication, None, &queues, now);
    }

    /// Sends one of several replies to a delivery, unless it is settled.
    pub(super) fn reply(&mut self, link: LinkId, tag: u64, reply: Publication, now: Instant) {
        let unsettled = self.links.get(&link).map(|link| &link.unsettled);
        if unsettled.is_some_and(|unsettled| unsettled.contains_key(&tag)) {
            self.send(link, reply, now);
        }
    }

    /// Settles a delivery. Ignores an unknown one, which was settled before or whose link is
    /// closed.
    pub(super) fn settle(&mut self, link: LinkId, tag: u64, outcome: Disposition, now: Instant) {
        let Some((queue, entry)) = self
            .links
            .get_mut(&link)
            .and_then(|state| state.unsettled.remove(&tag))
        else {
            return;
        };
        match outcome {
            Disposition::Ack { reply: Some(reply) } => self.send(link, *reply, now),
            Disposition::Ack { reply: None } => {}
            Disposition::Reject { requeue: false } => {
                self.dead_letter(queue, entry, "rejected", now)
            }
            Disposition::Reject { requeue: true } => self.requeue(queue, entry, now),
            // The delivery stays unsettled until the link ends.
            Disposition::Hold => {
                if let Some(state) = self.links.get_mut(&link) {
                    state.unsettled.insert(tag, (queue, entry));
                }
            }
        }
        self.dispatch_to(Some(queue), now);
    }

    /// Puts a delivered message back into its old place. A quorum queue counts the requeues, and
    /// dead-letters the message at its limit.
    pub(super) fn requeue(&mut self, id: QueueId, mut entry: Entry, now: Instant) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        match queue.options.quorum {
            Some(limit) if entry.requeues >= limit => {
                return self.dead_letter(id, entry, "delivery_limit", now);
            }
            Some(_) => {
                let headers = &mut Arc::make_mut(&mut entry.message).properties.headers;
                headers.insert("x-delivery-count", i64::from(entry.requeues) + 1);
            }
            None => {}
        }
        queue.requeue(entry);
        self.timer_due |= queue.options.dead_letter_to.is_some();
    }

    pub(super) fn sinks(&self) -> impl Iterator<Item = &Arc<dyn Sink>> {
        self.links.values().map(|link| &link.sink)
    }

    pub(super) fn delete_queue(&mut self, id: QueueId) {
        if let Some(queue) = self.queues.remove(&id) {
            self.queue_names.remove(&queue.name);
            for exchange in self.exchanges.values_mut() {
                exchange.unbind_all(id);
            }
        }
    }

    /// Delivers from a queue while it has messages and a consumer has room.
    pub(super) fn dispatch_to(&mut self, queue: Option<QueueId>, now: Instant) {
        let Some(id) = queue else { return };
        loop {
            self.expire(id, now);
            let links = &self.links;
            let Some(queue) = self.queues.get_mut(&id).filter(|queue| queue.len() > 0) else {
                return;
            };
            let has_room = |link| links.get(&link).is_some_and(LinkState::has_room);
            let Some(to) = queue.next_consumer(has_room) else {
                return;
            };
            let Some(entry) = queue.pop() else { return };
            self.last_id += 1;
            match deliver(&mut self.links, queue, to, entry, self.last_id) {
                None => queue.remove_consumer(to),
                Some(more) => {
                    for publication in more {
                        self.send(to, publication, now);
                    }
                }
            }
        }
    }
}

/// Delivers one message to one consumer; returns the publications that its sink wants sent, or
/// `None` if it accepts no more.
fn deliver(
    links: &mut HashMap<LinkId, LinkState>,
    queue: &mut MemoryQueue,
    to: LinkId,
    entry: Entry,
    tag: u64,
) -> Option<Vec<Publication>> {
    let Some(link) = links.get_mut(&to) else {
        queue.restore(entry);
        return None;
    };
    let delivery = match (link.prefetch, link.consuming) {
        (Some(_), Some(id)) => link.hand_out(id, entry, tag),
        _ => Delivery::new(entry.message, entry.redelivered, None),
    };
    match link.sink.delivery(delivery) {
        Ok(more) => Some(more),
        Err(refused) => {
            let Some(tag) = refused.forget() else {
                return Some(Vec::new()); // without acknowledgements it is lost
            };
            if let Some((_, entry)) = link.unsettled.remove(&tag) {
                queue.restore(entry);
            }
            None
        }
    }
}
