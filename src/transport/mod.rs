//! The seam between coney's services and a broker, and the raw access to it.
//!
//! A *link* is one conversation with the broker, an AMQP channel that outlives
//! reconnects: it declares what it needs, publishes, and consumes from one
//! queue. [`ServiceClient`](crate::ServiceClient) and
//! [`ServiceServer`](crate::ServiceServer) are written over links and know
//! nothing else. [`Link`] is the same thing for programs that must speak to
//! peers which do not follow coney's contract.

pub(crate) mod amqp;
mod broker;
mod confirmation;
mod confirmed;
mod delivery;
mod header;
mod limits;
mod link;
pub(crate) mod memory;
mod publication;
mod room;
mod ticket;
pub(crate) mod x_death;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::message::Body;
pub use crate::topology::{ExchangeKind, QueueOptions, Topology};
pub use amqp::{BrokerBuilder, ConnectionState};
pub use broker::Broker;
pub(crate) use confirmation::{Confirmation, Fate, Receipt};
pub use delivery::Delivery;
pub(crate) use delivery::{Outcome, PartialReply, Replier, Settle, Token};
pub use header::{HeaderTable, HeaderValue};
pub(crate) use limits::Limits;
pub use link::Link;
pub(crate) use publication::{LONGEST_EXPIRATION, LargeBody, Oversized, Parcel, Sharing, is_large};
pub use publication::{Message, Properties, Publication, RareProperties, Returned};
pub(crate) use room::{Budget, Room};
pub(crate) use ticket::Ticket;

use crate::error::{Error, ErrorKind, Result};
use crate::message::CorrelationId;
use crate::name::check_short_string;

/// The default of [`BrokerBuilder::max_body`].
pub(crate) const DEFAULT_MAX_BODY: usize = 16 << 20;

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

    /// Consume only after [`Wire::resume_consuming`].
    pub(crate) fn paused(mut self, paused: bool) -> Self {
        self.paused = paused;
        self
    }

    /// Checks every name: one that is too long would corrupt its frame.
    fn check(&self) -> Result<()> {
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

/// What a broker must do. Implemented by `memory` and by `amqp`.
pub(crate) trait Transport: Send + Sync {
    /// Declares what `spec` asks for and starts consuming into `sink`. Called
    /// by user threads; blocks until the broker has done it, at most until
    /// `deadline`.
    fn open(&self, spec: LinkSpec, sink: Arc<dyn Sink>, deadline: Instant)
    -> Result<Arc<dyn Wire>>;

    /// Another connection to the same broker, on which messages of `large` bytes can be
    /// sent, if given; `None` if one serves as well.
    fn another(&self, large: Option<usize>) -> Result<Option<Box<dyn Transport>>>;

    /// True if its connections may be lost and made again.
    fn has_sessions(&self) -> bool;

    /// Room for a message of so many bytes among those that wait to be sent, where that is
    /// bounded. Called by user threads; blocks while there is none, at most until
    /// `deadline`, and without one not at all.
    fn reserve(&self, bytes: usize, deadline: Option<Instant>) -> Result<Option<Arc<Room>>>;

    /// Ends every link and the connection. Called by user threads; returns by
    /// `deadline` whatever state the broker is in.
    fn close(&self, deadline: Instant) -> Result<()>;

    /// The limits on what is sent.
    fn limits(&self) -> &Limits;

    /// How long it is worth staying awake for an answer before sleeping.
    fn awake(&self) -> Duration;

    /// Where it is, for error texts: `memory` or `host:port/vhost`.
    fn peer(&self) -> &str;
}

/// An open link, as its owner holds it. Called by user threads.
pub(crate) trait Wire: Send + Sync {
    /// Hands a message over for sending. Blocks while what is to be sent is
    /// at its bound, at most until `deadline`. `Ok` means accepted, not sent:
    /// the publication's ticket tells the difference. A receipt, on a link that
    /// confirms, is settled when the broker has confirmed or refused it. A message with a
    /// large body leaves over a channel that has nothing else in it, one at a time.
    fn publish(
        &self,
        publication: Publication,
        receipt: Option<Receipt>,
        deadline: Instant,
    ) -> Result<()>;

    /// Takes the first message off `queue`, and says how many are behind it.
    /// Blocks at most until `deadline`.
    fn get(&self, queue: &str, deadline: Instant) -> Result<Option<(Delivery, usize)>>;

    /// Stops consuming; when it returns no further delivery reaches the sink,
    /// while what was delivered can still be settled. A queue of the link's own is
    /// unbound before: what is published after that does not come into it. Blocks at
    /// most until `deadline`.
    fn stop_consuming(&self, deadline: Instant) -> Result<()>;

    /// Starts consuming again after that; does nothing if it has not stopped.
    /// Blocks at most until `deadline`.
    fn resume_consuming(&self, deadline: Instant) -> Result<()>;

    /// The same for the queue of the link's own.
    fn get_own(&self, deadline: Instant) -> Result<Option<(Delivery, usize)>>;

    /// The number of messages in `queue` that no consumer has fetched. Blocks at most
    /// until `deadline`.
    fn backlog(&self, queue: &str, deadline: Instant) -> Result<usize>;

    /// Waits until the broker has all that the link has published and settled. Blocks at
    /// most until `deadline`.
    fn flush(&self, deadline: Instant) -> Result<()>;

    /// Deletes the queue of the link's own, with what is in it, if there is one. Blocks at
    /// most until `deadline`.
    fn delete_own_queue(&self, deadline: Instant) -> Result<()>;

    /// Ends the link; the broker takes back what was not settled. Never blocks.
    fn close(&self);
}

/// Where a link's deliveries and fates go. Called by the transport's own
/// threads, possibly with its locks held: an implementation must neither block,
/// nor run user code, nor call back into the transport.
pub(crate) trait Sink: Send + Sync {
    /// A message arrived. One that cannot be taken is handed back, and the
    /// transport returns it to its queue. What this returns is sent, over the same
    /// link, as soon as anything can be sent.
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery>;

    /// A mandatory message had no queue to go to. What this returns is sent in its
    /// place, in the same way.
    fn returned(&self, returned: Returned) -> Vec<Publication>;

    /// The broker refused a message with a large body. What this returns is sent in its
    /// place.
    fn refused(&self, _refused: Refused<'_>) -> Vec<Publication> {
        Vec::new()
    }

    /// Messages that may share one were sent as one, with this correlation id.
    fn gathered(&self, _id: CorrelationId, _messages: Vec<Parcel>) {}

    /// The connection was lost: what was sent on it and not answered has an
    /// unknown outcome. The link itself recovers, and sends first what this
    /// returns: nothing, unless it `may_send_again`. It may not where the broker
    /// objected to something it sent.
    fn lost(&self, cause: &str, may_send_again: bool) -> Vec<Publication>;

    /// The link is over for good: nothing will arrive any more.
    fn closed(&self, cause: &str);
}

/// A message that the broker did not take.
pub(crate) struct Refused<'a> {
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) bytes: usize,
    /// The limit on a message's size, if the broker named it.
    pub(crate) limit: Option<usize>,
    /// Why, if not for its size.
    pub(crate) reason: Option<&'a str>,
}

/// The sink of a link that consumes nothing, and whose returns go to receipts.
pub(crate) struct NoSink;

impl Sink for NoSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        Err(delivery)
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        Vec::new()
    }

    fn closed(&self, _cause: &str) {}
}
