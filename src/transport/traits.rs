//! The traits between a transport and the services built on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    ConfirmSender, ConnectionState, Delivery, Limits, LinkSpec, Publication, QueueDepth, Returned,
    Room,
};
use crate::error::Result;
use crate::message::CorrelationId;

/// A transport: a connection to a broker. Implemented by `memory` and by `amqp`.
pub(crate) trait Transport: Send + Sync {
    /// Declares the topology of `spec` and starts consuming into `sink`. Called by user threads;
    /// blocks until the broker has done so, at most until `deadline`.
    fn open(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        deadline: Instant,
    ) -> Result<Arc<dyn LinkHandle>>;

    /// Opens a second connection to the same broker, on which messages of `large` bytes can be
    /// sent, if given; returns `None` if the first one serves as well.
    fn second_connection(&self, large: Option<usize>) -> Result<Option<Box<dyn Transport>>>;

    /// Starts a connection for queries of queues beside this one, and returns before it is
    /// connected; its operations wait for that. It ends when it is lost, and when it has not been
    /// used for a while. Returns `None` if this one serves as well.
    fn administration(&self) -> Result<Option<Arc<dyn Transport>>>;

    /// Counts the messages that wait in a queue, and its consumers. Called by user threads, on an
    /// administration connection; blocks at most until `deadline`.
    fn queue_depth(&self, queue: &str, deadline: Instant) -> Result<QueueDepth>;

    /// Returns true if its connections may be lost and reconnected.
    fn can_reconnect(&self) -> bool;

    /// Reserves room for a message of `bytes` in the send queue, if that is bounded. Called by user
    /// threads; blocks while there is none, at most until `deadline`, and not at all without a
    /// deadline.
    fn reserve(&self, bytes: usize, deadline: Option<Instant>) -> Result<Option<Arc<Room>>>;

    /// Closes every link and the connection. Called by user threads; returns by `deadline` in
    /// whatever state the broker is.
    fn close(&self, deadline: Instant) -> Result<()>;

    /// Returns the latest state of the connection. Does not block.
    fn state(&self) -> ConnectionState;

    /// Returns the limits on outgoing messages.
    fn limits(&self) -> &Limits;

    /// Returns the time for which it pays to spin before sleeping when a reply is awaited.
    fn spin_for(&self) -> Duration;

    /// Returns the address for error texts: `memory` or `host:port/vhost`.
    fn address(&self) -> &str;
}

/// An open link, held by its owner. Called by user threads.
pub(crate) trait LinkHandle: Send + Sync {
    /// Queues a message for sending. Blocks while the send queue is full, at most until `deadline`.
    /// `Ok` means accepted, not sent: the publication's send state records the difference. On a
    /// link with confirms, `confirm` is settled when the broker has confirmed or refused the
    /// message. Messages with large bodies are sent one at a time, over a channel that carries
    /// nothing else.
    fn publish(
        &self,
        publication: Publication,
        confirm: Option<ConfirmSender>,
        deadline: Instant,
    ) -> Result<()>;

    /// Takes the first message off `queue`; returns it with the number of messages behind it.
    /// Blocks at most until `deadline`. Used on links of an administration connection, where a
    /// refusal costs no other link anything: this one then ends, if it has unsettled deliveries.
    fn get(&self, queue: &str, deadline: Instant) -> Result<Option<(Delivery, usize)>>;

    /// Stops consuming; after it returns no further delivery reaches the sink, while earlier
    /// deliveries can still be settled. A queue of the link's own is unbound first: messages
    /// published after that do not reach it. Blocks at most until `deadline`.
    fn stop_consuming(&self, deadline: Instant) -> Result<()>;

    /// Starts consuming again after [`stop_consuming`](LinkHandle::stop_consuming), or for the
    /// first time on a paused link; does nothing if the link consumes. Blocks at most until
    /// `deadline`.
    fn resume_consuming(&self, deadline: Instant) -> Result<()>;

    /// Sets the largest number of unsettled deliveries, at least 1, of a link that consumes with
    /// acknowledgements; on a paused link it applies when that is resumed. Deliveries stay valid,
    /// and nothing is redelivered. A link that declares its queue with a single active consumer
    /// gets no more than before until it consumes anew, as its turn would pass to another consumer.
    /// Blocks at most until `deadline`.
    fn set_prefetch(&self, count: u16, deadline: Instant) -> Result<()>;

    /// Takes the first message off the queue of the link's own; returns it with the number of
    /// messages behind it. Blocks at most until `deadline`.
    fn get_own(&self, deadline: Instant) -> Result<Option<(Delivery, usize)>>;

    /// Blocks until the broker has received everything that the link has published and settled, at
    /// most until `deadline`.
    fn flush(&self, deadline: Instant) -> Result<()>;

    /// Deletes the queue of the link's own, with its messages, if there is one. Blocks at most
    /// until `deadline`.
    fn delete_own_queue(&self, deadline: Instant) -> Result<()>;

    /// Returns the reason why the broker refused to reopen the link after a reconnect, until it is
    /// open again. Does not block.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// Closes the link; the broker requeues its unsettled deliveries. Never blocks.
    fn close(&self);
}

/// A receiver of a link's deliveries and returned messages, and of changes to the link. Called by
/// the transport's own threads, possibly with its locks held: an implementation must neither block,
/// nor run user code, nor call back into the transport.
pub(crate) trait Sink: Send + Sync {
    /// Accepts a delivery, or returns it as an error if it cannot take it, and the transport
    /// requeues it. Returned publications are sent over the same link, as soon as anything can be
    /// sent.
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery>;

    /// Accepts a returned message. The publications that this returns are sent in its place, in the
    /// same way.
    fn returned(&self, returned: Returned) -> Vec<Publication>;

    /// Accepts the refusal of a message with a large body, or of any message without a confirm while
    /// the broker refuses to reopen the link. The publications that this returns are
    /// sent in its place.
    fn refused(&self, _refused: Refused<'_>) -> Vec<Publication> {
        Vec::new()
    }

    /// Accepts requests that were coalesced into one message with this correlation id.
    fn coalesced(&self, _id: CorrelationId, _messages: Vec<Box<Publication>>) {}

    /// Handles the opening of the link, the first and each one after a loss: from now on it consumes,
    /// unless it is paused. Called before the first delivery, possibly more than once.
    fn opened(&self) {}

    /// Handles the loss of the connection: messages that were sent on it without an answer have an
    /// unknown outcome. The link itself recovers, and first sends the publications that this
    /// returns: none, unless `may_resend` is true. It is false if the broker objected to something
    /// that the link sent.
    fn lost(&self, cause: &str, may_resend: bool) -> Vec<Publication>;

    /// Handles the end of the link: nothing will arrive any more.
    fn closed(&self, cause: &str);
}

/// A message that the broker refused.
pub(crate) struct Refused<'a> {
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) bytes: usize,
    /// The limit on a message's size in bytes, if the broker named it.
    pub(crate) limit: Option<usize>,
    /// The reason, if it was not the size.
    pub(crate) reason: Option<&'a str>,
}

/// The sink of a link that consumes nothing, and whose returned messages are reported by confirms.
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
