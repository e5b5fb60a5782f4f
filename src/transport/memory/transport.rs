use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::queue::{LinkId, QueueId};
use super::state::State;
use super::timer::Timer;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{
    ConfirmOutcome, ConfirmSender, Delivery, Disposition, Limits, LinkHandle, LinkSpec,
    PartialReply, Publication, Room, Settler, Sink, Transport,
};

/// The default of a RabbitMQ link too, so that moving there changes nothing.
const MAX_BODY: usize = crate::transport::DEFAULT_MAX_BODY;

/// As RabbitMQ's default frames; there are none here.
const FRAME_MAX: usize = 131_072;

/// A call through the memory broker takes about 5 µs, of which the handler's part
/// is for its user to say.
const AWAKE: Duration = Duration::from_micros(25);

pub(crate) struct MemoryTransport {
    limits: Arc<Limits>,
    shared: Arc<Shared>,
    timer: Mutex<Option<Timer>>,
}

pub(super) struct Shared {
    home: OwnerProcess,
    pub(super) state: Mutex<Option<State>>,
    /// Signalled when a message leaves a queue that somebody waits to fill.
    /// Signalled when the timer may have to wake earlier, and at the end.
    pub(super) tick: Condvar,
}

impl Shared {
    /// Does something with the state; `None` after the broker was closed.
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> Option<R> {
        let mut guard = self.state.lock();
        let result = act(guard.as_mut()?);
        self.wake_timer(&mut guard);
        Some(result)
    }

    fn wake_timer(&self, state: &mut Option<State>) {
        if let Some(state) = state
            && std::mem::take(&mut state.timer_due)
        {
            self.tick.notify_one();
        }
    }
}

impl MemoryTransport {
    pub(crate) fn new() -> Self {
        Self {
            limits: Arc::new(Limits::new(MAX_BODY, MAX_BODY, FRAME_MAX)),
            shared: Arc::new(Shared {
                home: OwnerProcess::current(),
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

    /// Closing a link gives everything back in one step here.
    fn second_connection(&self, _large: Option<usize>) -> Result<Option<Box<dyn Transport>>> {
        Ok(None)
    }

    fn has_sessions(&self) -> bool {
        false
    }

    /// What is published is in its queue, or refused.
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

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn spin_for(&self) -> Duration {
        AWAKE
    }

    fn address(&self) -> &str {
        "memory"
    }
}

struct MemoryLinkHandle {
    limits: Arc<Limits>,
    shared: Arc<Shared>,
    link: LinkId,
}

impl LinkHandle for MemoryLinkHandle {
    fn publish(
        &self,
        publication: Publication,
        confirm: Option<ConfirmSender>,
        _deadline: Instant,
    ) -> Result<()> {
        publication.check(&self.limits)?;
        if self.shared.home.is_another() {
            let fault = "the memory broker is in the process from which this one was forked";
            return Err(Error::new(ErrorKind::Misuse, fault));
        }
        let mut guard = self.shared.state.lock();
        let state = guard.as_mut().ok_or_else(closed)?;
        let queues = state.route(&publication.exchange, &publication.routing_key)?;
        let now = Instant::now();
        for &queue in &queues {
            state.expire(queue, now);
        }
        let (full, queues): (Vec<QueueId>, Vec<QueueId>) =
            queues.into_iter().partition(|&queue| state.is_full(queue));
        let Some(&first) = full.first() else {
            state.publish(self.link, publication, confirm, &queues, now);
            self.shared.wake_timer(&mut guard);
            return Ok(());
        };
        // As RabbitMQ with `reject-publish`: the others get it all the same.
        let fault = state.full_text(first);
        if !queues.is_empty() {
            state.publish(self.link, publication, None, &queues, now);
        }
        self.shared.wake_timer(&mut guard);
        match confirm {
            Some(confirm) => confirm.settle(ConfirmOutcome::Refused(fault)),
            None if queues.is_empty() => {
                let full = Error::new(ErrorKind::Broker, fault);
                return Err(full.with_nothing_ran(true));
            }
            None => {}
        }
        Ok(())
    }

    fn get(&self, queue: &str, _deadline: Instant) -> Result<Option<(Delivery, usize)>> {
        let got = self
            .shared
            .with(|state| state.get(self.link, queue, Instant::now()));
        got.ok_or_else(closed)?
    }

    fn get_own(&self, _deadline: Instant) -> Result<Option<(Delivery, usize)>> {
        let got = self
            .shared
            .with(|state| state.get_own(self.link, Instant::now()));
        got.ok_or_else(closed)?
    }

    fn backlog(&self, queue: &str, _deadline: Instant) -> Result<usize> {
        let backlog = self.shared.with(|state| state.backlog(queue));
        backlog.ok_or_else(closed)?
    }

    /// Everything is done when it is asked for.
    fn flush(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn stop_consuming(&self, _deadline: Instant) -> Result<()> {
        self.shared.with(|state| state.stop_consuming(self.link));
        Ok(())
    }

    fn resume_consuming(&self, _deadline: Instant) -> Result<()> {
        let resumed = self
            .shared
            .with(|state| state.start_consuming(self.link, Instant::now()));
        resumed.ok_or_else(closed)?
    }

    fn delete_own_queue(&self, _deadline: Instant) -> Result<()> {
        self.shared.with(|state| state.delete_own_queues(self.link));
        Ok(())
    }

    fn close(&self) {
        let sink = self
            .shared
            .with(|state| state.close(self.link, Instant::now()));
        drop(sink); // outside the lock: its last reference may own anything
    }
}

impl Settler for MemoryLinkHandle {
    fn settle(&self, _session: u64, tag: u64, outcome: Disposition) {
        let outcome = outcome.checked(&self.limits);
        self.shared
            .with(|state| state.settle(self.link, tag, outcome, Instant::now()));
    }

    /// Never blocks: replies are let in beyond the bound.
    fn reply(&self, _session: u64, tag: u64, reply: PartialReply<'_>) {
        self.shared
            .with(|state| state.reply(self.link, tag, reply.alone(), Instant::now()));
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the memory broker has been closed")
}
