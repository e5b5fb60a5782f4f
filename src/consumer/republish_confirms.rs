use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::settled::Settled;
use super::tracked::Tracked;
use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::Result;
use crate::topology::Topology;
use crate::transport::{
    Broker, ConfirmOutcome, ConfirmReceiver, LinkSpec, NoSink, Publication, SendState,
};

/// How long the broker may take over a move.
pub(super) const MOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the thread waits after a move that failed. The message then goes back
/// into its queue, from which it would return at once.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest time between two looks for handlers that run for long.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// A message whose copy is on its way elsewhere.
pub(crate) struct PendingRepublish {
    pub(super) delivery: Tracked,
    /// To which queue.
    pub(super) to: String,
    /// To be sent when the original is acknowledged.
    pub(super) reply: Option<Publication>,
    /// To be published instead if the broker refuses the copy.
    pub(super) parked: Option<Publication>,
    pub(super) confirmation: Result<ConfirmReceiver>,
    pub(super) deadline: Instant,
}

/// The reason why messages cannot be dead-lettered now, if so; shared with who shows it.
#[derive(Default)]
pub(crate) struct DeadLetterFault(Mutex<Option<String>>);

impl DeadLetterFault {
    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    /// True if it is news.
    fn set(&self, fault: &str) -> bool {
        let mut dead_letter_fault = self.0.lock();
        let is_news = dead_letter_fault.is_none();
        *dead_letter_fault = Some(fault.to_owned());
        is_news
    }

    /// True if there was some.
    fn clear(&self) -> bool {
        self.0.lock().take().is_some()
    }
}

/// What the thread looks after.
pub(super) struct RepublishSetup {
    pub(super) service: String,
    pub(super) broker: Broker,
    /// The queues that messages are moved to.
    pub(super) topology: Topology,
    pub(super) dead_letter_fault: Arc<DeadLetterFault>,
    /// The messages that are being handled, and the limit on how long that may take by
    /// the broker's settings.
    pub(super) settled: Vec<Arc<Settled>>,
    pub(super) consumer_timeout: Duration,
    /// Disconnects at the end: then pauses end, and with the moves that there are the thread.
    pub(super) stopping: Receiver<()>,
}

/// The thread that settles the originals of what was moved, once the broker has
/// confirmed the copies. One for all workers, so that many can be under way and a
/// broker that confirms slowly holds up no handler. It ends when it is told to stop.
pub(super) struct RepublishConfirms(NamedThread);

impl RepublishConfirms {
    /// Starts it. The sender takes at most one move for each unsettled delivery,
    /// whose number the prefetch count bounds.
    pub(super) fn start(
        setup: RepublishSetup,
    ) -> std::io::Result<(Self, Sender<PendingRepublish>)> {
        let (republishes, queue) = unbounded();
        let name = format!("coney-confirm-{}", setup.service);
        let thread = NamedThread::spawn(name, move || setup.run(&queue))?;
        Ok((Self(thread), republishes))
    }

    /// Waits for the thread to end, at most until `deadline`.
    pub(super) fn join(self, deadline: Instant) {
        let _ = self.0.join_deadline(deadline);
    }
}

impl RepublishSetup {
    fn run(&self, queue: &Receiver<PendingRepublish>) {
        // Moves whose copies were refused, and are now parked.
        let mut parked: VecDeque<PendingRepublish> = VecDeque::new();
        let look = (self.consumer_timeout / 20).clamp(Duration::from_millis(10), LONGEST_LOOK);
        loop {
            if let Some(next) = parked.pop_front() {
                parked.extend(self.settle(next));
                continue;
            }
            crossbeam_channel::select! {
                recv(queue) -> next => match next {
                    Ok(next) => parked.extend(self.settle(next)),
                    Err(_) => return,
                },
                recv(self.stopping) -> _ => break,
                default(look) => self.warn_of_long_handlers(),
            }
        }
        parked.extend(queue.try_iter());
        while let Some(next) = parked.pop_front() {
            parked.extend(self.settle(next));
        }
    }

    /// Replies and acknowledges the original once the copy is confirmed. If that
    /// fails, the original goes back into its queue, or is parked: that is the move that
    /// this returns.
    fn settle(&self, moving: PendingRepublish) -> Option<PendingRepublish> {
        let PendingRepublish {
            delivery,
            to,
            reply,
            parked,
            confirmation,
            deadline,
        } = moving;
        let fault = match confirmation.map(|confirmation| confirmation.wait(deadline)) {
            Ok(Some(ConfirmOutcome::Confirmed)) => {
                // A parked copy is none that the dead letters took.
                if parked.is_some() && self.dead_letter_fault.clear() {
                    log::info!(
                        target: "coney::worker",
                        "{}: dead letters are taken again", self.service
                    );
                }
                delivery.done(reply);
                return None;
            }
            // The delivery is void too: the broker delivers it again.
            Ok(Some(ConfirmOutcome::Lost(_))) => return None,
            Ok(Some(ConfirmOutcome::Dropped)) => {
                "the broker was closed, or takes nothing".to_owned()
            }
            Ok(Some(ConfirmOutcome::Returned(reason))) => {
                self.declare();
                format!("there was no such queue ({reason})")
            }
            Ok(Some(ConfirmOutcome::Refused(reason))) => reason,
            Ok(Some(ConfirmOutcome::TooLarge(_))) => {
                "it is larger than the broker takes".to_owned()
            }
            Ok(None) => format!("not confirmed within {MOVE_TIMEOUT:?}"),
            Err(error) => error.to_string(),
        };
        if let Some(parked) = parked {
            if self.dead_letter_fault.set(&fault) {
                log::error!(
                    target: "coney::worker",
                    "{}: a message cannot be dead-lettered to {to:?}, so it waits, and so will \
                     others: {fault}",
                    self.service
                );
            }
            return Some(self.park(delivery, parked, reply));
        }
        log::error!(
            target: "coney::worker",
            "{}: a message cannot be moved on to {to:?}, so it goes back into its queue: {fault}",
            self.service
        );
        let _ = self.stopping.recv_timeout(PAUSE);
        drop(delivery);
        None
    }

    fn park(
        &self,
        delivery: Tracked,
        mut copy: Publication,
        reply: Option<Publication>,
    ) -> PendingRepublish {
        let deadline = deadline::after(MOVE_TIMEOUT);
        copy.send_state = Some(SendState::until(deadline).into());
        PendingRepublish {
            delivery,
            to: copy.routing_key.clone(),
            reply,
            parked: None,
            confirmation: self.broker.publish_confirmed(copy, deadline),
            deadline,
        }
    }

    /// Warns of handlers that will soon have taken longer than the broker waits for an
    /// acknowledgement.
    fn warn_of_long_handlers(&self) {
        let most = self.consumer_timeout.mul_f64(0.8);
        for running in self
            .settled
            .iter()
            .flat_map(|it| it.running_longer_than(most))
        {
            log::warn!(
                target: "coney::worker",
                "{}: a handler has run for {running:?}; after {:?} the broker gives its message \
                 to another worker (consumer_timeout)",
                self.service, self.consumer_timeout
            );
        }
    }

    /// Makes the queues again that were deleted.
    fn declare(&self) {
        let spec = LinkSpec::new(self.topology.clone());
        match self.broker.open(spec, Arc::new(NoSink)) {
            Ok(handle) => handle.close(),
            Err(error) => {
                log::error!(target: "coney::worker", "{}: {error}", self.service);
            }
        }
    }
}
