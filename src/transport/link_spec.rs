//! The specification of a link: its declarations, and the source of its deliveries.

use super::LONGEST_EXPIRATION;
use crate::base::name::check_short_string;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::Topology;

/// The declarations and the consumer of a link.
#[must_use]
#[derive(Clone, Debug, Default)]
pub struct LinkSpec {
    pub(crate) topology: Topology,
    pub(crate) source: LinkSource,
    /// True if the link does not consume before it is resumed.
    pub(crate) paused: bool,
    /// True if all unsettled deliveries are requeued in one step when the connection closes.
    pub(crate) requeues_at_once: bool,
    /// True if the link publishes only replies to its deliveries, which need not arrive.
    pub(crate) only_replies: bool,
    /// True if the broker confirms every message that the link publishes.
    pub(crate) confirms: bool,
    /// True if the link coalesces the requests that it publishes.
    pub(crate) coalesces: bool,
    /// An exclusive queue that is locked for other connections while the link is open.
    pub(crate) exclusive_queue: Option<&'static str>,
}

/// The source of a link's deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum LinkSource {
    /// None: the link only publishes.
    #[default]
    Nothing,
    /// A reply queue of the link's own: named by the broker, exclusive,
    /// auto-deleted, consumed without acknowledgements.
    ReplyQueue,
    /// A named queue. Every delivery must be settled; at most `prefetch` deliveries are unsettled.
    Queue { name: String, prefetch: u16 },
    /// A queue of the link's own: exclusive, and bound while the link consumes. When the link stops
    /// consuming, the queue and its messages stay until it is deleted by request or with the link.
    /// Each session has a queue of another name, since the broker may still lock the one of a lost
    /// session; messages reach it by its binding.
    OwnQueue {
        /// The beginning of the queue names.
        name: String,
        /// The exchange and the routing key that it is bound with.
        bind: (String, String),
        prefetch: u16,
    },
}

impl LinkSource {
    /// Returns the largest number of unsettled deliveries; `None` if deliveries are not settled.
    pub(crate) fn prefetch(&self) -> Option<u16> {
        match self {
            Self::Queue { prefetch, .. } | Self::OwnQueue { prefetch, .. } => Some(*prefetch),
            Self::Nothing | Self::ReplyQueue => None,
        }
    }

    /// Sets the largest number of unsettled deliveries, if deliveries are settled.
    pub(crate) fn set_prefetch(&mut self, count: u16) {
        match self {
            Self::Queue { prefetch, .. } | Self::OwnQueue { prefetch, .. } => *prefetch = count,
            Self::Nothing | Self::ReplyQueue => {}
        }
    }
}

impl LinkSpec {
    /// Creates the specification of a link that declares `topology` and only publishes.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            ..Self::default()
        }
    }

    /// Sets the source to a reply queue of the link's own: exclusive, auto-deleted, named by the
    /// broker, without acknowledgements. Defaults to no source.
    pub fn reply_queue(mut self) -> Self {
        self.source = LinkSource::ReplyQueue;
        self
    }

    /// Sets the source to `queue`, with manual acknowledgement and at most `prefetch`
    /// unacknowledged messages (at least 1). Defaults to no source.
    pub fn consume(mut self, queue: impl Into<String>, prefetch: u16) -> Self {
        self.source = LinkSource::Queue {
            name: queue.into(),
            prefetch: prefetch.max(1),
        };
        self
    }
}

impl LinkSpec {
    /// Sets the source to a queue of the link's own, bound with an exchange and a routing key;
    /// settled as with [`consume`](LinkSpec::consume).
    pub(crate) fn consume_own(
        mut self,
        name: impl Into<String>,
        (exchange, key): (&str, &str),
        prefetch: u16,
    ) -> Self {
        self.source = LinkSource::OwnQueue {
            name: name.into(),
            bind: (exchange.to_owned(), key.to_owned()),
            prefetch: prefetch.max(1),
        };
        self
    }

    /// Sets whether the link closes its connection without settling or cancelling anything before,
    /// so that the broker requeues everything in one step, and in order. Defaults to false.
    pub(crate) fn requeues_at_once(mut self, at_once: bool) -> Self {
        self.requeues_at_once = at_once;
        self
    }

    /// Promises that the link publishes only replies to its deliveries, none of them mandatory.
    pub(crate) fn only_replies(mut self) -> Self {
        self.only_replies = true;
        self
    }

    /// Sets whether the link coalesces requests. Defaults to false.
    pub(crate) fn coalesces(mut self, coalesces: bool) -> Self {
        self.coalesces = coalesces;
        self
    }

    /// Sets an exclusive queue by which only one connection at a time can have such a link.
    pub(crate) fn exclusive_queue(mut self, queue: &'static str) -> Self {
        self.exclusive_queue = Some(queue);
        self
    }

    /// Sets whether the link consumes only after
    /// [`resume_consuming`](super::LinkHandle::resume_consuming). Defaults to false.
    pub(crate) fn paused(mut self, paused: bool) -> Self {
        self.paused = paused;
        self
    }

    /// Returns true if the link declares its queue with a single active consumer: such a consumer
    /// loses its turn when it is replaced.
    pub(super) fn is_single_active(&self) -> bool {
        let LinkSource::Queue { name, .. } = &self.source else {
            return false;
        };
        let mut queues = self.topology.queues_with_options().iter();
        queues.any(|(queue, options)| queue == name && options.single_active)
    }

    /// Checks every name: one that is too long would corrupt its frame.
    pub(super) fn check(&self) -> Result<()> {
        for (exchange, _) in self.topology.exchanges() {
            check_short_string("exchange", exchange)?;
        }
        for (queue, options) in self.topology.queues_with_options() {
            check_short_string("queue", queue)?;
            if let Some((exchange, key)) = &options.dead_letter_to {
                check_short_string("exchange", exchange)?;
                check_short_string("routing key", key.as_deref().unwrap_or_default())?;
            }
            if options
                .message_ttl
                .is_some_and(|ttl| ttl > LONGEST_EXPIRATION)
            {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!("the queue {queue:?} has a TTL of over {LONGEST_EXPIRATION:?}"),
                ));
            }
        }
        for binding in self.topology.bindings() {
            check_short_string("queue", &binding.queue)?;
            check_short_string("exchange", &binding.exchange)?;
            check_short_string("routing key", &binding.routing_key)?;
            for (name, _) in &binding.headers {
                check_short_string("header of a binding", name)?;
            }
        }
        match &self.source {
            LinkSource::Queue { name, .. } | LinkSource::OwnQueue { name, .. } => {
                check_short_string("queue", name)
            }
            LinkSource::Nothing | LinkSource::ReplyQueue => Ok(()),
        }
    }
}
