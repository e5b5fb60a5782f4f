//! The state that all clones of a client share, and the wait for one call.

use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::call_outcome::{CallOutcome, CallbackEvent};
use super::callback::CallbackThread;
use super::decode::CallTarget;
use super::discovery::Discovery;
use super::reply_slot::ReplySlot;
use super::router::Router;
use crate::base::park;
use crate::error::{Error, Result};
use crate::message::CorrelationId;
use crate::transport::{Broker, CoalesceLimits, LinkHandle, SendState, Sink};

pub(super) struct ClientCore {
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) broker: Broker,
    pub(super) handle: Arc<dyn LinkHandle>,
    pub(super) router: Arc<Router>,
    pub(super) discovery: Option<Discovery>,
    /// What may share a message.
    pub(super) coalesce: Option<CoalesceLimits>,
    pub(super) callbacks: Mutex<Option<CallbackThread>>,
}

pub(super) const CLIENT_CLOSED: &str = "the client has been closed";

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

impl ClientCore {
    /// What the caller gets, and what the balancer learns.
    pub(super) fn result<T: DeserializeOwned>(
        &self,
        target: CallTarget<'_>,
        outcome: CallOutcome,
    ) -> Result<T> {
        self.record_latency(target, &outcome);
        if matches!(outcome, CallOutcome::NoRoute { .. }) {
            self.invalidate_lookup(target);
        }
        target.result(outcome, self.address())
    }

    /// Waits for what becomes of a request; `None` if that is not known by its deadline.
    pub(super) fn outcome(&self, sent: &SentCall) -> Option<CallOutcome> {
        let outcome = sent.wait(sent.send_state.deadline(), self.broker.spin_for());
        outcome.or_else(|| sent.expire(&self.router))
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&self, sent: &SentCall) {
        sent.send_state.abandon();
        self.router.forget(sent.id);
    }

    pub(super) fn timed_out(&self, target: CallTarget<'_>, sent: &SentCall) -> Error {
        self.invalidate_lookup(target);
        target.timed_out(&sent.send_state, sent.timeout, self.address())
    }

    pub(super) fn address(&self) -> &str {
        self.broker.address()
    }

    /// The way to the callback thread, which starts with the first callback.
    pub(super) fn callback_events(&self) -> Result<Sender<CallbackEvent>> {
        let mut callbacks = self.callbacks.lock();
        let thread = match &mut *callbacks {
            Some(thread) => thread,
            none => none.insert(CallbackThread::start(&self.name, Arc::clone(&self.router))?),
        };
        Ok(thread.events().clone())
    }

    pub(super) fn close(&self) {
        self.router.closed(CLIENT_CLOSED);
        self.handle.close();
    }
}

impl Drop for ClientCore {
    fn drop(&mut self) {
        self.close();
    }
}
