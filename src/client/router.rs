//! The way of a reply to the call that waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::batch_support::BatchSupport;
use super::call_outcome::{CallOutcome, ReplyBody, TooLarge};
use super::call_tables::{CallTables, Taken};
use super::pending_table::{PendingCall, Refusal, Waiter, Wake};
use crate::base::callbacks::Notifier;
use crate::base::log_relay;
use crate::message::CorrelationId;
use crate::topology;
use crate::transport::{Delivery, Oversized, Publication, Refused, Returned, Sink};

/// Routes replies from the client's reply queue to the waiting calls.
///
/// The lock covers one operation on the tables and nothing else; the waiting thread is woken
/// after it is released.
pub(crate) struct Router {
    tables: Mutex<CallTables>,
    /// The services that are known not to read messages of several requests.
    pub(super) batch_support: BatchSupport,
    /// The number of replies that no call waited for.
    unclaimed: AtomicU64,
    /// True if the latest call was the only one in flight when it was added.
    is_lone: AtomicBool,
}

impl Router {
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Self {
            tables: Mutex::new(CallTables::new(max_in_flight)),
            batch_support: BatchSupport::default(),
            unclaimed: AtomicU64::new(0),
            is_lone: AtomicBool::new(false),
        }
    }

    /// Adds a call.
    pub(crate) fn insert(&self, id: CorrelationId, call: PendingCall) -> Result<(), Refusal> {
        let mut tables = self.tables.lock();
        tables.calls.insert(id, call)?;
        let is_lone = tables.calls.in_flight() == 1;
        // Under the lock, as calls that are added at the same moment must agree on it.
        self.is_lone.store(is_lone, Ordering::Relaxed);
        Ok(())
    }

    /// Returns true, for a call in flight, if it has been the only one since it was added. Takes no
    /// lock.
    pub(crate) fn is_lone(&self) -> bool {
        self.is_lone.load(Ordering::Relaxed)
    }

    /// Drops a call; false if its outcome is decided and on its way.
    pub(crate) fn forget(&self, id: CorrelationId) -> bool {
        let call = self.tables.lock().remove(id);
        call.is_some()
    }

    /// Drops a call whose deadline has passed, and records the delay at the instance that a
    /// balancer picked for it. Returns whether that instance, if there is one, had the request; `None`
    /// if the call's outcome is decided and on its way.
    pub(crate) fn expire(&self, id: CorrelationId) -> Option<bool> {
        let call = self.tables.lock().remove(id)?;
        let (is_sent, balanced) = (call.send_state.is_sent(), call.balanced);
        let Some(balanced) = balanced else {
            return Some(true);
        };
        let is_of_pick = balanced.pick.is_some();
        if let Some(pick) = balanced.pick.filter(|_| is_sent) {
            pick.was_slow();
        }
        Some(is_of_pick)
    }

    pub(crate) fn set_callback(&self, id: CorrelationId, ready: Notifier) -> bool {
        self.tables.lock().calls.set_callback(id, ready)
    }

    pub(crate) fn callback_done(&self) {
        self.tables.lock().calls.callback_done();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.tables.lock().calls.in_flight()
    }

    /// Returns the reason why no more calls are taken, if so.
    pub(crate) fn closed_cause(&self) -> Option<Arc<str>> {
        self.tables.lock().calls.closed_cause()
    }

    pub(crate) fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn finish(
        &self,
        id: Option<CorrelationId>,
        outcome: impl FnOnce(&mut PendingCall) -> CallOutcome,
    ) {
        let call = id.and_then(|id| self.tables.lock().remove(id));
        match call {
            Some(mut call) => {
                let outcome = outcome(&mut call);
                wake(call, outcome);
            }
            None => self.count_unclaimed(),
        }
    }

    /// Counts a reply that no call waits for.
    fn count_unclaimed(&self) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        log_relay::log(
            log::Level::Debug,
            "coney::client",
            format_args!("a late or unknown reply is dropped"),
        );
    }

    pub(super) fn answered(&self, id: Option<CorrelationId>, body: ReplyBody) {
        self.finish(id, |call| reply_outcome(call, body));
    }

    /// Takes out the call or the coalesced message with this correlation id, if it is one of
    /// this client's.
    fn take(&self, id: Option<CorrelationId>) -> Taken {
        id.map_or(Taken::Nothing, |id| self.tables.lock().take(id))
    }

    /// Handles a reply that is larger than this client takes.
    fn too_large(&self, id: Option<CorrelationId>, bytes: u64) {
        let outcome = || CallOutcome::TooLarge(TooLarge::Reply { bytes });
        match self.take(id) {
            Taken::Call(call) => wake(call, outcome()),
            Taken::Batch(calls) => {
                for id in calls {
                    self.finish(Some(id), |_| outcome());
                }
            }
            Taken::Nothing => self.count_unclaimed(),
        }
    }

    /// Takes out the requests of these calls, to be sent one by one.
    pub(super) fn take_for_single_send(&self, calls: &[CorrelationId]) -> Vec<Publication> {
        let mut tables = self.tables.lock();
        let requests = calls.iter();
        requests
            .filter_map(|&id| tables.calls.take_for_single_send(id))
            .collect()
    }

    fn no_route(&self, id: Option<CorrelationId>, returned: &Returned) -> Option<Publication> {
        if let Some(id) = id
            && let Some(fallback) = self.tables.lock().calls.take_fallback(id)
        {
            return Some(fallback);
        }
        self.finish(id, |call| {
            if call.send_state.was_resent() {
                return CallOutcome::Lost("sent again, it had no queue to go to".into());
            }
            let queue = Some(returned.routing_key.clone());
            CallOutcome::NoRoute {
                reason: returned.reason.clone(),
                queue: queue.filter(|key| topology::is_for_instance(key)),
            }
        });
        None
    }
}

/// Puts the outcome into its slot, which holds this one outcome, and wakes the receiver. Never
/// blocks.
fn wake(call: PendingCall, outcome: CallOutcome) {
    // Before the caller wakes: its next request needs the place.
    drop(call.place);
    let Waiter { slot, wake } = call.waiter;
    let _ = slot.try_send(outcome);
    match wake {
        Wake::Nothing => {}
        Wake::Thread(thread) => thread.unpark(),
        Wake::Callback(ready) => ready.notify(),
    }
}

fn reply_outcome(call: &mut PendingCall, body: ReplyBody) -> CallOutcome {
    CallOutcome::Reply {
        after: call.began.map(|began| began.elapsed()),
        is_of_pick: (call.balanced.as_ref()).is_some_and(|balanced| balanced.pick.is_some()),
        was_resent: call.send_state.was_resent(),
        _request: call.resend_copy.take(),
        body,
    }
}

fn correlation_id(text: Option<&String>) -> Option<CorrelationId> {
    text.and_then(|text| CorrelationId::parse(text))
}

impl Sink for Router {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let id = delivery.message().properties.correlation_id.as_ref();
        // In a batch of replies each reply has its own.
        let is_reply_batch = id.is_none();
        let id = correlation_id(id);
        if let Some(bytes) = delivery.message().oversized().map(Oversized::bytes) {
            self.too_large(id, bytes);
            return Ok(Vec::new());
        }
        let body = delivery.into_body();
        match self.take(id) {
            Taken::Call(mut call) => {
                let outcome = reply_outcome(&mut call, ReplyBody::Own(body));
                wake(call, outcome);
            }
            Taken::Batch(calls) => return Ok(self.answered_as_batch(&calls, body)),
            Taken::Nothing if is_reply_batch && self.answered_in_reply_batch(&Arc::new(body)) => {}
            Taken::Nothing => self.count_unclaimed(),
        }
        Ok(Vec::new())
    }

    fn returned(&self, returned: Returned) -> Vec<Publication> {
        let id = correlation_id(returned.correlation_id.as_ref());
        let batch = id.and_then(|id| self.tables.lock().take_batch(id));
        let calls = batch.map_or(vec![id], |calls| calls.into_iter().map(Some).collect());
        let fallbacks = calls.into_iter().map(|id| self.no_route(id, &returned));
        fallbacks.flatten().collect()
    }

    fn refused(&self, refused: Refused<'_>) -> Vec<Publication> {
        let id = refused.correlation_id.and_then(CorrelationId::parse);
        let (bytes, limit) = (refused.bytes, refused.limit);
        self.finish(id, |call| match refused.reason {
            _ if call.send_state.was_resent() => {
                CallOutcome::Lost("sent again, it was refused by the broker".into())
            }
            Some(reason) => CallOutcome::Refused(reason.to_owned()),
            None => CallOutcome::TooLarge(TooLarge::Request { bytes, limit }),
        });
        Vec::new()
    }

    fn coalesced(&self, id: CorrelationId, messages: Vec<Box<Publication>>) {
        self.tables.lock().insert_batch(id, messages);
    }

    fn lost(&self, cause: &str, may_resend: bool) -> Vec<Publication> {
        let (again, lost) = self.tables.lock().take_sent(may_resend);
        let cause: Arc<str> = cause.into();
        for call in lost {
            wake(call, CallOutcome::Lost(Arc::clone(&cause)));
        }
        again
    }

    fn closed(&self, cause: &str) {
        let cause: Arc<str> = cause.into();
        let all = self.tables.lock().close(Arc::clone(&cause));
        for call in all {
            let cause = Arc::clone(&cause);
            let outcome = if call.send_state.abandon() {
                CallOutcome::NotSent(cause)
            } else {
                CallOutcome::Closed(cause)
            };
            wake(call, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::SendState;
    use crossbeam_channel::bounded;
    use std::time::Instant;

    fn add(router: &Router) -> CorrelationId {
        let id = CorrelationId::random();
        let call = PendingCall {
            send_state: Arc::new(SendState::until(Instant::now())),
            waiter: Waiter {
                slot: bounded(1).0,
                wake: Wake::Nothing,
            },
            resend_copy: None,
            sent_in: None,
            balanced: None,
            began: None,
            place: None,
        };
        router.insert(id, call).unwrap();
        id
    }

    #[test]
    fn a_call_is_lone_until_another_is_added() {
        let router = Router::new(10);
        let first = add(&router);
        assert!(router.is_lone());
        let second = add(&router);
        assert!(!router.is_lone());
        assert!(router.forget(second));
        assert!(!router.is_lone(), "the first has not been alone");
        assert!(router.forget(first));
        let third = add(&router);
        assert!(router.is_lone());
        assert!(router.forget(third));
    }
}
