//! The calls and the coalesced messages under way, behind one lock.

use std::sync::Arc;

use super::batch_table::BatchTable;
use super::pending_table::{PendingCall, PendingTable};
use crate::message::CorrelationId;
use crate::transport::Publication;

/// The single calls, and the messages that hold several of them.
pub(super) struct CallTables {
    pub(super) calls: PendingTable,
    batches: BatchTable,
}

/// An entry that a reply or a returned message belongs to.
pub(super) enum Taken {
    Call(PendingCall),
    /// The calls of a coalesced message, in its order.
    Batch(Vec<CorrelationId>),
    Nothing,
}

impl CallTables {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self {
            calls: PendingTable::new(max_in_flight),
            batches: BatchTable::default(),
        }
    }

    /// Takes out a call; `None` if it has ended already.
    pub(super) fn remove(&mut self, id: CorrelationId) -> Option<PendingCall> {
        let call = self.calls.remove(id)?;
        if let Some(message) = call.sent_in {
            self.batches.leave(message);
        }
        Some(call)
    }

    /// Takes out the call or the coalesced message with this id.
    pub(super) fn take(&mut self, id: CorrelationId) -> Taken {
        if let Some(call) = self.remove(id) {
            return Taken::Call(call);
        }
        self.batches.take(id).map_or(Taken::Nothing, Taken::Batch)
    }

    /// Takes out a coalesced message: its calls, in its order.
    pub(super) fn take_batch(&mut self, message: CorrelationId) -> Option<Vec<CorrelationId>> {
        self.batches.take(message)
    }

    /// Records that these requests were sent as one message.
    pub(super) fn insert_batch(&mut self, message: CorrelationId, requests: Vec<Box<Publication>>) {
        let mut calls = Vec::with_capacity(requests.len());
        let mut waiting = 0;
        for request in requests {
            let id = request.properties.correlation_id.as_deref();
            let Some(id) = id.and_then(CorrelationId::parse) else {
                continue;
            };
            calls.push(id);
            let Some(before) = self.calls.set_sent_in(id, message, request) else {
                continue;
            };
            waiting += 1;
            if let Some(before) = before {
                self.batches.leave(before);
            }
        }
        self.batches.insert(message, calls, waiting);
    }

    /// Takes out the requests to be sent again after a loss, whose calls go on waiting, and
    /// the other calls whose requests have been sent.
    pub(super) fn take_sent(&mut self, may_resend: bool) -> (Vec<Publication>, Vec<PendingCall>) {
        let (resend, lost) = self.calls.sent(may_resend);
        let lost = lost.into_iter().filter_map(|id| self.remove(id));
        (resend, lost.collect())
    }

    /// Takes out every call, and takes no more.
    pub(super) fn close(&mut self, cause: Arc<str>) -> Vec<PendingCall> {
        let all = self.calls.close(cause).into_iter();
        all.filter_map(|id| self.remove(id)).collect()
    }
}
