//! A call on its way, and the wait for its outcome.

use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::call_outcome::CallOutcome;
use super::lone_spin::LoneSpin;
use super::reply_slot::ReplySlot;
use super::router::Router;
use crate::base::park;
use crate::message::CorrelationId;
use crate::transport::SendState;

/// A call on its way, as its caller waits for it.
#[derive(Clone)]
pub(super) struct SentCall {
    pub(super) id: CorrelationId,
    pub(super) send_state: Arc<SendState>,
    pub(super) slot: ReplySlot,
    /// The thread that is unparked when the outcome is there; others wait in the channel.
    pub(super) woken: Option<ThreadId>,
    pub(super) timeout: Duration,
}

/// The end of the wait for a call at its deadline.
pub(super) enum Expiry {
    /// No outcome. `is_of_pick` is false if a balancer has picked an instance, and its queue did not
    /// take the request.
    Expired { is_of_pick: bool },
    /// An outcome, decided at the last moment.
    Decided(CallOutcome),
}

impl Expiry {
    /// Returns the outcome, if there is one.
    pub(super) fn outcome(self) -> Option<CallOutcome> {
        match self {
            Self::Expired { .. } => None,
            Self::Decided(outcome) => Some(outcome),
        }
    }
}

impl SentCall {
    /// Spins for the outcome, if the request is sent and no other call of the client is in flight; at
    /// most until `until`.
    pub(super) fn spin(
        &self,
        lone_spin: &LoneSpin,
        router: &Router,
        until: Instant,
    ) -> Option<CallOutcome> {
        if !self.send_state.is_sent() {
            return None;
        }
        lone_spin.recv(&self.slot.outcome, until, || router.is_lone())
    }

    /// Blocks until the outcome is there, at most until `until`; spins for `spin_for` before it
    /// sleeps.
    pub(super) fn wait(&self, until: Instant, spin_for: Duration) -> Option<CallOutcome> {
        if self.woken != Some(thread::current().id()) {
            return self.slot.outcome.recv_deadline(until).ok();
        }
        park::recv_parked(&self.slot.outcome, until, spin_for)
    }

    /// Ends the wait at the deadline.
    pub(super) fn expire(&self, router: &Router) -> Expiry {
        match router.expire(self.id) {
            Some(is_of_pick) => Expiry::Expired { is_of_pick },
            None => Expiry::Decided(decided(&self.slot.outcome)),
        }
    }
}

/// Takes the outcome of a call that has left the table: it is in its slot, or put there
/// this moment by the thread that took the call out.
fn decided(slot: &Receiver<CallOutcome>) -> CallOutcome {
    // Takes a moment, unless that thread has died.
    slot.recv_timeout(Duration::from_secs(1))
        .unwrap_or(CallOutcome::Unreported)
}
