//! Links of the memory broker: opening, consuming, closing, and their exclusive queues.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::link_state::LinkState;
use super::queue::{LinkId, QueueId};
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::QueueOptions;
use crate::transport::{LinkSource, LinkSpec, Settler, Sink};

impl State {
    /// Declares the link's topology and starts it; messages already in its queue are delivered at
    /// once.
    pub(super) fn open(
        &mut self,
        link: LinkId,
        spec: &LinkSpec,
        sink: Arc<dyn Sink>,
        settler: Arc<dyn Settler>,
        now: Instant,
    ) -> Result<()> {
        self.declare(&spec.topology)?;
        // Under the broker's lock, so that nothing is published between this and the binding.
        sink.opened();
        self.links.insert(
            link,
            LinkState {
                sink,
                settler,
                source: spec.source.clone(),
                reply_queue: None,
                consuming: None,
                prefetch: spec.source.prefetch().map(usize::from),
                unsettled: HashMap::new(),
            },
        );
        if spec.paused {
            return Ok(());
        }
        let started = self.start_consuming(link, now);
        started.inspect_err(|_| drop(self.links.remove(&link)))
    }

    /// Starts consuming from the link's source, if it does not consume already.
    pub(super) fn start_consuming(&mut self, link: LinkId, now: Instant) -> Result<()> {
        let Some(state) = self.links.get(&link) else {
            return Ok(());
        };
        if state.consuming.is_some() {
            return Ok(());
        }
        let is_reply_queue = state.source == LinkSource::ReplyQueue;
        let (queue, name) = match state.source.clone() {
            LinkSource::Nothing => return Ok(()),
            LinkSource::ReplyQueue => {
                let name = format!("amq.gen-{}", fastrand::u64(..));
                let id = self.add_queue(name.clone(), Some(link), QueueOptions::new());
                (id, name)
            }
            LinkSource::OwnQueue { name, bind, .. } => {
                let existing = self.queue_names.get(&name).copied();
                let owner = existing.and_then(|id| self.queues.get(&id)?.owner);
                if existing.is_some() && owner != Some(link) {
                    return Err(Error::new(
                        ErrorKind::Broker,
                        format!("the queue {name:?} exists, and does not belong to this link"),
                    ));
                }
                let id = match existing {
                    Some(id) => id,
                    None => self.add_queue(name.clone(), Some(link), QueueOptions::new()),
                };
                let (exchange, key) = bind;
                if let Some(exchange) = self.exchanges.get_mut(&exchange) {
                    exchange.bind(&key, id);
                }
                (id, name)
            }
            LinkSource::Queue { name, .. } => {
                let &id = self.queue_names.get(&name).ok_or_else(|| {
                    Error::new(ErrorKind::Broker, format!("there is no queue {name:?}"))
                })?;
                let owner = self.queues.get(&id).and_then(|queue| queue.owner);
                if owner.is_some_and(|owner| owner != link) {
                    return Err(Error::new(
                        ErrorKind::Broker,
                        format!("the queue {name:?} is exclusive to another link"),
                    ));
                }
                (id, name)
            }
        };
        if let Some(state) = self.links.get_mut(&link) {
            state.consuming = Some(queue);
            state.reply_queue = is_reply_queue.then_some(name);
        }
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.add_consumer(link);
        }
        self.dispatch_to(Some(queue), now);
        Ok(())
    }

    /// Stops consuming; earlier deliveries can still be settled.
    pub(super) fn stop_consuming(&mut self, link: LinkId) {
        let state = self.links.get_mut(&link);
        let Some(id) = state.and_then(|state| state.consuming.take()) else {
            return;
        };
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        queue.remove_consumer(link);
        if queue.owner == Some(link) {
            for exchange in self.exchanges.values_mut() {
                exchange.unbind_all(id);
            }
        }
    }

    /// Sets the prefetch of a link whose deliveries are settled.
    pub(super) fn set_prefetch(&mut self, link: LinkId, count: u16, now: Instant) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if let Some(prefetch) = &mut state.prefetch {
            *prefetch = count.into();
        }
        let consuming = state.consuming;
        self.dispatch_to(consuming, now);
    }

    /// Deletes the exclusive queues of a link.
    pub(super) fn delete_own_queues(&mut self, link: LinkId) {
        let owned = self.queues.iter();
        let owned: Vec<QueueId> = owned
            .filter(|(_, queue)| queue.owner == Some(link))
            .map(|(&id, _)| id)
            .collect();
        for id in owned {
            self.delete_queue(id);
        }
    }

    /// Closes a link: its unsettled deliveries are requeued, its exclusive queues are deleted.
    /// Returns its sink.
    pub(super) fn close(&mut self, link: LinkId, now: Instant) -> Option<Arc<dyn Sink>> {
        self.stop_consuming(link);
        let state = self.links.remove(&link)?;
        let mut touched = Vec::new();
        for (_, (id, entry)) in state.unsettled {
            self.requeue(id, entry, now);
            touched.push(id);
        }
        self.delete_own_queues(link);
        for id in touched {
            self.dispatch_to(Some(id), now);
        }
        Some(state.sink)
    }
}
