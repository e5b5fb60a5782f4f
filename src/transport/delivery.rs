use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Limits, Message, Publication};
use crate::base::log_relay;

/// A message taken from a queue, together with the duty to settle it.
///
/// Settle it once, by [`ack`](Delivery::ack), [`ack_with`](Delivery::ack_with)
/// or [`reject`](Delivery::reject): each takes the delivery, so that a second
/// time does not compile. Dropping it puts the message back into its queue.
/// Settling never blocks; after the connection it came over was lost it does
/// nothing, as the broker has the message back already.
pub struct Delivery {
    message: Arc<Message>,
    redelivered: bool,
    arrived: Instant,
    token: Option<DeliveryToken>,
}

/// The right to settle one delivery, in the session it came over.
pub(crate) struct DeliveryToken {
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) session: u64,
    pub(crate) tag: u64,
}

/// What becomes of a delivery.
#[derive(Debug)]
pub(crate) enum Disposition {
    /// Done; publish the reply first, over the same channel, if there is one.
    Ack { reply: Option<Box<Publication>> },
    /// Not done: back into the queue, or out of it for good.
    Reject { requeue: bool },
    /// Back into the queue when its link ends, and not before; until then nothing is kept
    /// of it here.
    Hold,
}

impl Disposition {
    /// Leaves out a reply that cannot be sent, with a line in the log; the
    /// request is done all the same.
    pub(crate) fn checked(self, limits: &Limits) -> Self {
        if let Self::Ack { reply: Some(reply) } = &self
            && let Err(error) = reply.check(limits)
        {
            log_relay::log(
                log::Level::Warn,
                "coney::transport",
                format_args!("a reply is dropped: {error}"),
            );
            return Self::Ack { reply: None };
        }
        self
    }
}

/// Carries outcomes back to where deliveries come from.
pub(crate) trait Settler: Send + Sync {
    /// Must not block.
    fn settle(&self, session: u64, tag: u64, outcome: Disposition);

    /// Sends one of several replies to a delivery that is not settled yet, possibly in one
    /// message with others; before it is settled, if that is asked for after this. Called
    /// by workers. Blocks while too much waits to be sent, at most until the reply's
    /// deadline.
    fn reply(&self, session: u64, tag: u64, reply: PartialReply<'_>);
}

/// Sends replies to a delivery, over the link that acknowledges it.
pub(crate) struct Replier {
    settler: Arc<dyn Settler>,
    session: u64,
    tag: u64,
}

impl Replier {
    /// Blocks while too much waits to be sent, at most until the reply's deadline.
    pub(crate) fn reply(&self, reply: PartialReply<'_>) {
        self.settler.reply(self.session, self.tag, reply);
    }
}

/// One of several replies to a delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartialReply<'a> {
    /// The queue it goes to.
    pub(crate) to: &'a str,
    pub(crate) correlation_id: &'a str,
    pub(crate) body: &'a [u8],
    /// Nobody waits for it any more.
    pub(crate) deadline: Instant,
}

impl PartialReply<'_> {
    /// The reply in a message of its own.
    pub(crate) fn alone(self) -> Publication {
        let mut publication = Publication::new("", self.to, self.body.to_vec());
        publication.properties.correlation_id = Some(self.correlation_id.to_owned());
        publication
    }
}

impl Delivery {
    pub(crate) fn new(
        message: Arc<Message>,
        redelivered: bool,
        token: Option<DeliveryToken>,
    ) -> Self {
        Self {
            message,
            redelivered,
            arrived: Instant::now(),
            token,
        }
    }

    /// The moment when it arrived in this process.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// True if the message was delivered before and not acknowledged.
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// Acknowledges: the broker may forget the message.
    pub fn ack(self) {
        self.settle(Disposition::Ack { reply: None });
    }

    /// Publishes a reply and then acknowledges, in this order on one channel,
    /// so that the request is never gone without its reply. A reply that
    /// [`Link::publish`](super::Link::publish) would refuse is logged and dropped.
    pub fn ack_with(self, reply: Publication) {
        self.settle(Disposition::Ack {
            reply: Some(Box::new(reply)),
        });
    }

    /// The way for several replies, of which none settles it.
    pub(crate) fn replier(&self) -> Option<Replier> {
        let DeliveryToken {
            settler,
            session,
            tag,
        } = self.token.as_ref()?;
        Some(Replier {
            settler: Arc::clone(settler),
            session: *session,
            tag: *tag,
        })
    }

    /// Refuses: back into the queue with `requeue`, else dropped, or
    /// dead-lettered where the queue has a dead-letter exchange.
    pub fn reject(self, requeue: bool) {
        self.settle(Disposition::Reject { requeue });
    }

    /// The message alone, of a delivery that needs no settling.
    pub(crate) fn into_body(mut self) -> Vec<u8> {
        self.token = None;
        let message = Arc::clone(&self.message);
        drop(self);
        Arc::try_unwrap(message).map_or_else(|shared| shared.body.clone(), |own| own.body)
    }

    /// Leaves it unsettled until its link ends: then it goes back into its queue, with all
    /// others that were left so, in their order.
    pub(crate) fn hold(self) {
        self.settle(Disposition::Hold);
    }

    /// The message, to be kept beyond the delivery.
    pub(crate) fn share_message(&self) -> Arc<Message> {
        Arc::clone(&self.message)
    }

    /// Gives up the duty to settle, without settling.
    pub(crate) fn forget(mut self) -> Option<u64> {
        self.token.take().map(|token| token.tag)
    }

    fn settle(mut self, outcome: Disposition) {
        if let Some(token) = self.token.take() {
            token.settler.settle(token.session, token.tag, outcome);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            let outcome = Disposition::Reject { requeue: true };
            token.settler.settle(token.session, token.tag, outcome);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("routing_key", &self.message.routing_key)
            .field("redelivered", &self.redelivered)
            .field("bytes", &self.message.body.len())
            .finish_non_exhaustive()
    }
}
