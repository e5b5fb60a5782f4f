use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::batch::support::{self, BatchSupport};
use super::call_outcome::{CallOutcome, CallbackEvent, ReplyBody, TooLarge};
use super::pending_table::{PendingCall, PendingTable, Refusal, Waiter};
use crate::base::log_relay;
use crate::message::reply_batch::ReplyBatch;
use crate::message::{CorrelationId, range_in};
use crate::topology;
use crate::transport::{Delivery, Publication, Refused, Returned, Sink};

/// Routes what arrives on a client's reply queue to whoever waits for it.
///
/// The lock covers one operation on the table and nothing else; waking the
/// waiter happens after it is released.
pub(crate) struct Router {
    table: Mutex<PendingTable>,
    /// Which peers know what to do with several requests in a message.
    pub(super) batch_support: BatchSupport,
    /// Replies nobody waited for any more, or that were never asked for.
    unclaimed: AtomicU64,
}

impl Router {
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Self {
            table: Mutex::new(PendingTable::new(max_in_flight)),
            batch_support: BatchSupport::default(),
            unclaimed: AtomicU64::new(0),
        }
    }

    /// Adds a call.
    pub(crate) fn insert(&self, id: CorrelationId, call: PendingCall) -> Result<(), Refusal> {
        self.table.lock().insert(id, call)
    }

    /// Forgets a call; false if its outcome is decided and on its way.
    pub(crate) fn forget(&self, id: CorrelationId) -> bool {
        let call = self.table.lock().remove(id);
        call.is_some()
    }

    /// The same for a call whose time is over: if it was for a picked instance, that
    /// is how fast it is.
    pub(crate) fn expire(&self, id: CorrelationId) -> bool {
        let call = self.table.lock().remove(id);
        let is_there = call.is_some();
        if let Some(call) = call
            && call.send_state.is_sent()
            && let Some(pick) = call.balanced.and_then(|balanced| balanced.pick)
        {
            pick.was_slow();
        }
        is_there
    }

    pub(crate) fn set_callback(&self, id: CorrelationId, events: Sender<CallbackEvent>) -> bool {
        self.table.lock().set_callback(id, events)
    }

    pub(crate) fn callback_done(&self) {
        self.table.lock().callback_done();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.table.lock().in_flight()
    }

    /// Why it takes no more calls, once it does not.
    pub(crate) fn closed_cause(&self) -> Option<Arc<str>> {
        self.table.lock().closed_cause()
    }

    pub(crate) fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn finish(
        &self,
        id: Option<CorrelationId>,
        outcome: impl FnOnce(&mut PendingCall) -> CallOutcome,
    ) {
        let call = id.and_then(|id| self.table.lock().remove(id));
        match (id, call) {
            (Some(id), Some(mut call)) => {
                let outcome = outcome(&mut call);
                wake(id, call, outcome);
            }
            _ => self.count_unclaimed(),
        }
    }

    /// Nobody waits for what has come.
    fn count_unclaimed(&self) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        log_relay::log(
            log::Level::Debug,
            "coney::client",
            format_args!("a late or unknown reply is dropped"),
        );
    }

    fn answered(&self, id: Option<CorrelationId>, body: ReplyBody) {
        self.finish(id, |call| CallOutcome::Reply {
            after: call.balanced.as_ref().map(|balanced| balanced.at.elapsed()),
            _request: call.resend_copy.take(),
            body,
        });
    }

    /// The calls that were sent in this message, if it held several.
    fn take_batch(&self, message: Option<CorrelationId>) -> Option<Vec<CorrelationId>> {
        self.table.lock().take_batch(message?)
    }

    /// One answer to a message that held several calls: the server could not read it, or
    /// answers all of them in one. What it does not know is sent again, alone.
    fn answered_together(&self, calls: &[CorrelationId], body: Vec<u8>) -> Vec<Publication> {
        if support::is_unknown(&body) {
            let alone = {
                let mut table = self.table.lock();
                let alone = calls
                    .iter()
                    .filter_map(|&id| table.take_for_single_send(id));
                alone.collect::<Vec<_>>()
            };
            if let Some(request) = alone.first() {
                self.batch_support.mark_unsupported(&request.routing_key);
            }
            return alone;
        }
        let body = Arc::new(body);
        let replies = support::replies(&body).filter(|replies| replies.len() == calls.len());
        // An error is each call's own. Anything else must not be taken for a reply.
        let whole = if support::is_success(&body) {
            0..0
        } else {
            0..body.len()
        };
        for (at, &id) in calls.iter().enumerate() {
            let part = match &replies {
                // Answered on its own.
                Some(replies) if replies[at].get() == "null" => continue,
                Some(replies) => range_in(&body, replies[at].get()),
                None => whole.clone(),
            };
            self.answered(Some(id), ReplyBody::Part(Arc::clone(&body), part));
        }
        Vec::new()
    }

    /// Replies to calls that were sent together, each with the id of its own. False if it
    /// is something else.
    fn answered_in_reply_batch(&self, body: &Arc<Vec<u8>>) -> bool {
        let Ok(reply_batch) = ReplyBatch::decode(body) else {
            return false;
        };
        for reply in reply_batch.replies.0 {
            let id = CorrelationId::parse(&reply.correlation_id);
            let part = range_in(body, reply.body());
            self.answered(id, ReplyBody::Part(Arc::clone(body), part));
        }
        true
    }

    fn no_route(&self, id: Option<CorrelationId>, returned: &Returned) -> Option<Publication> {
        if let Some(id) = id
            && let Some(fallback) = self.table.lock().take_fallback(id)
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

/// Never blocks: a thread's channel has a slot for this one outcome, and the
/// callback thread's takes one event for each call in flight.
fn wake(id: CorrelationId, call: PendingCall, outcome: CallOutcome) {
    match call.waiter {
        Waiter::Thread(slot, thread) => {
            let _ = slot.try_send(outcome);
            if let Some(thread) = thread {
                thread.unpark();
            }
        }
        Waiter::Callback(events) => {
            let _ = events.try_send(CallbackEvent::Done { id, outcome });
        }
    }
}

fn correlation_id(text: Option<&String>) -> Option<CorrelationId> {
    text.and_then(|text| CorrelationId::parse(text))
}

impl Sink for Router {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let id = delivery.message().properties.correlation_id.as_ref();
        let is_reply_batch = id.is_none();
        let id = correlation_id(id);
        if let Some(oversized) = delivery.message().oversized() {
            let bytes = oversized.bytes();
            let calls = self.take_batch(id);
            let calls = calls.map_or(vec![id], |calls| calls.into_iter().map(Some).collect());
            for id in calls {
                self.finish(id, |_| CallOutcome::TooLarge(TooLarge::Reply { bytes }));
            }
            return Ok(Vec::new());
        }
        let body = delivery.into_body();
        if let Some(calls) = self.take_batch(id) {
            return Ok(self.answered_together(&calls, body));
        }
        if !is_reply_batch {
            self.answered(id, ReplyBody::Own(body));
        } else if !self.answered_in_reply_batch(&Arc::new(body)) {
            self.count_unclaimed();
        }
        Ok(Vec::new())
    }

    fn returned(&self, returned: Returned) -> Vec<Publication> {
        let id = correlation_id(returned.correlation_id.as_ref());
        let calls = self.take_batch(id);
        let calls = calls.map_or(vec![id], |calls| calls.into_iter().map(Some).collect());
        let fallback = calls.into_iter().map(|id| self.no_route(id, &returned));
        fallback.flatten().collect()
    }

    fn refused(&self, refused: Refused<'_>) -> Vec<Publication> {
        let id = refused.correlation_id.and_then(CorrelationId::parse);
        let (bytes, limit) = (refused.bytes, refused.limit);
        self.finish(id, |_| match refused.reason {
            Some(reason) => CallOutcome::Refused(reason.to_owned()),
            None => CallOutcome::TooLarge(TooLarge::PreparedCall { bytes, limit }),
        });
        Vec::new()
    }

    fn coalesced(&self, id: CorrelationId, messages: Vec<Box<Publication>>) {
        self.table.lock().coalesced(id, messages);
    }

    fn lost(&self, cause: &str, may_resend: bool) -> Vec<Publication> {
        let (again, lost) = self.table.lock().take_sent(may_resend);
        let cause: Arc<str> = cause.into();
        for (id, call) in lost {
            wake(id, call, CallOutcome::Lost(Arc::clone(&cause)));
        }
        again
    }

    fn closed(&self, cause: &str) {
        let cause: Arc<str> = cause.into();
        let all = self.table.lock().close(Arc::clone(&cause));
        for (id, call) in all {
            let cause = Arc::clone(&cause);
            let outcome = if call.send_state.abandon() {
                CallOutcome::NotSent(cause)
            } else {
                CallOutcome::Closed(cause)
            };
            wake(id, call, outcome);
        }
    }
}
