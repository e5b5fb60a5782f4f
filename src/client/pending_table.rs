//! The calls that wait for their replies.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::thread::Thread;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::call_outcome::CallOutcome;
use crate::base::callbacks::Notifier;
use crate::message::CorrelationId;
use crate::registry::PickedInstance;
use crate::resilience::Place;
use crate::transport::{Publication, SendState};

/// The calls that wait for their replies. A plain struct with one owner.
#[derive(Debug)]
pub(crate) struct PendingTable {
    calls: HashMap<CorrelationId, PendingCall, ById>,
    /// The number of ended calls whose callbacks have not run yet; they count as in flight.
    callbacks_due: usize,
    max: usize,
    /// The reason why no more calls are taken, if so.
    closed: Option<Arc<str>>,
}

/// A hash that is a part of the id, which is random: peers do not choose it.
pub(super) type ById = BuildHasherDefault<IdHasher>;

#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }
}

/// The reason why a call is not added.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed(Arc<str>),
    /// The limit: this many calls are in flight already.
    Full(usize),
}

/// A call that waits for its reply.
#[derive(Debug)]
pub(crate) struct PendingCall {
    pub(crate) send_state: Arc<SendState>,
    pub(crate) waiter: Waiter,
    /// The request, if it may have to be sent again: after a lost connection, if it is
    /// idempotent, or alone, if it was sent in a coalesced message.
    pub(crate) resend_copy: Option<Box<Publication>>,
    /// The coalesced message it was sent in, if any.
    pub(crate) sent_in: Option<CorrelationId>,
    /// The balancer's choice, if there is a balancer.
    pub(crate) balanced: Option<Box<Balanced>>,
    /// The moment of sending, if the time to the reply is measured.
    pub(crate) began: Option<Instant>,
    /// Its place among the attempts that the policies of the service allow at a time.
    pub(crate) place: Option<Place>,
}

/// A call for an instance that a balancer has picked.
#[derive(Debug)]
pub(crate) struct Balanced {
    /// The instance, until its queue turns out not to exist.
    pub(crate) pick: Option<PickedInstance>,
    /// The request to the shared queue, which is sent then.
    pub(crate) fallback: Option<Publication>,
}

/// The receiver of a call's outcome.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// A channel with one slot that only this call uses.
    pub(crate) slot: Sender<CallOutcome>,
    pub(crate) wake: Wake,
}

/// The thread that is woken when the outcome is in its slot.
#[derive(Debug)]
pub(crate) enum Wake {
    /// Nothing: the threads that wait for an asynchronous call wait in the channel.
    Nothing,
    /// The thread of a blocking call, which is parked.
    Thread(Thread),
    /// The callback thread.
    Callback(Notifier),
}

impl PendingTable {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            calls: HashMap::default(),
            callbacks_due: 0,
            max,
            closed: None,
        }
    }

    /// Adds a call.
    pub(crate) fn insert(&mut self, id: CorrelationId, call: PendingCall) -> Result<(), Refusal> {
        if let Some(cause) = &self.closed {
            return Err(Refusal::Closed(Arc::clone(cause)));
        }
        if self.in_flight() >= self.max {
            return Err(Refusal::Full(self.max));
        }
        self.calls.insert(id, call);
        Ok(())
    }

    /// Takes out a call; `None` if it has ended already.
    pub(crate) fn remove(&mut self, id: CorrelationId) -> Option<PendingCall> {
        let call = self.calls.remove(&id)?;
        if matches!(call.waiter.wake, Wake::Callback(_)) {
            self.callbacks_due += 1;
        }
        Some(call)
    }

    /// Records that the request of a call was sent in a coalesced message. Returns the message
    /// that it was sent in before, if any; `None` if the call has ended.
    pub(crate) fn set_sent_in(
        &mut self,
        id: CorrelationId,
        message: CorrelationId,
        request: Box<Publication>,
    ) -> Option<Option<CorrelationId>> {
        let call = self.calls.get_mut(&id)?;
        call.resend_copy = Some(request);
        // Sent once more, it waits for the answer to the latest.
        Some(call.sent_in.replace(message))
    }

    /// Returns the request of a coalesced call that did not run, to be sent alone.
    pub(crate) fn take_for_single_send(&mut self, id: CorrelationId) -> Option<Publication> {
        let call = self.calls.get_mut(&id)?;
        let mut request = match call.resend_copy.take()? {
            resend_copy if resend_copy.idempotent => *call.resend_copy.insert(resend_copy).clone(),
            resend_copy => *resend_copy,
        };
        request.coalesce = None;
        call.sent_in = None;
        call.send_state.mark_returned();
        Some(request)
    }

    /// Returns the request to send in place of one that was returned, if there is one.
    pub(crate) fn take_fallback(&mut self, id: CorrelationId) -> Option<Publication> {
        let call = self.calls.get_mut(&id)?;
        let balanced = call.balanced.as_mut()?;
        let fallback = balanced.fallback.take()?;
        if let Some(pick) = balanced.pick.take() {
            pick.failed();
        }
        call.send_state.mark_returned();
        if let Some(resend_copy) = &mut call.resend_copy {
            **resend_copy = fallback.clone();
        }
        Some(fallback)
    }

    /// Sets the callback thread as the receiver of a call's outcome; false if the call has
    /// ended.
    pub(crate) fn set_callback(&mut self, id: CorrelationId, ready: Notifier) -> bool {
        match self.calls.get_mut(&id) {
            Some(call) => {
                call.waiter.wake = Wake::Callback(ready);
                true
            }
            None => {
                self.callbacks_due += 1;
                false
            }
        }
    }

    /// Records that a callback has run.
    pub(crate) fn callback_done(&mut self) {
        self.callbacks_due = self.callbacks_due.saturating_sub(1);
    }

    /// Returns, after a lost connection, the requests to be sent again, whose calls go on
    /// waiting, and the ids of the other calls whose requests have been sent.
    pub(crate) fn sent(&self, may_resend: bool) -> (Vec<Publication>, Vec<CorrelationId>) {
        let (mut resend, mut lost) = (Vec::new(), Vec::new());
        let calls = self.calls.iter();
        for (&id, call) in calls.filter(|(_, call)| call.send_state.is_sent()) {
            match &call.resend_copy {
                Some(request) if may_resend && request.idempotent => {
                    call.send_state.queue_again();
                    resend.push((**request).clone());
                }
                _ => lost.push(id),
            }
        }
        (resend, lost)
    }

    /// Refuses further calls; returns the ids of those that wait.
    pub(crate) fn close(&mut self, cause: Arc<str>) -> Vec<CorrelationId> {
        self.closed.get_or_insert(cause);
        self.calls.keys().copied().collect()
    }

    pub(crate) fn closed_cause(&self) -> Option<Arc<str>> {
        self.closed.clone()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.calls.len() + self.callbacks_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use std::thread;
    use std::time::Duration;

    fn call() -> PendingCall {
        PendingCall {
            send_state: Arc::new(SendState::until(crate::base::deadline::after(
                Duration::MAX,
            ))),
            waiter: Waiter {
                slot: bounded(1).0,
                wake: Wake::Thread(thread::current()),
            },
            resend_copy: None,
            sent_in: None,
            balanced: None,
            began: None,
            place: None,
        }
    }

    #[test]
    fn is_bounded_and_closes() {
        let mut table = PendingTable::new(2);
        let ids = [0; 3].map(|_| CorrelationId::random());
        assert!(table.insert(ids[0], call()).is_ok());
        assert!(table.insert(ids[1], call()).is_ok());
        assert_eq!(table.insert(ids[2], call()), Err(Refusal::Full(2)));
        assert!(table.remove(ids[0]).is_some());
        assert!(table.remove(ids[0]).is_none());
        assert!(table.insert(ids[2], call()).is_ok());
        assert_eq!(table.close("a".into()).len(), 2);
        assert!(ids.iter().filter_map(|&id| table.remove(id)).count() == 2);
        let refusal = table.insert(ids[0], call());
        assert_eq!(refusal, Err(Refusal::Closed("a".into())));
    }

    #[test]
    fn a_call_is_in_flight_until_its_callback_has_run() {
        let mut table = PendingTable::new(1);
        let id = CorrelationId::random();
        table.insert(id, call()).unwrap();
        assert!(table.set_callback(id, Notifier::new(crossbeam_channel::unbounded().0, 1)));
        assert!(table.remove(id).is_some());
        assert_eq!(
            table.insert(CorrelationId::random(), call()),
            Err(Refusal::Full(1))
        );
        table.callback_done();
        assert!(table.insert(id, call()).is_ok());
    }

    #[test]
    fn a_lost_connection_takes_only_what_was_sent() {
        let mut table = PendingTable::new(10);
        let [sent, queued, idempotent] = [0; 3].map(|_| CorrelationId::random());
        for id in [sent, queued] {
            table.insert(id, call()).unwrap();
        }
        let publication = Publication {
            idempotent: true,
            ..Publication::new("", "q", Vec::new())
        };
        let again = PendingCall {
            resend_copy: Some(Box::new(publication)),
            ..call()
        };
        table.insert(idempotent, again).unwrap();
        assert!(table.calls[&sent].send_state.start_sending());
        assert!(table.calls[&idempotent].send_state.start_sending());
        let (resend, lost) = table.sent(true);
        assert_eq!(resend.len(), 1);
        assert_eq!(lost, [sent]);
        assert!(table.remove(queued).is_some());
        assert!(table.calls[&idempotent].send_state.start_sending(), "again");
    }
}
