use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::event::{Event, Outcome, ReplyBody, TooLarge};
use super::pending::{PendingCall, PendingTable, Refusal, Waiter};
use super::together::{self, Together};
use crate::message::bundle::Bundle;
use crate::message::{CorrelationId, range_in};
use crate::relay;
use crate::topology;
use crate::transport::{Delivery, Parcel, Publication, Refused, Returned, Sink};

/// Routes what arrives on a client's reply queue to whoever waits for it.
///
/// The lock covers one operation on the table and nothing else; waking the
/// waiter happens after it is released.
pub(crate) struct Router {
    table: Mutex<PendingTable>,
    /// Which peers know what to do with several requests in a message.
    pub(super) together: Together,
    /// Replies nobody waited for any more, or that were never asked for.
    unclaimed: AtomicU64,
}

impl Router {
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Self {
            table: Mutex::new(PendingTable::new(max_in_flight)),
            together: Together::default(),
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
    pub(crate) fn give_up(&self, id: CorrelationId) -> bool {
        let call = self.table.lock().remove(id);
        let is_there = call.is_some();
        if let Some(call) = call
            && call.ticket.is_sent()
            && let Some(pick) = call.balanced.and_then(|balanced| balanced.pick)
        {
            pick.was_slow();
        }
        is_there
    }

    pub(crate) fn set_callback(&self, id: CorrelationId, events: Sender<Event>) -> bool {
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

    fn finish(&self, id: Option<CorrelationId>, outcome: impl FnOnce(&mut PendingCall) -> Outcome) {
        let call = id.and_then(|id| self.table.lock().remove(id));
        match (id, call) {
            (Some(id), Some(mut call)) => {
                let outcome = outcome(&mut call);
                wake(id, call, outcome);
            }
            _ => self.nobody(),
        }
    }

    /// Nobody waits for what has come.
    fn nobody(&self) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        relay::log(
            log::Level::Debug,
            "coney::client",
            format_args!("a late or unknown reply is dropped"),
        );
    }

    fn answered(&self, id: Option<CorrelationId>, body: ReplyBody) {
        self.finish(id, |call| Outcome::Reply {
            after: call.balanced.as_ref().map(|balanced| balanced.at.elapsed()),
            _request: call.kept.take(),
            body,
        });
    }

    /// The calls that were sent in this message, if it held several.
    fn scatter(&self, message: Option<CorrelationId>) -> Option<Vec<CorrelationId>> {
        self.table.lock().scatter(message?)
    }

    /// One answer to a message that held several calls: the server could not read it, or
    /// answers all of them in one. What it does not know is sent again, alone.
    fn answered_together(&self, calls: &[CorrelationId], body: Vec<u8>) -> Vec<Publication> {
        if together::is_unknown(&body) {
            let alone = {
                let mut table = self.table.lock();
                let alone = calls.iter().filter_map(|&id| table.take_alone(id));
                alone.collect::<Vec<_>>()
            };
            if let Some(request) = alone.first() {
                self.together.remember(&request.routing_key);
            }
            return alone;
        }
        let body = Arc::new(body);
        let replies = together::replies(&body).filter(|replies| replies.len() == calls.len());
        // An error is each call's own. Anything else must not be taken for a reply.
        let whole = if together::is_success(&body) {
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
    fn answered_in_bundle(&self, body: &Arc<Vec<u8>>) -> bool {
        let Ok(bundle) = Bundle::decode(body) else {
            return false;
        };
        for reply in bundle.replies.0 {
            let id = CorrelationId::parse(&reply.correlation_id);
            let part = range_in(body, reply.body());
            self.answered(id, ReplyBody::Part(Arc::clone(body), part));
        }
        true
    }

    fn no_route(&self, id: Option<CorrelationId>, returned: &Returned) -> Option<Publication> {
        if let Some(id) = id
            && let Some(instead) = self.table.lock().take_instead(id)
        {
            return Some(instead);
        }
        self.finish(id, |call| {
            if call.ticket.was_sent_again() {
                return Outcome::Lost("sent again, it had no queue to go to".into());
            }
            let queue = Some(returned.routing_key.clone());
            Outcome::NoRoute {
                reason: returned.reason.clone(),
                queue: queue.filter(|key| topology::is_for_instance(key)),
            }
        });
        None
    }
}

/// Never blocks: a thread's channel has a slot for this one outcome, and the
/// callback thread's takes one event for each call in flight.
fn wake(id: CorrelationId, call: PendingCall, outcome: Outcome) {
    match call.waiter {
        Waiter::Thread(slot, thread) => {
            let _ = slot.try_send(outcome);
            if let Some(thread) = thread {
                thread.unpark();
            }
        }
        Waiter::Callback(events) => {
            let _ = events.try_send(Event::Done { id, outcome });
        }
    }
}

fn correlation_id(text: Option<&String>) -> Option<CorrelationId> {
    text.and_then(|text| CorrelationId::parse(text))
}

impl Sink for Router {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let id = delivery.message().properties.correlation_id.as_ref();
        let is_bundle = id.is_none();
        let id = correlation_id(id);
        if let Some(oversized) = delivery.message().oversized() {
            let bytes = oversized.bytes();
            let calls = self.scatter(id);
            let calls = calls.map_or(vec![id], |calls| calls.into_iter().map(Some).collect());
            for id in calls {
                self.finish(id, |_| Outcome::TooLarge(TooLarge::Reply { bytes }));
            }
            return Ok(Vec::new());
        }
        let body = delivery.into_body();
        if let Some(calls) = self.scatter(id) {
            return Ok(self.answered_together(&calls, body));
        }
        if !is_bundle {
            self.answered(id, ReplyBody::Own(body));
        } else if !self.answered_in_bundle(&Arc::new(body)) {
            self.nobody();
        }
        Ok(Vec::new())
    }

    fn returned(&self, returned: Returned) -> Vec<Publication> {
        let id = correlation_id(returned.correlation_id.as_ref());
        let calls = self.scatter(id);
        let calls = calls.map_or(vec![id], |calls| calls.into_iter().map(Some).collect());
        let instead = calls.into_iter().map(|id| self.no_route(id, &returned));
        instead.flatten().collect()
    }

    fn refused(&self, refused: Refused<'_>) -> Vec<Publication> {
        let id = refused.correlation_id.and_then(CorrelationId::parse);
        let (bytes, limit) = (refused.bytes, refused.limit);
        self.finish(id, |_| match refused.reason {
            Some(reason) => Outcome::Refused(reason.to_owned()),
            None => Outcome::TooLarge(TooLarge::Request { bytes, limit }),
        });
        Vec::new()
    }

    fn gathered(&self, id: CorrelationId, messages: Vec<Parcel>) {
        self.table.lock().gathered(id, messages);
    }

    fn lost(&self, cause: &str, may_send_again: bool) -> Vec<Publication> {
        let (again, lost) = self.table.lock().take_sent(may_send_again);
        let cause: Arc<str> = cause.into();
        for (id, call) in lost {
            wake(id, call, Outcome::Lost(Arc::clone(&cause)));
        }
        again
    }

    fn closed(&self, cause: &str) {
        let cause: Arc<str> = cause.into();
        let all = self.table.lock().close(Arc::clone(&cause));
        for (id, call) in all {
            let cause = Arc::clone(&cause);
            let outcome = if call.ticket.abandon() {
                Outcome::NotSent(cause)
            } else {
                Outcome::Closed(cause)
            };
            wake(id, call, outcome);
        }
    }
}
