//! Deliveries and their settlement.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Limits, Message, Publication};
use crate::base::log_relay;

/// A message delivered from a queue, which must be settled.
///
/// Settle it once, by [`ack`](Delivery::ack), [`ack_with`](Delivery::ack_with) or
/// [`reject`](Delivery::reject): each takes the delivery, so a second settlement does not compile.
/// Dropping it requeues the message. Settling never blocks; after its connection was lost it has no
/// effect, as the broker has requeued the message already.
pub struct Delivery {
    message: Arc<Message>,
    redelivered: bool,
    arrived: Instant,
    token: Option<DeliveryToken>,
}

/// The means to settle one delivery, in the session in which it arrived.
pub(crate) struct DeliveryToken {
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) session: u64,
    pub(crate) tag: u64,
}

/// The settlement of a delivery.
#[derive(Debug)]
pub(crate) enum Disposition {
    /// Acknowledge; first publish the reply over the same channel, if there is one.
    Ack { reply: Option<Box<Publication>> },
    /// Requeue, or drop or dead-letter the message.
    Reject { requeue: bool },
    /// Leave unsettled until the link ends and the broker requeues it; until then nothing of it is
    /// kept in this process.
    Hold,
}

impl Disposition {
    /// Removes a reply that cannot be sent, with a line in the log; the delivery is acknowledged
    /// all the same.
    pub(crate) fn checked(self, limits: &Limits) -> Self {
        if let Self::Ack { reply: Some(reply) } = &self
            && let Err(error) = reply.check(limits)
        {
            log_relay::log(
                log::Level::Warn,
                "coney::transport",
                format_args!("a reply cannot be sent and is dropped: {error}"),
            );
            return Self::Ack { reply: None };
        }
        self
    }
}

/// A receiver of settlements and replies: the transport that made the deliveries.
pub(crate) trait Settler: Send + Sync {
    /// Settles a delivery. Must not block.
    fn settle(&self, session: u64, tag: u64, outcome: Disposition);

    /// Sends one of several replies to a delivery that is not settled yet, possibly coalesced with
    /// others. A settlement requested after this call takes effect after the reply is sent. Called
    /// by workers. Blocks while the send queue is full, at most until the reply's deadline.
    fn reply(&self, session: u64, tag: u64, reply: PartialReply<'_>);
}

/// A sender of replies to a delivery, over the link that acknowledges it.
pub(crate) struct Replier {
    settler: Arc<dyn Settler>,
    session: u64,
    tag: u64,
}

impl Replier {
    /// Sends a reply. Blocks while the send queue is full, at most until the reply's deadline.
    pub(crate) fn reply(&self, reply: PartialReply<'_>) {
        self.settler.reply(self.session, self.tag, reply);
    }
}

/// One of several replies to a delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartialReply<'a> {
    /// The reply queue.
    pub(crate) to: &'a str,
    pub(crate) correlation_id: &'a str,
    pub(crate) body: &'a [u8],
    /// The moment from which on no caller waits for the reply.
    pub(crate) deadline: Instant,
}

impl PartialReply<'_> {
    /// Converts into a message with this reply only.
    pub(crate) fn into_publication(self) -> Publication {
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

    /// Returns the moment at which the delivery arrived in this process.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Returns the message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Returns true if the message was delivered before and not acknowledged.
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// Acknowledges the delivery: the broker deletes the message.
    pub fn ack(self) {
        self.settle(Disposition::Ack { reply: None });
    }

    /// Publishes a reply and then acknowledges the delivery, in this order on one channel, so that
    /// the request is never gone without its reply. A reply that
    /// [`Link::publish`](super::Link::publish) would refuse is logged and dropped.
    pub fn ack_with(self, reply: Publication) {
        self.settle(Disposition::Ack {
            reply: Some(Box::new(reply)),
        });
    }

    /// Returns a sender for several replies, none of which settles the delivery.
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

    /// Rejects the delivery: the message is requeued with `requeue`, else dropped, or dead-lettered
    /// if the queue has a dead-letter exchange.
    pub fn reject(self, requeue: bool) {
        self.settle(Disposition::Reject { requeue });
    }

    /// Returns the body of a delivery that needs no settlement.
    pub(crate) fn into_body(mut self) -> Vec<u8> {
        self.token = None;
        let message = Arc::clone(&self.message);
        drop(self);
        Arc::try_unwrap(message).map_or_else(|shared| shared.body.clone(), |own| own.body)
    }

    /// Leaves the delivery unsettled until its link ends: then the broker requeues it, with all
    /// other held deliveries, in their order.
    pub(crate) fn hold(self) {
        self.settle(Disposition::Hold);
    }

    /// Returns the message, which may outlive the delivery.
    pub(crate) fn share_message(&self) -> Arc<Message> {
        Arc::clone(&self.message)
    }

    /// Disarms the delivery without settling it; returns its delivery tag.
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
