//! The messages that hold several calls.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::pending_table::ById;
use crate::message::CorrelationId;

/// The coalesced messages under way, each as long as one of its calls waits for a reply. A
/// plain struct with one owner.
#[derive(Debug, Default)]
pub(super) struct BatchTable {
    messages: HashMap<CorrelationId, SentBatch, ById>,
}

/// A message that holds several calls.
#[derive(Debug)]
struct SentBatch {
    /// The calls in the order of the message.
    calls: Vec<CorrelationId>,
    /// The number of calls that wait for a reply to this message.
    waiting: usize,
}

impl BatchTable {
    /// Adds a message with its calls, of which so many wait for its reply.
    pub(super) fn insert(
        &mut self,
        message: CorrelationId,
        calls: Vec<CorrelationId>,
        waiting: usize,
    ) {
        if waiting > 0 {
            self.messages.insert(message, SentBatch { calls, waiting });
        }
    }

    /// Records that one of a message's calls does not wait for it any more; the message goes
    /// with the last.
    pub(super) fn leave(&mut self, message: CorrelationId) {
        if let Entry::Occupied(mut batch) = self.messages.entry(message) {
            batch.get_mut().waiting -= 1;
            if batch.get().waiting == 0 {
                batch.remove();
            }
        }
    }

    /// Takes out a message that has been answered or returned: its calls, in their order.
    pub(super) fn take(&mut self, message: CorrelationId) -> Option<Vec<CorrelationId>> {
        self.messages.remove(&message).map(|batch| batch.calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_as_long_as_one_of_its_calls_waits() {
        let mut table = BatchTable::default();
        let [message, first, second] = [0; 3].map(|_| CorrelationId::random());
        table.insert(message, vec![first, second], 2);
        table.leave(message);
        assert_eq!(table.messages.len(), 1);
        table.leave(message);
        assert!(table.messages.is_empty());
        assert!(table.take(message).is_none());
        table.leave(message);
        table.insert(message, vec![first], 0);
        assert!(table.messages.is_empty(), "no call waits");
        table.insert(message, vec![first, second], 1);
        assert_eq!(table.take(message), Some(vec![first, second]));
        assert!(table.messages.is_empty());
    }
}
