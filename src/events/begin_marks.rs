//! The marks that count how often an ordered event was started when its worker died.
//!
//! An ordered queue counts every redelivery, those of events that were merely fetched too, and no
//! event may leave it to be counted elsewhere. So the first event of a key that is redelivered gets
//! a *mark* before it is started: a small message in the suspect queue, which this connection
//! fetches and holds unacknowledged until the event has been handled. If the worker dies, the
//! broker requeues the mark, and the next worker finds it: an event has one mark for each worker
//! that died while it handled the event.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::{self, QueueOptions, Topology};
use crate::transport::{
    Broker, ConfirmOutcome, Delivery, LinkHandle, LinkSpec, NoSink, Properties, Publication,
    SendState,
};

/// The longest time for which one request to the broker may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The time after which the broker deletes a mark whose event is gone.
const MARK_TTL: Duration = Duration::from_secs(60 * 60 * 24);

/// The marks of one ordered queue.
pub(super) struct BeginMarks {
    broker: Broker,
    handle: Arc<dyn LinkHandle>,
    queue: String,
    /// The largest number of times that a marked event may come back.
    limit: u32,
    /// The number of lost connections: with each, the broker requeues the marks that were held.
    session: AtomicU64,
    /// The events handled lately whose marks were requeued with a lost connection. Locked while
    /// a marked event is handled: one at a time, so that no other event is blamed if it kills the
    /// worker.
    handled: Mutex<VecDeque<String>>,
}

/// The largest number of these events that are remembered. The mark of a forgotten one stays until
/// its TTL has passed.
const MAX_HANDLED: usize = 1_024;

/// The outcome of handling a marked event.
pub(super) enum MarkedOutcome<R> {
    /// The event was handled.
    Handled(R),
    /// The event was not handled: it was started this often without being settled.
    Poison(i64),
}

impl BeginMarks {
    /// Returns the declaration of the queue for the marks of `queue`.
    pub(super) fn topology(queue: &str) -> Topology {
        let marks = QueueOptions::new()
            .quorum(topology::NO_DELIVERY_LIMIT)
            .message_ttl(MARK_TTL);
        Topology::new().queue_with(topology::suspect_queue(queue), marks)
    }

    /// Opens the link for the marks of `queue`. Blocks until the broker has opened it.
    pub(super) fn open(broker: &Broker, queue: &str, limit: u32) -> Result<Self> {
        let spec = LinkSpec::new(Self::topology(queue));
        Ok(Self {
            handle: broker.open(spec, Arc::new(NoSink))?,
            broker: broker.clone(),
            queue: topology::suspect_queue(queue),
            limit,
            session: AtomicU64::new(0),
            handled: Mutex::default(),
        })
    }

    /// Notes that the connection was lost, so that the broker has requeued the marks that were
    /// held. Does not block.
    pub(super) fn lost(&self) {
        self.session.fetch_add(1, Ordering::SeqCst);
    }

    /// Handles the redelivered event `id` alone and under its mark.
    ///
    /// # Errors
    ///
    /// Fails if the event cannot be marked; it was not handled then.
    pub(super) fn handle<R>(
        &self,
        id: &str,
        handle: impl FnOnce() -> R,
    ) -> Result<MarkedOutcome<R>> {
        let mut handled = self.handled.lock();
        let session = self.session.load(Ordering::SeqCst);
        // The marks of other events are requeued when this function returns.
        let mut held = self.read(&mut handled)?;
        let mut own = held.remove(id).unwrap_or_default();
        // The first time that the event was started it had no mark.
        let deaths = match own.len() {
            0 => 0,
            marks => i64::try_from(marks).unwrap_or(i64::MAX - 1) + 1,
        };
        let is_poison = deaths > i64::from(self.limit);
        if !is_poison {
            own.push(self.mark(id)?);
        }
        let result = (!is_poison).then(handle);
        own.into_iter().for_each(Delivery::ack);
        if self.session.load(Ordering::SeqCst) != session {
            handled.push_back(id.to_owned());
            if handled.len() > MAX_HANDLED {
                handled.pop_front();
            }
        }
        Ok(match result {
            Some(result) => MarkedOutcome::Handled(result),
            None => MarkedOutcome::Poison(deaths),
        })
    }

    /// Fetches all marks, by the id of their event. Removes those of events that were handled.
    fn read(&self, handled: &mut VecDeque<String>) -> Result<HashMap<String, Vec<Delivery>>> {
        let mut held: HashMap<String, Vec<Delivery>> = HashMap::new();
        while let Some((mark, _)) = self
            .handle
            .get(&self.queue, deadline::after(STEP_TIMEOUT))?
        {
            let id = mark.message().properties.message_id.clone();
            let id = id.unwrap_or_default();
            match handled.iter().position(|it| *it == id) {
                Some(at) => {
                    handled.remove(at);
                    mark.ack();
                }
                None => held.entry(id).or_default().push(mark),
            }
        }
        Ok(held)
    }

    /// Publishes a mark and fetches it.
    fn mark(&self, id: &str) -> Result<Delivery> {
        let deadline = deadline::after(STEP_TIMEOUT);
        let mark = Publication {
            properties: Properties {
                persistent: true,
                message_id: Some(id.to_owned()),
                ..Properties::json()
            },
            mandatory: true,
            send_state: Some(SendState::until(deadline).into()),
            ..Publication::new("", self.queue.clone(), b"{}".to_vec())
        };
        let failed = |fault: &str| {
            let queue = &self.queue;
            Error::new(
                ErrorKind::Broker,
                format!("a redelivered event cannot be marked in {queue:?}: {fault}"),
            )
        };
        match self
            .broker
            .publish_confirmed(mark, deadline)?
            .wait(deadline)
        {
            Some(ConfirmOutcome::Confirmed) => {}
            other => return Err(failed(&format!("{other:?}"))),
        }
        // All other marks are held by this process.
        let mark = self.handle.get(&self.queue, deadline)?;
        let mark = mark.map(|(mark, _)| mark);
        mark.filter(|mark| mark.message().properties.message_id.as_deref() == Some(id))
            .ok_or_else(|| failed("the mark is not in the queue"))
    }
}

impl Drop for BeginMarks {
    fn drop(&mut self) {
        self.handle.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_counts_and_a_mere_redelivery_does_not() {
        let broker = Broker::memory();
        let open = || BeginMarks::open(&broker, "event.s.ordered", 1).unwrap();
        let marks = |of: &BeginMarks| {
            let found = of.read(&mut VecDeque::new()).unwrap();
            found.values().map(Vec::len).sum::<usize>()
        };
        let handled =
            |marks: &BeginMarks| matches!(marks.handle("e", || ()), Ok(MarkedOutcome::Handled(())));
        for _ in 0..5 {
            assert!(handled(&open()), "a handled event leaves no mark");
        }
        assert_eq!(marks(&open()), 0);
        // The worker dies in the middle.
        {
            let marks = open();
            let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = marks.handle("e", || {
                    marks.handle.close(); // as a lost connection does
                    panic!("as the test wants it")
                });
            }));
            assert!(died.is_err());
        }
        for _ in 0..5 {
            assert_eq!(marks(&open()), 1, "holding a mark does not count");
        }
        assert!(matches!(
            open().handle("other", || ()),
            Ok(MarkedOutcome::Handled(()))
        ));
        assert!(matches!(
            open().handle("e", || ()),
            Ok(MarkedOutcome::Poison(2))
        ));
        assert!(handled(&open()), "its mark is gone");
    }

    /// Marks an event whose connection is lost while it is handled.
    #[test]
    fn a_mark_whose_event_was_handled_is_removed() {
        let broker = Broker::memory();
        let marks = BeginMarks::open(&broker, "event.s.ordered", 1).unwrap();
        let observer = BeginMarks::open(&broker, "event.s.ordered", 1).unwrap();
        let lost = || marks.lost();
        assert!(matches!(
            marks.handle("e", lost),
            Ok(MarkedOutcome::Handled(()))
        ));
        // As if the broker had requeued the mark: here it got the acknowledgement.
        let held = [marks.mark("e").unwrap(), marks.mark("other").unwrap()];
        drop(held);
        assert!(matches!(
            marks.handle("f", || ()),
            Ok(MarkedOutcome::Handled(()))
        ));
        let left = observer.read(&mut VecDeque::new()).unwrap();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["other"]);
    }
}
