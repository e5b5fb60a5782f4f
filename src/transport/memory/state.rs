use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::exchange::Exchange;
use super::queue::{Entry, LinkId, Queue, QueueId};
use crate::error::{Error, ErrorKind, Result};
use crate::topology::Topology;
use crate::transport::{
    Delivery, LinkSpec, Message, Outcome, Publication, Returned, Settle, Sink, Source, Token,
};

/// Everything the broker holds, as one plain struct with no lock and no clock
/// of its own, so that a test can drive it step by step against a model.
///
/// Sinks are called while it is borrowed: a queue's deliveries reach a
/// consumer in the queue's order only if nobody can come in between.
#[derive(Default)]
pub(super) struct State {
    exchanges: HashMap<String, Exchange>,
    queues: HashMap<QueueId, Queue>,
    queue_names: HashMap<String, QueueId>,
    links: HashMap<LinkId, LinkState>,
    last_id: u64,
}

struct LinkState {
    sink: Arc<dyn Sink>,
    settler: Arc<dyn Settle>,
    reply_queue: Option<String>,
    consuming: Option<QueueId>,
    /// How many deliveries may be unsettled; `None` without acknowledgements.
    prefetch: Option<usize>,
    unsettled: HashMap<u64, (QueueId, Entry)>,
}

impl LinkState {
    fn has_room(&self) -> bool {
        self.prefetch.is_none_or(|max| self.unsettled.len() < max)
    }
}

impl State {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Declares what the link needs and starts it; what waits in its queue is
    /// delivered at once.
    pub(super) fn open(
        &mut self,
        link: LinkId,
        spec: &LinkSpec,
        sink: Arc<dyn Sink>,
        settler: Arc<dyn Settle>,
        now: Instant,
    ) -> Result<()> {
        self.declare(&spec.topology)?;
        let (consuming, reply_queue, prefetch) = match &spec.source {
            Source::Nothing => (None, None, None),
            Source::ReplyQueue => {
                let name = format!("amq.gen-{}", fastrand::u64(..));
                let id = self.add_queue(name.clone(), Some(link));
                (Some(id), Some(name), None)
            }
            Source::Queue { name, prefetch } => {
                let &id = self.queue_names.get(name).ok_or_else(|| {
                    Error::new(ErrorKind::Broker, format!("there is no queue {name:?}"))
                })?;
                let owner = self.queues.get(&id).and_then(|queue| queue.owner);
                if owner.is_some_and(|owner| owner != link) {
                    return Err(Error::new(
                        ErrorKind::Broker,
                        format!("the queue {name:?} belongs to another link alone"),
                    ));
                }
                (Some(id), None, Some(usize::from(*prefetch)))
            }
        };
        self.links.insert(
            link,
            LinkState {
                sink,
                settler,
                reply_queue,
                consuming,
                prefetch,
                unsettled: HashMap::new(),
            },
        );
        if let Some(queue) = consuming.and_then(|id| self.queues.get_mut(&id)) {
            queue.add_consumer(link);
        }
        self.dispatch_to(consuming, now);
        Ok(())
    }

    fn declare(&mut self, topology: &Topology) -> Result<()> {
        for (name, kind) in topology.exchanges() {
            let exchange = self
                .exchanges
                .entry(name.clone())
                .or_insert_with(|| Exchange::new(*kind));
            if exchange.kind() != *kind {
                return Err(Error::new(
                    ErrorKind::Broker,
                    format!("the exchange {name:?} exists with another kind than {kind:?}"),
                ));
            }
        }
        for name in topology.queues() {
            if !self.queue_names.contains_key(name) {
                self.add_queue(name.clone(), None);
            }
        }
        for binding in topology.bindings() {
            let queue = self.queue_names.get(&binding.queue);
            let exchange = self.exchanges.get_mut(&binding.exchange);
            let (Some(&queue), Some(exchange)) = (queue, exchange) else {
                return Err(Error::new(
                    ErrorKind::Broker,
                    format!(
                        "cannot bind the queue {:?} to the exchange {:?}: one of them is missing",
                        binding.queue, binding.exchange
                    ),
                ));
            };
            exchange.bind(&binding.routing_key, queue);
        }
        Ok(())
    }

    fn add_queue(&mut self, name: String, owner: Option<LinkId>) -> QueueId {
        let id = self.next_id();
        self.queue_names.insert(name.clone(), id);
        self.queues.insert(id, Queue::new(name, owner));
        id
    }

    /// The queues a message would go to.
    pub(super) fn route(&self, exchange: &str, key: &str) -> Result<Vec<QueueId>> {
        let mut queues = Vec::with_capacity(1);
        if exchange.is_empty() {
            queues.extend(self.queue_names.get(key));
            return Ok(queues);
        }
        self.exchanges
            .get(exchange)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Broker,
                    format!("there is no exchange {exchange:?}"),
                )
            })?
            .route(key, &mut queues);
        Ok(queues)
    }

    pub(super) fn drop_expired(&mut self, queues: &[QueueId], now: Instant) {
        for id in queues {
            if let Some(queue) = self.queues.get_mut(id) {
                queue.drop_expired(now);
            }
        }
    }

    pub(super) fn queue_len(&self, queue: QueueId) -> usize {
        self.queues.get(&queue).map_or(0, Queue::len)
    }

    /// Puts a message into `queues`, which [`route`](State::route) found.
    pub(super) fn publish(
        &mut self,
        link: LinkId,
        publication: Publication,
        queues: &[QueueId],
        now: Instant,
    ) {
        if !publication.start_sending() {
            return;
        }
        if queues.is_empty() {
            if let (true, Some(from)) = (publication.mandatory, self.links.get(&link)) {
                from.sink.returned(Returned {
                    exchange: publication.exchange,
                    routing_key: publication.routing_key,
                    correlation_id: publication.properties.correlation_id,
                    reason: "NO_ROUTE".to_owned(),
                });
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
        let message = Arc::new(Message {
            exchange: publication.exchange,
            routing_key: publication.routing_key,
            properties,
            body,
        });
        for &id in queues {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.push(Arc::clone(&message), now);
            }
        }
        drop(message);
        for &id in queues {
            self.dispatch_to(Some(id), now);
        }
    }

    /// Settles a delivery. One that is unknown, because it was settled or its
    /// link has gone, is left alone.
    pub(super) fn settle(&mut self, link: LinkId, tag: u64, outcome: Outcome, now: Instant) {
        let Some((queue, entry)) = self
            .links
            .get_mut(&link)
            .and_then(|state| state.unsettled.remove(&tag))
        else {
            return;
        };
        match outcome {
            Outcome::Ack { reply: Some(reply) } => {
                // A reply whose exchange is missing is lost as it would be on
                // RabbitMQ; the default exchange is always there.
                let queues = self
                    .route(&reply.exchange, &reply.routing_key)
                    .unwrap_or_default();
                self.publish(link, *reply, &queues, now);
            }
            Outcome::Ack { reply: None } | Outcome::Reject { requeue: false } => {}
            Outcome::Reject { requeue: true } => {
                if let Some(queue) = self.queues.get_mut(&queue) {
                    queue.requeue(entry);
                }
            }
        }
        self.dispatch_to(Some(queue), now);
    }

    /// Ends consumption; what was delivered can still be settled.
    pub(super) fn stop_consuming(&mut self, link: LinkId) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if let Some(queue) = state
            .consuming
            .take()
            .and_then(|id| self.queues.get_mut(&id))
        {
            queue.remove_consumer(link);
        }
    }

    /// Ends a link: its unsettled deliveries go back into their queues, its
    /// reply queue goes away.
    pub(super) fn close(&mut self, link: LinkId, now: Instant) -> Option<Arc<dyn Sink>> {
        self.stop_consuming(link);
        let state = self.links.remove(&link)?;
        let mut touched = Vec::new();
        for (_, (id, entry)) in state.unsettled {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.requeue(entry);
                touched.push(id);
            }
        }
        let owned: Vec<QueueId> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.owner == Some(link))
            .map(|(&id, _)| id)
            .collect();
        for id in owned {
            self.delete_queue(id);
        }
        for id in touched {
            self.dispatch_to(Some(id), now);
        }
        Some(state.sink)
    }

    pub(super) fn sinks(&self) -> impl Iterator<Item = &Arc<dyn Sink>> {
        self.links.values().map(|link| &link.sink)
    }

    fn delete_queue(&mut self, id: QueueId) {
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
            let links = &self.links;
            let Some(queue) = self.queues.get_mut(&id) else {
                return;
            };
            queue.drop_expired(now);
            if queue.len() == 0 {
                return;
            }
            let has_room = |link| links.get(&link).is_some_and(LinkState::has_room);
            let Some(to) = queue.next_consumer(has_room) else {
                return;
            };
            let Some(entry) = queue.pop() else { return };
            self.last_id += 1;
            if !deliver(&mut self.links, queue, to, entry, self.last_id) {
                queue.remove_consumer(to);
            }
        }
    }
}

/// Hands one message to one consumer; false if it takes no more.
fn deliver(
    links: &mut HashMap<LinkId, LinkState>,
    queue: &mut Queue,
    to: LinkId,
    entry: Entry,
    tag: u64,
) -> bool {
    let Some(link) = links.get_mut(&to) else {
        queue.restore(entry);
        return false;
    };
    let redelivered = entry.redelivered;
    let (message, token) = match (link.prefetch, link.consuming) {
        (Some(_), Some(id)) => {
            let message = Arc::clone(&entry.message);
            link.unsettled.insert(tag, (id, entry));
            let settler = Arc::clone(&link.settler);
            let session = 0; // a memory link never reconnects
            (
                message,
                Some(Token {
                    settler,
                    session,
                    tag,
                }),
            )
        }
        _ => (entry.message, None),
    };
    match link
        .sink
        .delivery(Delivery::new(message, redelivered, token))
    {
        Ok(()) => true,
        Err(refused) => {
            let Some(tag) = refused.forget() else {
                return true; // without acknowledgements it is simply gone
            };
            if let Some((_, entry)) = link.unsettled.remove(&tag) {
                queue.restore(entry);
            }
            false
        }
    }
}
