//! What a link declares, and where its deliveries come from.

use super::LONGEST_EXPIRATION;
use crate::base::name::check_short_string;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::Topology;

/// What a link declares and consumes.
#[derive(Clone, Debug, Default)]
pub struct LinkSpec {
    pub(crate) topology: Topology,
    pub(crate) source: Source,
    /// It does not consume until it is told to resume.
    pub(crate) paused: bool,
    /// At the end of the connection everything that is unsettled goes back at once.
    pub(crate) ends_at_once: bool,
    /// What it publishes are answers to what it consumes, which need not arrive.
    pub(crate) only_answers: bool,
    /// The broker confirms what is published with a receipt.
    pub(crate) confirms: bool,
    /// A queue that no other connection can have while the link is open.
    pub(crate) exclusively: Option<&'static str>,
}

/// Where a link's deliveries come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: the link only publishes.
    #[default]
    Nothing,
    /// A reply queue of the link's own: named by the broker, exclusive,
    /// auto-deleted, consumed without acknowledgements.
    ReplyQueue,
    /// A named queue. Every delivery must be settled; the broker sends at
    /// most `prefetch` ahead of that.
    Queue { name: String, prefetch: u16 },
    /// A queue of the link's own: exclusive, and bound while the link consumes. When it
    /// stops, the queue stays with what is in it, until it is deleted when that is asked
    /// for, or with the link. Each session has a queue of another name, since one that was
    /// lost may still be locked by the broker; messages find it by its binding.
    OwnQueue {
        /// The beginning of the names.
        name: String,
        /// An exchange and a routing key to bind it with.
        bind: (String, String),
        prefetch: u16,
    },
}

impl Source {
    /// How many deliveries may be unsettled; `None` where nothing is settled.
    pub(crate) fn prefetch(&self) -> Option<u16> {
        match self {
            Self::Queue { prefetch, .. } | Self::OwnQueue { prefetch, .. } => Some(*prefetch),
            Self::Nothing | Self::ReplyQueue => None,
        }
    }
}

impl LinkSpec {
    /// A link that declares `topology` and only publishes.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            ..Self::default()
        }
    }

    /// Consume from a reply queue of the link's own: exclusive, auto-deleted,
    /// named by the broker, without acknowledgements.
    pub fn reply_queue(mut self) -> Self {
        self.source = Source::ReplyQueue;
        self
    }

    /// Consume from `queue` with manual acknowledgement; the broker sends at
    /// most `prefetch` unacknowledged messages (at least 1).
    pub fn consume(mut self, queue: impl Into<String>, prefetch: u16) -> Self {
        self.source = Source::Queue {
            name: queue.into(),
            prefetch: prefetch.max(1),
        };
        self
    }
}

impl LinkSpec {
    /// Consume from a queue of the link's own, bound with an exchange and a routing key,
    /// as [`consume`](LinkSpec::consume).
    pub(crate) fn consume_own(
        mut self,
        name: impl Into<String>,
        (exchange, key): (&str, &str),
        prefetch: u16,
    ) -> Self {
        self.source = Source::OwnQueue {
            name: name.into(),
            bind: (exchange.to_owned(), key.to_owned()),
            prefetch: prefetch.max(1),
        };
        self
    }

    /// When its connection is closed, nothing is settled or cancelled before: the broker
    /// takes everything back in one step, and in order.
    pub(crate) fn ends_at_once(mut self, at_once: bool) -> Self {
        self.ends_at_once = at_once;
        self
    }

    /// Publish answers to what is consumed, and nothing that is mandatory.
    pub(crate) fn only_answers(mut self) -> Self {
        self.only_answers = true;
        self
    }

    /// One connection at a time can have a link with this queue.
    pub(crate) fn exclusively(mut self, queue: &'static str) -> Self {
        self.exclusively = Some(queue);
        self
    }

    /// Consume only after [`LinkHandle::resume_consuming`].
    pub(crate) fn paused(mut self, paused: bool) -> Self {
        self.paused = paused;
        self
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
                check_short_string("routing key", key)?;
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
        }
        match &self.source {
            Source::Queue { name, .. } | Source::OwnQueue { name, .. } => {
                check_short_string("queue", name)
            }
            Source::Nothing | Source::ReplyQueue => Ok(()),
        }
    }
}
