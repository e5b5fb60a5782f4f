//! The way of a link's deliveries from the stream to their sink.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::command::{Command, LinkId, RegisteredLink};
use super::unsettled::Unsettled;
use crate::transport::{Delivery, DeliveryToken, Disposition, Message, Settler, Sink};

/// A message as it was read from the socket.
pub(super) struct Incoming {
    pub(super) tag: u64,
    pub(super) redelivered: bool,
    pub(super) message: Arc<Message>,
}

/// The route of the deliveries of one link in one session. The thread that reads the socket passes
/// them to the sink, without another thread's help.
pub(super) struct DeliveryRoute {
    link: LinkId,
    session: u64,
    sink: Arc<dyn Sink>,
    settler: Arc<dyn Settler>,
    commands: Sender<Command>,
    unsettled: Arc<Unsettled>,
    /// True if deliveries have to be settled.
    acknowledges: bool,
    prefetch: AtomicU16,
    /// Held while the sink is called, so that deliveries stay in order, and none is passed on after
    /// the route was closed.
    turn: Mutex<Turn>,
    /// The deliveries that the I/O thread passes on, on a link that coalesces requests: while it
    /// is busy with that, the next requests collect.
    by_io_thread: Option<(Sender<Incoming>, Receiver<Incoming>)>,
}

#[derive(Default)]
struct Turn {
    state: State,
    /// Deliveries that arrived before the route was started, or beyond the prefetch, which the
    /// broker counts anew for each consumer.
    waiting: VecDeque<Incoming>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Deliveries wait until the sink has been notified that the link is open.
    #[default]
    Starting,
    Started,
    Closed,
}

impl DeliveryRoute {
    /// Creates the route of a link whose channel has this record of unsettled deliveries.
    pub(super) fn new(
        (link, registered): (LinkId, &RegisteredLink),
        session: u64,
        unsettled: Arc<Unsettled>,
    ) -> Self {
        let prefetch = registered.spec.source.prefetch();
        Self {
            link,
            session,
            sink: Arc::clone(&registered.sink),
            settler: Arc::clone(&registered.settler),
            commands: registered.commands.clone(),
            unsettled,
            acknowledges: prefetch.is_some(),
            prefetch: AtomicU16::new(prefetch.unwrap_or(1)),
            turn: Mutex::default(),
            by_io_thread: registered.spec.coalesces.then(unbounded),
        }
    }

    /// Accepts a delivery, for the thread that reads the socket.
    pub(super) fn deliver(&self, incoming: Incoming) {
        if let Some((sender, _)) = &self.by_io_thread {
            let _ = sender.send(incoming);
            return;
        }
        let mut turn = self.turn.lock();
        match turn.state {
            State::Closed => {}
            State::Started if turn.waiting.is_empty() && self.has_room() => self.pass_on(incoming),
            State::Starting | State::Started => {
                turn.waiting.push_back(incoming);
                self.count(&turn);
                // Checked again: a settlement that came in between has not seen that it waits.
                self.pass_on_waiting_of(&mut turn, || self.has_room());
            }
        }
    }

    /// Returns the receiver of deliveries that the I/O thread passes on, if there are such.
    pub(super) fn by_io_thread(&self) -> Option<&Receiver<Incoming>> {
        self.by_io_thread.as_ref().map(|(_, receiver)| receiver)
    }

    /// Passes on up to `budget` deliveries that were left to the I/O thread.
    pub(super) fn pass_on_queued(&self, budget: usize) {
        let turn = self.turn.lock();
        if let (Some(receiver), State::Started) = (self.by_io_thread(), turn.state) {
            receiver
                .try_iter()
                .take(budget)
                .for_each(|it| self.pass_on(it));
        }
    }

    /// Starts to pass on deliveries, those first that have arrived.
    pub(super) fn start(&self) {
        let mut turn = self.turn.lock();
        if turn.state == State::Starting {
            turn.state = State::Started;
        }
        self.pass_on_waiting_of(&mut turn, || self.has_room());
    }

    /// Passes on the deliveries that wait, as far as the prefetch has room for them.
    pub(super) fn pass_on_waiting(&self) {
        self.pass_on_waiting_of(&mut self.turn.lock(), || self.has_room());
    }

    /// Passes on all deliveries that have arrived.
    pub(super) fn pass_on_all(&self) {
        self.pass_on_waiting_of(&mut self.turn.lock(), || true);
        self.pass_on_queued(usize::MAX);
    }

    /// Ends the route: drops what waits, and passes nothing on any more.
    pub(super) fn close(&self) {
        let mut turn = self.turn.lock();
        turn.state = State::Closed;
        turn.waiting.clear();
        self.count(&turn);
    }

    /// Sets the prefetch; returns the previous one.
    pub(super) fn set_prefetch(&self, prefetch: u16) -> u16 {
        self.prefetch.swap(prefetch, Ordering::SeqCst)
    }

    pub(super) fn prefetch(&self) -> u16 {
        self.prefetch.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledges(&self) -> bool {
        self.acknowledges
    }

    /// Creates the delivery of a message; records it as unsettled if it has to be settled.
    pub(super) fn prepare(&self, incoming: Incoming, acknowledge: bool) -> Delivery {
        let Incoming {
            tag,
            redelivered,
            message,
        } = incoming;
        let token = acknowledge.then(|| DeliveryToken {
            settler: Arc::clone(&self.settler),
            session: self.session,
            tag,
        });
        if acknowledge {
            self.unsettled.insert(tag);
        }
        Delivery::new(message, redelivered, token)
    }

    fn has_room(&self) -> bool {
        !self.acknowledges || self.unsettled.len() < usize::from(self.prefetch())
    }

    fn pass_on_waiting_of(&self, turn: &mut Turn, has_room: impl Fn() -> bool) {
        while turn.state == State::Started && has_room() {
            let Some(incoming) = turn.waiting.pop_front() else {
                break;
            };
            self.pass_on(incoming);
        }
        self.count(turn);
    }

    fn count(&self, turn: &Turn) {
        self.unsettled.set_waiting(turn.waiting.len());
    }

    /// Passes a delivery to the sink. What the sink wants to be sent goes to the I/O thread; what
    /// it does not take is requeued.
    fn pass_on(&self, incoming: Incoming) {
        let delivery = self.prepare(incoming, self.acknowledges);
        match self.sink.delivery(delivery) {
            Ok(publications) if publications.is_empty() => {}
            Ok(publications) => {
                let link = self.link;
                let _ = self
                    .commands
                    .send(Command::SendFirst { link, publications });
            }
            Err(refused) => {
                if let Some(tag) = refused.forget() {
                    let requeue = Disposition::Reject { requeue: true };
                    self.settler.settle(self.session, tag, requeue);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "delivery_route_tests.rs"]
mod tests;
