//! Ordered events that were begun when their worker died.
//!
//! An ordered queue counts every redelivery, of what was merely fetched too, and no event
//! may leave it to be counted elsewhere. So the first event of a key that comes back gets a
//! *mark* before it is begun: a small message in the queue of suspects, which this
//! connection takes and holds unacknowledged until the event has been handled. If the
//! worker dies, the mark goes back, and the next worker finds it: there are as many marks of
//! an event as workers have died of it.

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

/// The time for which the broker may take over a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// A mark whose event is gone stays no longer.
const MARK_TTL: Duration = Duration::from_secs(60 * 60 * 24);

/// The marks of one ordered queue.
pub(super) struct BeginMarks {
    broker: Broker,
    handle: Arc<dyn LinkHandle>,
    queue: String,
    /// The number of times that a marked event may come back.
    limit: u32,
    /// Changes when the connection is lost: then what was held has gone back.
    session: AtomicU64,
    /// The events handled lately whose marks went back with a lost connection. Locked while a
    /// marked event is handled: one at a time, so that no other is suspected of what it does.
    handled: Mutex<VecDeque<String>>,
}

/// The number of these that are remembered. A mark that is forgotten stays until its time is over.
const MOST_HANDLED: usize = 1_024;

/// What to do with an event that has come back.
pub(super) enum MarkedOutcome<R> {
    Handled(R),
    /// Begun so often without being settled.
    Poison(i64),
}

impl BeginMarks {
    pub(super) fn topology(queue: &str) -> Topology {
        let marks = QueueOptions::new()
            .quorum(topology::NO_DELIVERY_LIMIT)
            .message_ttl(MARK_TTL);
        Topology::default().queue_with(topology::suspect_queue(queue), marks)
    }

    /// Opens the link for the marks of `queue`. Blocks until the broker has done it.
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

    /// The connection was lost: what is held has gone back. Does not block.
    pub(super) fn lost(&self) {
        self.session.fetch_add(1, Ordering::SeqCst);
    }

    /// Handles the event `id`, which has come back, alone and under its mark.
    ///
    /// # Errors
    ///
    /// If it cannot be marked; it was not handled then.
    pub(super) fn handle<R>(
        &self,
        id: &str,
        handle: impl FnOnce() -> R,
    ) -> Result<MarkedOutcome<R>> {
        let mut handled = self.handled.lock();
        let session = self.session.load(Ordering::SeqCst);
        // Those of other events go back when this ends.
        let mut held = self.read(&mut handled)?;
        let mut own = held.remove(id).unwrap_or_default();
        // Before the first marked one it had been begun unmarked.
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
            if handled.len() > MOST_HANDLED {
                handled.pop_front();
            }
        }
        Ok(match result {
            Some(result) => MarkedOutcome::Handled(result),
            None => MarkedOutcome::Poison(deaths),
        })
    }

    /// Takes all marks there are: by the id of their event. Those that are over it removes.
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

    /// Makes a mark, and takes it.
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
                format!("an event that came back cannot be marked in {queue:?}: {fault}"),
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
        // All others are held.
        let mark = self.handle.get(&self.queue, deadline)?;
        let mark = mark.map(|(mark, _)| mark);
        mark.filter(|mark| mark.message().properties.message_id.as_deref() == Some(id))
            .ok_or_else(|| failed("it is not there"))
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
    fn a_begin_counts_and_a_mere_redelivery_does_not() {
        let broker = Broker::memory();
        let open = || BeginMarks::open(&broker, "event.s.ordered", 1).unwrap();
        let marks = |of: &BeginMarks| {
            let found = of.read(&mut VecDeque::new()).unwrap();
            found.values().map(Vec::len).sum::<usize>()
        };
        let handled =
            |marks: &BeginMarks| matches!(marks.handle("e", || ()), Ok(MarkedOutcome::Handled(())));
        for _ in 0..5 {
            assert!(handled(&open()), "what is handled leaves no mark");
        }
        assert_eq!(marks(&open()), 0);
        // The worker dies in the middle.
        {
            let marks = open();
            let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = marks.handle("e", || {
                    marks.handle.close(); // as the end of its connection would
                    panic!("as the test wants it")
                });
            }));
            assert!(died.is_err());
        }
        for _ in 0..5 {
            assert_eq!(
                marks(&open()),
                1,
                "who holds a mark and ends does not count"
            );
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

    /// The mark of an event went back when the connection was lost, and the event was handled.
    #[test]
    fn a_mark_whose_event_was_handled_is_removed() {
        let broker = Broker::memory();
        let marks = BeginMarks::open(&broker, "event.s.ordered", 1).unwrap();
        let again = BeginMarks::open(&broker, "event.s.ordered", 1).unwrap();
        let lost = || marks.lost();
        assert!(matches!(
            marks.handle("e", lost),
            Ok(MarkedOutcome::Handled(()))
        ));
        // As the broker would have it: here the acknowledgement arrived.
        let held = [marks.mark("e").unwrap(), marks.mark("other").unwrap()];
        drop(held);
        assert!(matches!(
            marks.handle("f", || ()),
            Ok(MarkedOutcome::Handled(()))
        ));
        let left = again.read(&mut VecDeque::new()).unwrap();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["other"]);
    }
}
