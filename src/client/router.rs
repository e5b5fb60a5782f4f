use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::event::{Event, Outcome};
use super::pending::{PendingCall, PendingTable, Refusal, Waiter};
use crate::message::CorrelationId;
use crate::topology;
use crate::transport::{Delivery, Publication, Returned, Sink};

/// Routes what arrives on a client's reply queue to whoever waits for it.
///
/// The lock covers one operation on the table and nothing else; waking the
/// waiter happens after it is released.
pub(crate) struct Router {
    table: Mutex<PendingTable>,
    /// Replies nobody waited for any more, or that were never asked for.
    unclaimed: AtomicU64,
}

impl Router {
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Self {
            table: Mutex::new(PendingTable::new(max_in_flight)),
            unclaimed: AtomicU64::new(0),
        }
    }

    /// Adds a call.
    pub(crate) fn insert(&self, id: CorrelationId, call: PendingCall) -> Result<(), Refusal> {
        self.table.lock().insert(id, call)
    }

    /// Forgets a call; false if its outcome is decided and on its way.
    pub(crate) fn forget(&self, id: CorrelationId) -> bool {
        self.table.lock().remove(id).is_some()
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

    fn finish(&self, id: Option<CorrelationId>, outcome: impl FnOnce(&PendingCall) -> Outcome) {
        let call = id.and_then(|id| self.table.lock().remove(id));
        match (id, call) {
            (Some(id), Some(call)) => {
                let outcome = outcome(&call);
                wake(id, call, outcome);
            }
            _ => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
                log::debug!(target: "coney::client", "a late or unknown reply is dropped");
            }
        }
    }
}

/// Never blocks: a thread's channel has a slot for this one outcome, and the
/// callback thread's takes one event for each call in flight.
fn wake(id: CorrelationId, call: PendingCall, outcome: Outcome) {
    match call.waiter {
        Waiter::Thread(slot) => {
            let _ = slot.try_send(outcome);
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
    fn delivery(&self, delivery: Delivery) -> Result<(), Delivery> {
        let id = correlation_id(delivery.message().properties.correlation_id.as_ref());
        self.finish(id, |call| Outcome::Reply {
            after: call.balanced.as_ref().map(|balanced| balanced.at.elapsed()),
            body: delivery.into_body(),
        });
        Ok(())
    }

    fn returned(&self, returned: Returned) -> Option<Publication> {
        let id = correlation_id(returned.correlation_id.as_ref());
        if let Some(id) = id
            && let Some(instead) = self.table.lock().take_instead(id)
        {
            return Some(instead);
        }
        self.finish(id, |call| {
            if call.ticket.was_sent_again() {
                return Outcome::Lost("sent again, it had no queue to go to".into());
            }
            Outcome::NoRoute {
                reason: returned.reason,
                queue: Some(returned.routing_key).filter(|key| topology::is_for_instance(key)),
            }
        });
        None
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
