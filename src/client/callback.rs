use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::call_outcome::{Callback, CallbackEvent};
use super::router::Router;
use super::sent_call::decided;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};
use crate::message::CorrelationId;

/// A client's callback thread: runs the callbacks of its calls, one after the
/// other, and watches their deadlines. User code lives and dies here and never
/// on the I/O thread.
pub(super) struct CallbackThread {
    /// Holds at most two events for each call in flight, whose number the
    /// pending table bounds.
    events: Sender<CallbackEvent>,
    thread: Option<NamedThread>,
    client: String,
}

/// The time for which dropping the last client waits for the callbacks that are due.
const CALLBACKS_DUE: Duration = Duration::from_secs(10);

impl CallbackThread {
    pub(super) fn start(client: &str, router: Arc<Router>) -> Result<Self> {
        let (events, inbox) = crossbeam_channel::unbounded();
        let own = events.clone();
        let run = move || run(&inbox, &own, &router);
        let thread =
            NamedThread::spawn(format!("coney-callback-{client}"), run).map_err(|error| {
                // Not a kind that is safe to retry: the request is on its way.
                Error::new(ErrorKind::Closed, "cannot start the callback thread").with_source(error)
            })?;
        Ok(Self {
            events,
            thread: Some(thread),
            client: client.to_owned(),
        })
    }

    pub(super) fn events(&self) -> &Sender<CallbackEvent> {
        &self.events
    }
}

impl Drop for CallbackThread {
    /// Waits for the callbacks that are due, at most 10 s; one that drops the client's last
    /// clone does not wait for itself.
    fn drop(&mut self) {
        let _ = self.events.send(CallbackEvent::Stop);
        if let Some(thread) = self.thread.take()
            && thread
                .join_deadline(deadline::after(CALLBACKS_DUE))
                .is_err()
        {
            log::warn!(
                target: "coney::client",
                "{}: a callback still runs {CALLBACKS_DUE:?} after its client was dropped",
                self.client
            );
        }
    }
}

/// Ends with [`CallbackEvent::Stop`]: it has a sender of its own, for the calls it
/// watches.
fn run(inbox: &Receiver<CallbackEvent>, events: &Sender<CallbackEvent>, router: &Router) {
    let mut callbacks: HashMap<CorrelationId, (Instant, Callback)> = HashMap::new();
    let mut deadlines: BTreeSet<(Instant, CorrelationId)> = BTreeSet::new();
    loop {
        let next = deadlines.first().copied();
        let event = match next {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            // A steady stream of replies must not keep deadlines waiting.
            Some((deadline, _)) if deadline <= Instant::now() => Err(RecvTimeoutError::Timeout),
            Some((deadline, _)) => inbox.recv_deadline(deadline),
        };
        let (id, outcome) = match (event, next) {
            (
                Ok(CallbackEvent::Watch {
                    id,
                    deadline,
                    slot,
                    callback,
                }),
                _,
            ) => {
                let ended = !router.set_callback(id, events.clone());
                callbacks.insert(id, (deadline, callback));
                deadlines.insert((deadline, id));
                if !ended {
                    continue;
                }
                (id, Some(decided(&slot)))
            }
            (Ok(CallbackEvent::Done { id, outcome }), _) => (id, Some(outcome)),
            (Err(RecvTimeoutError::Timeout), Some((deadline, id))) => {
                deadlines.remove(&(deadline, id));
                if !router.expire(id) {
                    continue; // its outcome is on its way
                }
                (id, None)
            }
            (Ok(CallbackEvent::Stop) | Err(_), _) => return,
        };
        if let Some((deadline, callback)) = callbacks.remove(&id) {
            deadlines.remove(&(deadline, id));
            if catch(|| callback(outcome)).is_err() {
                log::error!(target: "coney::client", "a callback panicked");
            }
            router.callback_done();
        }
    }
}
