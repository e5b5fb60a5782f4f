use std::sync::Arc;

use super::settled::{Finish, Settled};
use crate::transport::{Delivery, Message, Publication};

/// A delivery, tracked from the moment it is looked into until it is settled.
pub(crate) struct Tracked {
    delivery: Option<Delivery>,
    key: Option<u64>,
    table: Arc<Settled>,
}

impl Settled {
    /// Begins with a delivery; `None` if its message is being handled or was finished here:
    /// the delivery is then settled as the message is.
    pub(crate) fn track(self: &Arc<Self>, delivery: Delivery) -> Option<Tracked> {
        let (delivery, key) = self.begin(delivery)?;
        Some(Tracked {
            delivery: Some(delivery),
            key,
            table: Arc::clone(self),
        })
    }
}

impl Tracked {
    pub(crate) fn delivery(&self) -> &Delivery {
        // Taken only by those who consume `self`.
        self.delivery.as_ref().unwrap_or_else(|| unreachable!())
    }

    pub(crate) fn message(&self) -> &Message {
        self.delivery().message()
    }

    pub(super) fn share_message(&self) -> Arc<Message> {
        self.delivery().share_message()
    }

    /// Acknowledges: the message is done with.
    pub(super) fn ack(self) {
        self.end(Finish::Acked);
    }

    /// Publishes the reply and acknowledges.
    pub(super) fn ack_with(self, reply: Publication) {
        self.end(Finish::Replied(Box::new(reply)));
    }

    /// Acknowledges, with the reply if there is one.
    pub(super) fn done(self, reply: Option<Publication>) {
        match reply {
            Some(reply) => self.ack_with(reply),
            None => self.ack(),
        }
    }

    fn end(mut self, finish: Finish) {
        let adopted = match self.key.take() {
            Some(key) => self.table.finish(key, finish.clone()),
            None => None,
        };
        let delivery = self.delivery.take();
        // Where it came again, the session of the first has ended.
        if let Some(delivery) = adopted.or(delivery) {
            finish.settle(delivery);
        }
    }

    /// The delivery, no longer tracked.
    pub(crate) fn into_delivery(mut self) -> Delivery {
        let adopted = match self.key.take() {
            Some(key) => self.table.give_up(key),
            None => None,
        };
        let delivery = self.delivery.take();
        adopted.or(delivery).unwrap_or_else(|| unreachable!())
    }

    /// Gives up the duty to settle: the broker has taken the message back.
    pub(crate) fn forget(mut self) {
        if let Some(delivery) = self.delivery.take() {
            delivery.forget();
        }
    }
}

impl Drop for Tracked {
    /// Back into its queue, with whatever delivery of it came again.
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            drop(self.table.give_up(key));
        }
    }
}
