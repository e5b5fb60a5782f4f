//! The exchanges, queues and bindings of the wire contract.
//!
//! Peers in other languages declare the same ones. A declaration must match
//! what exists to the letter, or the broker refuses it (406), so this is the
//! only place that knows these names and kinds.

/// How an exchange picks the queues a message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    /// To the queues bound with exactly the message's routing key.
    Direct,
    /// To the queues whose pattern fits the dotted routing key: `*` stands
    /// for one word, `#` for any number of them.
    Topic,
    /// To every bound queue.
    Fanout,
}

/// Exchanges, durable queues and bindings that must be there before a link is
/// used. Declared in this order, again after every reconnect.
///
/// ```
/// use coney::transport::{ExchangeKind, Topology};
///
/// let topology = Topology::default()
///     .exchange("audit", ExchangeKind::Fanout)
///     .queue("audit.log")
///     .bind("audit.log", "audit", "");
/// assert_eq!(topology.queues(), ["audit.log"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    exchanges: Vec<(String, ExchangeKind)>,
    queues: Vec<String>,
    bindings: Vec<Binding>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) queue: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
}

impl Topology {
    /// Adds a durable exchange.
    pub fn exchange(mut self, name: impl Into<String>, kind: ExchangeKind) -> Self {
        self.exchanges.push((name.into(), kind));
        self
    }

    /// Adds a durable queue: not exclusive, not auto-deleted, no arguments.
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queues.push(name.into());
        self
    }

    /// Binds a queue to an exchange with a routing key or pattern.
    pub fn bind(
        mut self,
        queue: impl Into<String>,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        self.bindings.push(Binding {
            queue: queue.into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        });
        self
    }

    /// The exchanges, in the order they are declared.
    pub fn exchanges(&self) -> &[(String, ExchangeKind)] {
        &self.exchanges
    }

    /// The queues, in the order they are declared.
    pub fn queues(&self) -> &[String] {
        &self.queues
    }

    pub(crate) fn bindings(&self) -> &[Binding] {
        &self.bindings
    }
}

/// The exchange that every request goes through.
pub(crate) const SERVICE_EXCHANGE: &str = "service.exchange";

/// The routing key of requests to a service.
pub(crate) fn request_key(service: &str) -> String {
    let mut key = String::with_capacity("request.".len() + service.len());
    key.push_str("request.");
    key.push_str(service);
    key
}

/// The queue a service takes its requests from.
pub(crate) fn request_queue(service: &str) -> String {
    format!("service.{service}.request")
}

/// What a client needs before it can send requests.
pub(crate) fn for_client() -> Topology {
    Topology::default().exchange(SERVICE_EXCHANGE, ExchangeKind::Direct)
}

/// What a service needs before it can take requests.
pub(crate) fn for_service(service: &str) -> Topology {
    for_client().queue(request_queue(service)).bind(
        request_queue(service),
        SERVICE_EXCHANGE,
        request_key(service),
    )
}
