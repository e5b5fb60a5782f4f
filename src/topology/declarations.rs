use std::time::Duration;

/// The way in which an exchange picks the queues a message goes to.
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
/// assert_eq!(topology.queues().next(), Some("audit.log"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    exchanges: Vec<(String, ExchangeKind)>,
    queues: Vec<(String, QueueOptions)>,
    bindings: Vec<Binding>,
}

/// What a queue does beside keeping messages. A queue that exists must have been
/// declared with the same options, or the broker refuses to declare it.
///
/// ```
/// use std::time::Duration;
/// use coney::transport::{QueueOptions, Topology};
///
/// // What waits here for ten seconds moves on to the queue `jobs`.
/// let wait = QueueOptions::new()
///     .message_ttl(Duration::from_secs(10))
///     .dead_letter_to("", "jobs");
/// let topology = Topology::default().queue("jobs").queue_with("jobs.wait", wait);
/// # let _ = topology;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    pub(crate) message_ttl: Option<Duration>,
    pub(crate) dead_letter_to: Option<(String, String)>,
    pub(crate) quorum: Option<u32>,
    pub(crate) single_active: bool,
}

impl QueueOptions {
    /// A plain queue: no arguments, as the wire contract has them all.
    pub fn new() -> Self {
        Self::default()
    }

    /// The time for which a message may wait before it is dropped, or dead-lettered; in
    /// whole milliseconds, at most 49 days. Default: for ever.
    pub fn message_ttl(mut self, ttl: Duration) -> Self {
        self.message_ttl = Some(ttl);
        self
    }

    /// The place where messages go that expire here or are rejected without requeueing:
    /// an exchange, empty for the default one, and a routing key. Default: they
    /// are dropped.
    pub fn dead_letter_to(
        mut self,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        self.dead_letter_to = Some((exchange.into(), routing_key.into()));
        self
    }

    /// A quorum queue: replicated, and dead-lettering a message that comes back
    /// more than `delivery_limit` times without being acknowledged. The memory
    /// broker has nothing to replicate. Default: a classic queue.
    pub fn quorum(mut self, delivery_limit: u32) -> Self {
        self.quorum = Some(delivery_limit);
        self
    }

    /// One of its consumers at a time gets everything; when it goes, the next one
    /// does. Default: they take turns.
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
}

impl Topology {
    /// Adds a durable exchange.
    pub fn exchange(mut self, name: impl Into<String>, kind: ExchangeKind) -> Self {
        self.exchanges.push((name.into(), kind));
        self
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
        });
        self
    }

    /// The exchanges, in the order they are declared.
    pub fn exchanges(&self) -> &[(String, ExchangeKind)] {
        &self.exchanges
    }

    /// The queues' names, in the order they are declared.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn queues_with_options(&self) -> &[(String, QueueOptions)] {
        &self.queues
    }

    pub(crate) fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    /// Their number in all.
    pub(crate) fn declarations(&self) -> usize {
        self.exchanges.len() + self.queues.len() + self.bindings.len()
    }

    /// The declarations of both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.exchanges.extend(other.exchanges);
        self.queues.extend(other.queues);
        self.bindings.extend(other.bindings);
        self
    }
}
