//! The traits that a broker implements, and those that services implement towards it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ConfirmSender, Delivery, Limits, LinkSpec, Publication, Returned, Room};
use crate::error::Result;
use crate::message::CorrelationId;

/// What a broker must do. Implemented by `memory` and by `amqp`.
pub(crate) trait Transport: Send + Sync {
    /// Declares what `spec` asks for and starts consuming into `sink`. Called
    /// by user threads; blocks until the broker has done it, at most until
    /// `deadline`.
    fn open(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        deadline: Instant,
    ) -> Result<Arc<dyn LinkHandle>>;

    /// Another connection to the same broker, on which messages of `large` bytes can be
    /// sent, if given; `None` if one serves as well.
    fn second_connection(&self, large: Option<usize>) -> Result<Option<Box<dyn Transport>>>;

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
    fn spin_for(&self) -> Duration;

    /// Where it is, for error texts: `memory` or `host:port/vhost`.
    fn address(&self) -> &str;
}

/// An open link, as its owner holds it. Called by user threads.
pub(crate) trait LinkHandle: Send + Sync {
    /// Hands a message over for sending. Blocks while what is to be sent is
    /// at its bound, at most until `deadline`. `Ok` means accepted, not sent:
    /// the publication's ticket tells the difference. A receipt, on a link that
    /// confirms, is settled when the broker has confirmed or refused it. A message with a
    /// large body leaves over a channel that has nothing else in it, one at a time.
    fn publish(
        &self,
        publication: Publication,
        confirm: Option<ConfirmSender>,
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
    fn coalesced(&self, _id: CorrelationId, _messages: Vec<Box<Publication>>) {}

    /// The connection was lost: what was sent on it and not answered has an
    /// unknown outcome. The link itself recovers, and sends first what this
    /// returns: nothing, unless it `may_resend`. It may not where the broker
    /// objected to something it sent.
    fn lost(&self, cause: &str, may_resend: bool) -> Vec<Publication>;

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
