//! Declarations of exchanges, queues and bindings, which must agree with existing ones.

use super::exchange::Exchange;
use super::queue::{LinkId, MemoryQueue, QueueId};
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::{ExchangeKind, QueueOptions, Topology};

impl State {
    pub(super) fn declare(&mut self, topology: &Topology) -> Result<()> {
        for (name, kind) in topology.exchanges() {
            let exchange = self
                .exchanges
                .entry(name.clone())
                .or_insert_with(|| Exchange::new(*kind, topology.alternate(name)));
            if exchange.kind() != *kind {
                return Err(Error::new(
                    ErrorKind::Broker,
                    format!("the exchange {name:?} exists with another kind than {kind:?}"),
                ));
            }
            if exchange.alternate.as_deref() != topology.alternate(name) {
                return Err(Error::new(
                    ErrorKind::Broker,
                    format!("the exchange {name:?} exists with another alternate exchange"),
                ));
            }
        }
        for (name, options) in topology.queues_with_options() {
            let existing = self.queue_names.get(name);
            match existing.and_then(|id| self.queues.get(id)) {
                Some(queue) if queue.options != *options => {
                    return Err(Error::new(
                        ErrorKind::Broker,
                        format!("the queue {name:?} exists with other options"),
                    ));
                }
                Some(_) => {}
                None => {
                    self.add_queue(name.clone(), None, options.clone());
                }
            }
        }
        for binding in topology.bindings() {
            let queue = self.queue_names.get(&binding.queue);
            let exchange = self.exchanges.get_mut(&binding.exchange);
            let (Some(&queue), Some(exchange)) = (queue, exchange) else {
                return Err(Error::new(
                    ErrorKind::Broker,
                    format!(
                        "NOT_FOUND: cannot bind the queue {:?} to the exchange {:?}, as one of them is \
                         missing",
                        binding.queue, binding.exchange
                    ),
                ));
            };
            match exchange.kind() {
                ExchangeKind::Headers => exchange.bind_headers(&binding.headers, queue),
                _ => exchange.bind(&binding.routing_key, queue),
            }
        }
        for binding in topology.exchange_bindings() {
            let exists = self.exchanges.contains_key(&binding.destination);
            match self.exchanges.get_mut(&binding.source) {
                Some(source) if exists => {
                    source.bind_exchange(&binding.headers, &binding.destination);
                }
                _ => {
                    return Err(Error::new(
                        ErrorKind::Broker,
                        format!(
                            "NOT_FOUND: cannot bind the exchange {:?} to {:?}, as one of them is \
                             missing",
                            binding.destination, binding.source
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn add_queue(
        &mut self,
        name: String,
        owner: Option<LinkId>,
        options: QueueOptions,
    ) -> QueueId {
        let id = self.next_id();
        self.queue_names.insert(name.clone(), id);
        self.queues
            .insert(id, MemoryQueue::new(name, owner, options));
        id
    }
}
