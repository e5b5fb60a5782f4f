//! Deliveries tracked while they are handled.

use std::sync::Arc;

use super::settled::{Finish, Settled};
use crate::transport::{Delivery, Message, Publication};

/// A delivery that is tracked from the moment its processing starts until it is settled. If dropped
/// before that, its message is requeued.
pub(crate) struct Tracked {
    delivery: Option<Delivery>,
    key: Option<u64>,
    table: Arc<Settled>,
}

impl Settled {
    /// Starts tracking a delivery. Returns `None` if its message is being handled or was finished
    /// in this process: the delivery is then settled as the message is.
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
        // Taken only by methods that consume `self`.
        self.delivery.as_ref().unwrap_or_else(|| unreachable!())
    }

    pub(crate) fn message(&self) -> &Message {
        self.delivery().message()
    }

    pub(super) fn share_message(&self) -> Arc<Message> {
        self.delivery().share_message()
    }

    /// Acknowledges the delivery.
    pub(super) fn ack(self) {
        self.end(Finish::Acked);
    }

    /// Publishes the reply and acknowledges the delivery.
    pub(super) fn ack_with(self, reply: Publication) {
        self.end(Finish::Replied(Box::new(reply)));
    }

    /// Publishes the reply, if there is one, and acknowledges the delivery.
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
        // After a redelivery the session of the first delivery has ended.
        if let Some(delivery) = adopted.or(delivery) {
            finish.settle(delivery);
        }
    }

    /// Stops tracking, and returns the latest delivery of the message.
    pub(crate) fn into_delivery(mut self) -> Delivery {
        let adopted = match self.key.take() {
            Some(key) => self.table.untrack(key),
            None => None,
        };
        let delivery = self.delivery.take();
        adopted.or(delivery).unwrap_or_else(|| unreachable!())
    }

    /// Leaves the delivery unsettled: the broker has requeued the message.
    pub(crate) fn forget(mut self) {
        if let Some(delivery) = self.delivery.take() {
            delivery.forget();
        }
    }
}

impl Drop for Tracked {
    /// Requeues the message: drops the delivery and its latest redelivery unsettled.
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            drop(self.table.untrack(key));
        }
    }
}
