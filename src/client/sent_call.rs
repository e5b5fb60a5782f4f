//! A call on its way, and the wait for its outcome.

use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::call_outcome::CallOutcome;
use super::reply_slot::ReplySlot;
use super::router::Router;
use crate::base::park;
use crate::message::CorrelationId;
use crate::transport::SendState;

/// A request on its way: what a caller needs to wait for its reply.
#[derive(Clone)]
pub(super) struct SentCall {
    pub(super) id: CorrelationId,
    pub(super) send_state: Arc<SendState>,
    pub(super) slot: ReplySlot,
    /// Which thread is unparked when it is there; others wait in the channel.
    pub(super) woken: Option<ThreadId>,
    pub(super) timeout: Duration,
}

impl SentCall {
    /// Blocks until the outcome is there, at most until then.
    pub(super) fn wait(&self, until: Instant, spin_for: Duration) -> Option<CallOutcome> {
        if self.woken != Some(thread::current().id()) {
            return self.slot.outcome.recv_deadline(until).ok();
        }
        park::recv_parked(&self.slot.outcome, until, spin_for)
    }

    /// Ends the wait at the deadline: `None`, unless the outcome was decided
    /// at the last moment.
    pub(super) fn expire(&self, router: &Router) -> Option<CallOutcome> {
        if router.expire(self.id) {
            None
        } else {
            Some(decided(&self.slot.outcome))
        }
    }
}

/// The outcome of a call that has left the table: in its slot, or put there
/// this moment by the thread that took the call out.
pub(super) fn decided(slot: &Receiver<CallOutcome>) -> CallOutcome {
    // A moment, unless that thread has died.
    slot.recv_timeout(Duration::from_secs(1))
        .unwrap_or(CallOutcome::Untold)
}
