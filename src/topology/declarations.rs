//! Declarations of exchanges, queues and bindings.

use std::collections::BTreeMap;
use std::time::Duration;

/// The rule by which an exchange routes a message to queues.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Routes to the queues bound with exactly the message's routing key.
    Direct,
    /// Routes to the queues whose pattern matches the dotted routing key: `*` stands for one word,
    /// `#` for any number of words.
    Topic,
    /// Routes to every bound queue.
    Fanout,
    /// Routes to the queues [bound with headers](Topology::bind_headers) that the message has,
    /// whatever its routing key.
    Headers,
}

/// The exchanges, durable queues and bindings that must exist before a link is used. They are
/// declared in this order, and again after every reconnect.
///
/// ```
/// use coney::transport::{ExchangeKind, Topology};
///
/// let topology = Topology::new()
///     .exchange("audit", ExchangeKind::Fanout)
///     .queue("audit.log")
///     .bind("audit.log", "audit", "");
/// assert_eq!(topology.queues().next(), Some("audit.log"));
/// ```
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    exchanges: Vec<(String, ExchangeKind)>,
    /// The alternate exchanges, by the exchanges that have one.
    alternates: BTreeMap<String, String>,
    queues: Vec<(String, QueueOptions)>,
    bindings: Vec<Binding>,
    exchange_bindings: Vec<ExchangeBinding>,
}

/// The options of a queue. An existing queue must have been declared with the same options, or the
/// broker refuses the declaration.
///
/// ```
/// use std::time::Duration;
/// use coney::transport::{QueueOptions, Topology};
///
/// // Messages that wait here for ten seconds are dead-lettered to the queue `jobs`.
/// let wait = QueueOptions::new()
///     .message_ttl(Duration::from_secs(10))
///     .dead_letter_to("", "jobs");
/// let topology = Topology::new().queue("jobs").queue_with("jobs.wait", wait);
/// # let _ = topology;
/// ```
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    pub(crate) message_ttl: Option<Duration>,
    /// The dead-letter exchange, and the routing key that replaces those of the messages, if any.
    pub(crate) dead_letter_to: Option<(String, Option<String>)>,
    pub(crate) quorum: Option<u32>,
    pub(crate) single_active: bool,
}

impl QueueOptions {
    /// Creates the options of a classic queue without arguments, such as most queues of the wire
    /// contract.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time for which a message may wait before it is dropped or dead-lettered, in whole
    /// milliseconds, at most 49 days. Defaults to no limit.
    pub fn message_ttl(mut self, ttl: Duration) -> Self {
        self.message_ttl = Some(ttl);
        self
    }

    /// Sets the dead-letter target, for messages that expire here or are rejected without
    /// requeueing: an exchange, empty for the default exchange, and a routing key. Defaults to
    /// none: they are dropped.
    pub fn dead_letter_to(
        mut self,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        self.dead_letter_to = Some((exchange.into(), Some(routing_key.into())));
        self
    }

    /// Sets the dead-letter exchange as [`dead_letter_to`](QueueOptions::dead_letter_to) does, with
    /// messages keeping their routing keys: what was published for a queue can wait here, and then
    /// go to that queue. Defaults to none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::transport::{ExchangeKind, QueueOptions, Topology};
    ///
    /// let wait = QueueOptions::new()
    ///     .message_ttl(Duration::from_secs(10))
    ///     .dead_letter_through("");
    /// // A message published to the exchange is in the queue of its routing key 10 s later.
    /// let topology = Topology::new()
    ///     .exchange("in-10-s", ExchangeKind::Fanout)
    ///     .queue_with("in-10-s", wait)
    ///     .bind("in-10-s", "in-10-s", "");
    /// # let _ = topology;
    /// ```
    pub fn dead_letter_through(mut self, exchange: impl Into<String>) -> Self {
        self.dead_letter_to = Some((exchange.into(), None));
        self
    }

    /// Makes it a quorum queue: replicated, and dead-lettering a message that is requeued more than
    /// `delivery_limit` times without being acknowledged. The memory broker does not replicate.
    /// Defaults to a classic queue.
    pub fn quorum(mut self, delivery_limit: u32) -> Self {
        self.quorum = Some(delivery_limit);
        self
    }

    /// Delivers everything to one consumer at a time; when it is gone, the next one takes over.
    /// Defaults to delivery to all consumers in turn.
    pub fn single_active_consumer(mut self) -> Self {
        self.single_active = true;
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) queue: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The headers that a message must have, for a headers exchange.
    pub(crate) headers: Vec<(String, String)>,
}

/// A binding of an exchange to a headers exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExchangeBinding {
    pub(crate) destination: String,
    pub(crate) source: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Topology {
    /// Creates a topology without declarations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a durable exchange.
    pub fn exchange(mut self, name: impl Into<String>, kind: ExchangeKind) -> Self {
        self.exchanges.push((name.into(), kind));
        self
    }

    /// Adds a durable exchange with an alternate one, which gets the messages that the exchange
    /// routes to no queue.
    pub(crate) fn exchange_or(
        mut self,
        name: impl Into<String>,
        kind: ExchangeKind,
        alternate: impl Into<String>,
    ) -> Self {
        let name = name.into();
        self.alternates.insert(name.clone(), alternate.into());
        self.exchange(name, kind)
    }

    /// Adds a durable queue: not exclusive, not auto-deleted, no arguments.
    pub fn queue(self, name: impl Into<String>) -> Self {
        self.queue_with(name, QueueOptions::new())
    }

    /// Adds a durable queue with options.
    pub fn queue_with(mut self, name: impl Into<String>, options: QueueOptions) -> Self {
        self.queues.push((name.into(), options));
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
            headers: Vec::new(),
        });
        self
    }

    /// Binds a queue to a [headers exchange](ExchangeKind::Headers): it gets the messages that have
    /// all of these headers, with these texts.
    ///
    /// ```
    /// use coney::transport::{ExchangeKind, Topology};
    ///
    /// let topology = Topology::new()
    ///     .exchange("reports", ExchangeKind::Headers)
    ///     .queue("reports.daily")
    ///     .bind_headers("reports.daily", "reports", [("period", "day")]);
    /// # let _ = topology;
    /// ```
    pub fn bind_headers<N: Into<String>, V: Into<String>>(
        mut self,
        queue: impl Into<String>,
        exchange: impl Into<String>,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let headers = headers.into_iter();
        self.bindings.push(Binding {
            queue: queue.into(),
            exchange: exchange.into(),
            routing_key: String::new(),
            headers: headers
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        });
        self
    }

    /// Binds the exchange `destination` to the headers exchange `source`: it gets the messages that
    /// have this header.
    pub(crate) fn bind_exchange(
        mut self,
        destination: impl Into<String>,
        source: impl Into<String>,
        (name, value): (String, &str),
    ) -> Self {
        self.exchange_bindings.push(ExchangeBinding {
            destination: destination.into(),
            source: source.into(),
            headers: vec![(name, value.to_owned())],
        });
        self
    }

    /// Returns the exchanges, in the order of their declaration.
    pub fn exchanges(&self) -> &[(String, ExchangeKind)] {
        &self.exchanges
    }

    /// Returns the alternate exchange of an exchange, if it has one.
    pub(crate) fn alternate(&self, exchange: &str) -> Option<&str> {
        self.alternates.get(exchange).map(String::as_str)
    }

    /// Returns the names of the queues, in the order of their declaration.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn queues_with_options(&self) -> &[(String, QueueOptions)] {
        &self.queues
    }

    pub(crate) fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    pub(crate) fn exchange_bindings(&self) -> &[ExchangeBinding] {
        &self.exchange_bindings
    }

    /// Returns the number of exchanges, queues and bindings.
    pub(crate) fn declarations(&self) -> usize {
        let bindings = self.bindings.len() + self.exchange_bindings.len();
        self.exchanges.len() + self.queues.len() + bindings
    }

    /// Adds the declarations of `other`.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.exchanges.extend(other.exchanges);
        self.alternates.extend(other.alternates);
        self.queues.extend(other.queues);
        self.bindings.extend(other.bindings);
        self.exchange_bindings.extend(other.exchange_bindings);
        self
    }
}
