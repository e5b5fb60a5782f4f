//! A broker inside the process: RabbitMQ's semantics, no network, no threads.
//!
//! Whoever publishes routes the message and hands it to its consumer's sink
//! in the same call. What it does not have is durability and other processes.

mod exchange;
#[cfg(test)]
mod model;
mod queue;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::queue::LinkId;
use self::state::State;
use super::{LinkSpec, Outcome, Publication, Settle, Sink, Transport, Wire};
use crate::error::{Error, ErrorKind, Phase, Result};

/// How many messages a queue holds before publishers to it wait: enough for
/// tens of thousands of calls in flight, little enough to notice a consumer
/// that has stopped. Replies are let in beyond it; each stands for a delivery
/// that a prefetch count has bounded already.
const QUEUE_BOUND: usize = 65_536;

/// The default of a RabbitMQ link too, so that moving there changes nothing.
const MAX_BODY: usize = super::amqp::DEFAULT_MAX_BODY;

/// A call through the memory broker takes about 5 µs, of which the handler's part
/// is for its user to say.
const AWAKE: Duration = Duration::from_micros(25);

pub(crate) struct MemoryTransport {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<Option<State>>,
    /// Signalled when a message leaves a queue that somebody waits to fill.
    room: Condvar,
}

impl MemoryTransport {
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(Some(State::default())),
                room: Condvar::new(),
            }),
        }
    }
}

impl Transport for MemoryTransport {
    fn open(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        _deadline: Instant,
    ) -> Result<Arc<dyn Wire>> {
        let mut guard = self.shared.state.lock();
        let state = guard.as_mut().ok_or_else(closed)?;
        let wire = Arc::new(MemoryWire {
            shared: Arc::clone(&self.shared),
            link: state.next_id(),
        });
        let settler = Arc::clone(&wire) as Arc<dyn Settle>;
        state.open(wire.link, &spec, sink, settler, Instant::now())?;
        drop(guard);
        self.shared.room.notify_all();
        Ok(wire)
    }

    fn close(&self, _deadline: Instant) -> Result<()> {
        let state = self.shared.state.lock().take();
        self.shared.room.notify_all();
        for sink in state.iter().flat_map(State::sinks) {
            sink.closed("the broker was closed");
        }
        Ok(())
    }

    fn max_body(&self) -> usize {
        MAX_BODY
    }

    fn awake(&self) -> Duration {
        AWAKE
    }

    fn peer(&self) -> &str {
        "memory"
    }
}

struct MemoryWire {
    shared: Arc<Shared>,
    link: LinkId,
}

impl Wire for MemoryWire {
    fn publish(&self, publication: Publication, deadline: Instant) -> Result<()> {
        publication.check(MAX_BODY)?;
        let mut guard = self.shared.state.lock();
        loop {
            let state = guard.as_mut().ok_or_else(closed)?;
            let queues = state.route(&publication.exchange, &publication.routing_key)?;
            let now = Instant::now();
            state.drop_expired(&queues, now);
            if queues.iter().all(|&q| state.queue_len(q) < QUEUE_BOUND) {
                state.publish(self.link, publication, &queues, now);
                return Ok(());
            }
            if self
                .shared
                .room
                .wait_until(&mut guard, deadline)
                .timed_out()
            {
                return Err(Error::timed_out(
                    Phase::Send,
                    format!(
                        "timed out waiting for room: a queue for {:?} holds {QUEUE_BOUND} messages",
                        publication.routing_key
                    ),
                ));
            }
        }
    }

    fn stop_consuming(&self, _deadline: Instant) -> Result<()> {
        if let Some(state) = self.shared.state.lock().as_mut() {
            state.stop_consuming(self.link);
        }
        Ok(())
    }

    fn close(&self) {
        let mut guard = self.shared.state.lock();
        let sink = guard
            .as_mut()
            .and_then(|state| state.close(self.link, Instant::now()));
        drop(guard);
        drop(sink); // outside the lock: its last reference may own anything
        self.shared.room.notify_all();
    }
}

impl Settle for MemoryWire {
    fn settle(&self, _session: u64, tag: u64, outcome: Outcome) {
        let outcome = outcome.checked(MAX_BODY);
        if let Some(state) = self.shared.state.lock().as_mut() {
            state.settle(self.link, tag, outcome, Instant::now());
        }
        self.shared.room.notify_all();
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the memory broker has been closed")
}
