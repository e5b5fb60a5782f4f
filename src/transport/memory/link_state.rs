//! The broker's state of a link.

use std::collections::HashMap;
use std::sync::Arc;

use super::queue::{Entry, QueueId};
use crate::transport::{Delivery, DeliveryToken, LinkSource, Settler, Sink};

/// The state of an open link.
pub(super) struct LinkState {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) settler: Arc<dyn Settler>,
    pub(super) source: LinkSource,
    pub(super) reply_queue: Option<String>,
    pub(super) consuming: Option<QueueId>,
    /// The largest number of unsettled deliveries; `None` without acknowledgements.
    pub(super) prefetch: Option<usize>,
    pub(super) unsettled: HashMap<u64, (QueueId, Entry)>,
}

impl LinkState {
    pub(super) fn has_room(&self) -> bool {
        self.prefetch.is_none_or(|max| self.unsettled.len() < max)
    }

    /// Creates a delivery that must be settled.
    pub(super) fn hand_out(&mut self, queue: QueueId, entry: Entry, tag: u64) -> Delivery {
        let message = Arc::clone(&entry.message);
        let redelivered = entry.redelivered;
        self.unsettled.insert(tag, (queue, entry));
        let token = DeliveryToken {
            settler: Arc::clone(&self.settler),
            session: 0, // a memory link never reconnects
            tag,
        };
        Delivery::new(message, redelivered, Some(token))
    }
}
