//! The memory broker as a transport.

use crate::transport::ConnectionState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::link_handle::{MemoryLinkHandle, closed};
use super::shared_state::SharedState;
use super::state::State;
use super::timer::Timer;
use crate::base::thread::OwnerProcess;
use crate::error::Result;
use crate::transport::{Limits, LinkHandle, LinkSpec, QueueDepth, Room, Settler, Sink, Transport};

/// The largest body, in bytes: the default over RabbitMQ too, so that moving there changes nothing.
const MAX_BODY: usize = crate::transport::DEFAULT_MAX_BODY;

/// The size of RabbitMQ's default frames, in bytes; the memory broker has no frames, but bounds
/// headers alike.
const FRAME_MAX: usize = 131_072;

/// The time for which a caller spins. A call through the memory broker takes about 5 µs, plus the
/// time of the user's handler.
const SPIN_FOR: Duration = Duration::from_micros(25);

pub(crate) struct MemoryTransport {
    limits: Arc<Limits>,
    shared: Arc<SharedState>,
    timer: Mutex<Option<Timer>>,
}

impl MemoryTransport {
    pub(crate) fn new() -> Self {
        Self {
            limits: Arc::new(Limits::new(MAX_BODY, MAX_BODY, FRAME_MAX)),
            shared: Arc::new(SharedState {
                owner: OwnerProcess::current(),
                state: Mutex::new(Some(State::default())),
                tick: Condvar::new(),
            }),
            timer: Mutex::new(None),
        }
    }
}

impl Transport for MemoryTransport {
    fn open(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        _deadline: Instant,
    ) -> Result<Arc<dyn LinkHandle>> {
        let queues = spec.topology.queues_with_options();
        if queues
            .iter()
            .any(|(_, options)| options.dead_letter_to.is_some())
        {
            let mut timer = self.timer.lock();
            if timer.is_none() {
                *timer = Some(Timer::start(&self.shared)?);
            }
        }
        let opened = self.shared.with(|state| {
            let handle = Arc::new(MemoryLinkHandle {
                limits: Arc::clone(&self.limits),
                shared: Arc::clone(&self.shared),
                link: state.next_id(),
            });
            let settler = Arc::clone(&handle) as Arc<dyn Settler>;
            state.open(handle.link, &spec, sink, settler, Instant::now())?;
            Ok(handle)
        });
        Ok(opened.ok_or_else(closed)??)
    }

    /// Returns none: closing a link requeues everything in one step here.
    fn second_connection(&self, _large: Option<usize>) -> Result<Option<Box<dyn Transport>>> {
        Ok(None)
    }

    /// Returns none: no query waits for a broker here.
    fn administration(&self) -> Result<Option<Arc<dyn Transport>>> {
        Ok(None)
    }

    fn queue_depth(&self, queue: &str, _deadline: Instant) -> Result<QueueDepth> {
        let depth = self
            .shared
            .with(|state| state.queue_depth(queue, Instant::now()));
        depth.ok_or_else(closed)?
    }

    fn can_reconnect(&self) -> bool {
        false
    }

    /// Reserves nothing: a published message is in its queue at once, or refused.
    fn reserve(&self, _bytes: usize, _deadline: Option<Instant>) -> Result<Option<Arc<Room>>> {
        Ok(None)
    }

    fn close(&self, _deadline: Instant) -> Result<()> {
        let state = self.shared.state.lock().take();
        drop(self.timer.lock().take());
        for sink in state.iter().flat_map(State::sinks) {
            sink.closed("the broker was closed");
        }
        Ok(())
    }

    fn state(&self) -> ConnectionState {
        match *self.shared.state.lock() {
            Some(_) => ConnectionState::Connected,
            None => ConnectionState::Closed("the broker was closed".to_owned()),
        }
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn spin_for(&self) -> Duration {
        SPIN_FOR
    }

    fn address(&self) -> &str {
        "memory"
    }
}
