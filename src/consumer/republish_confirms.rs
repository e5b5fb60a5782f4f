//! The thread that waits for the publisher confirms of republished messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::settled::Settled;
use super::tracked::Tracked;
use super::waiting_copies::{WaitTicket, WaitingCopies};
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::Result;
use crate::topology::{Topology, is_delay};
use crate::transport::{
    Broker, ConfirmOutcome, ConfirmReceiver, LinkSpec, NoSink, Publication, SendState,
};

/// The longest time until the broker must have confirmed a republished copy.
pub(super) const REPUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which the thread waits after a republish that failed, before it requeues the
/// message: without a pause the message would be redelivered at once.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// The name of RabbitMQ's error for an exchange or a queue that does not exist.
const NOT_FOUND: &str = "NOT_FOUND";

/// The longest interval between two checks for handlers that run for long.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// A message and the copy to publish of it.
pub(super) struct Republish {
    pub(super) delivery: Tracked,
    pub(super) copy: Publication,
    /// The copy's place among those that wait, if it comes back after a delay.
    pub(super) ticket: Option<WaitTicket>,
    /// The reply, to be sent when the original is acknowledged.
    pub(super) reply: Option<Publication>,
    /// The copy to be published if the broker does not confirm the first one.
    pub(super) second: Option<SecondCopy>,
}

impl Republish {
    /// Publishes the copy. Blocks as [`Broker::publish_confirmed`].
    pub(super) fn publish(
        self,
        broker: &Broker,
        waiting: &Arc<WaitingCopies>,
        deadline: Instant,
    ) -> PendingRepublish {
        let mut copy = self.copy;
        let to = match is_delay(&copy.exchange) {
            true => copy.exchange.clone().into_owned(),
            false => copy.routing_key.clone(),
        };
        copy.send_state = Some(SendState::of_copy(deadline).into());
        PendingRepublish {
            delivery: self.delivery,
            to,
            ticket: self.ticket,
            waiting: Arc::clone(waiting),
            reply: self.reply,
            second: self.second,
            confirmation: broker.publish_confirmed(copy, deadline),
            deadline,
        }
    }
}

/// A message whose copy has been published and is not confirmed yet.
pub(crate) struct PendingRepublish {
    delivery: Tracked,
    /// The queue that the copy goes to, or, of a dead letter, the queue in which it failed.
    to: String,
    ticket: Option<WaitTicket>,
    waiting: Arc<WaitingCopies>,
    reply: Option<Publication>,
    second: Option<SecondCopy>,
    confirmation: Result<ConfirmReceiver>,
    deadline: Instant,
}

/// A copy for another queue, in case that the broker does not confirm the first one.
pub(crate) enum SecondCopy {
    /// A dead letter, for the queue in which it waits until it can be dead-lettered.
    Parked(DelayedCopy),
    /// A message for another attempt, for the queue that stands in for its own.
    Retry(DelayedCopy),
}

/// A copy that comes back after a delay.
pub(crate) struct DelayedCopy {
    pub(super) publication: Publication,
    /// The longest time for which it waits.
    pub(super) delay: Duration,
}

/// The reason why messages cannot be dead-lettered now, if any; shown in the server's state.
#[derive(Default)]
pub(crate) struct DeadLetterFault(Mutex<Option<String>>);

impl DeadLetterFault {
    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    /// Sets the fault; returns true if there was none.
    fn set(&self, fault: &str) -> bool {
        let mut dead_letter_fault = self.0.lock();
        let is_new = dead_letter_fault.is_none();
        *dead_letter_fault = Some(fault.to_owned());
        is_new
    }

    /// Clears the fault; returns true if there was one.
    fn clear(&self) -> bool {
        self.0.lock().take().is_some()
    }
}

/// The settings and the state of the thread.
pub(super) struct RepublishSetup {
    pub(super) service: String,
    pub(super) broker: Broker,
    /// The queues that messages are republished to.
    pub(super) topology: Topology,
    pub(super) dead_letter_fault: Arc<DeadLetterFault>,
    /// The messages that are being handled.
    pub(super) settled: Vec<Arc<Settled>>,
    /// The broker's limit on the time for which a delivery may be unacknowledged.
    pub(super) consumer_timeout: Duration,
    /// Disconnects at shutdown: then pauses end, and the thread ends after the republishes that are
    /// in its queue.
    pub(super) stopping: Receiver<()>,
}

/// The thread that settles the originals of republished messages once the broker has confirmed the
/// copies. One thread serves all workers, so that many confirms can be pending and a broker that
/// confirms slowly blocks no handler. It ends when its stop channel disconnects.
pub(super) struct RepublishConfirms(NamedThread);

impl RepublishConfirms {
    /// Starts the thread. The channel holds at most one republish for each unsettled delivery,
    /// whose number the prefetch count bounds.
    pub(super) fn start(
        setup: RepublishSetup,
    ) -> std::io::Result<(Self, Sender<PendingRepublish>)> {
        let (republishes, queue) = unbounded();
        let name = format!("coney-confirm-{}", setup.service);
        let thread = NamedThread::spawn(name, move || setup.run(&queue))?;
        Ok((Self(thread), republishes))
    }

    /// Blocks until the thread has ended, at most until `deadline`.
    pub(super) fn join(self, deadline: Instant) {
        let _ = self.0.join_deadline(deadline);
    }
}

impl RepublishSetup {
    fn run(&self, queue: &Receiver<PendingRepublish>) {
        // The messages whose first copies were not confirmed, and the second ones not yet.
        let mut again: VecDeque<PendingRepublish> = VecDeque::new();
        let check_interval =
            (self.consumer_timeout / 20).clamp(Duration::from_millis(10), MAX_CHECK_INTERVAL);
        let mut next_check = Instant::now() + check_interval;
        loop {
            let now = Instant::now();
            if now >= next_check {
                let _ = catch(|| self.warn_of_long_handlers());
                next_check = now + check_interval;
            }
            if let Some(next) = again.pop_front() {
                again.extend(self.try_settle(next));
                continue;
            }
            crossbeam_channel::select! {
                recv(queue) -> next => match next {
                    Ok(next) => again.extend(self.try_settle(next)),
                    Err(_) => return,
                },
                recv(self.stopping) -> _ => break,
                default(next_check - now) => {}
            }
        }
        again.extend(queue.try_iter());
        while let Some(next) = again.pop_front() {
            again.extend(self.try_settle(next));
        }
    }

    /// Settles, or requeues the original if the logger, which is user code, panics.
    fn try_settle(&self, pending: PendingRepublish) -> Option<PendingRepublish> {
        catch(|| self.settle(pending)).unwrap_or_default()
    }

    /// Replies and acknowledges the original once the copy is confirmed. If that fails, requeues
    /// the original, or publishes the second copy and returns that as the next pending republish.
    fn settle(&self, pending: PendingRepublish) -> Option<PendingRepublish> {
        let PendingRepublish {
            delivery,
            to,
            ticket,
            waiting,
            reply,
            second,
            confirmation,
            deadline,
        } = pending;
        let fault = match confirmation.map(|confirmation| confirmation.wait(deadline)) {
            Ok(Some(ConfirmOutcome::Confirmed)) => {
                // With a copy left to park, the confirmed one is a dead letter.
                if matches!(second, Some(SecondCopy::Parked(_))) && self.dead_letter_fault.clear() {
                    log::info!(
                        target: "coney::worker",
                        "{}: messages can be dead-lettered again", self.service
                    );
                }
                ticket.into_iter().for_each(WaitTicket::keep);
                delivery.done(reply);
                return None;
            }
            // The delivery is void too: the broker redelivers the message. It may have the copy.
            Ok(Some(ConfirmOutcome::Lost(_))) => {
                ticket.into_iter().for_each(WaitTicket::keep);
                return None;
            }
            Ok(Some(ConfirmOutcome::Dropped)) => {
                "the broker was closed, or accepts nothing".to_owned()
            }
            Ok(Some(ConfirmOutcome::Returned(reason))) => {
                self.declare();
                format!("the queue did not exist ({reason})")
            }
            Ok(Some(ConfirmOutcome::Refused(reason))) => {
                if reason.contains(NOT_FOUND) {
                    self.declare(); // an exchange was deleted
                }
                reason
            }
            Ok(Some(ConfirmOutcome::TooLarge(_))) => {
                "it is larger than the broker accepts".to_owned()
            }
            Ok(None) => format!("not confirmed within {REPUBLISH_TIMEOUT:?}"),
            Err(error) => error.to_string(),
        };
        match second {
            Some(SecondCopy::Parked(copy)) => {
                if self.dead_letter_fault.set(&fault) {
                    log::error!(
                        target: "coney::worker",
                        "{}: a message of {to:?} cannot be dead-lettered and waits for a while, \
                         as the next ones will: {fault}",
                        self.service
                    );
                }
                return Some(self.publish_second(delivery, copy, reply, &waiting));
            }
            Some(SecondCopy::Retry(copy)) => {
                log::warn!(
                    target: "coney::worker",
                    "{}: a message cannot be republished to {to:?} and goes to {:?} instead: \
                     {fault}",
                    self.service, copy.publication.exchange
                );
                return Some(self.publish_second(delivery, copy, reply, &waiting));
            }
            None => {}
        }
        log::error!(
            target: "coney::worker",
            "{}: a message cannot be republished to {to:?} and is requeued: {fault}",
            self.service
        );
        // A copy that was waited for until its deadline has had its pause.
        if Instant::now() < deadline {
            let _ = self.stopping.recv_timeout(FAILURE_PAUSE);
        }
        drop(delivery);
        None
    }

    /// Publishes the second copy of a message.
    fn publish_second(
        &self,
        delivery: Tracked,
        copy: DelayedCopy,
        reply: Option<Publication>,
        waiting: &Arc<WaitingCopies>,
    ) -> PendingRepublish {
        let republish = Republish {
            delivery,
            ticket: Some(waiting.add(&copy.publication, copy.delay)),
            copy: copy.publication,
            reply,
            second: None,
        };
        republish.publish(&self.broker, waiting, deadline::after(REPUBLISH_TIMEOUT))
    }

    /// Warns of handlers that have run for 80 % of the time after which the broker requeues an
    /// unacknowledged message.
    fn warn_of_long_handlers(&self) {
        let limit = self.consumer_timeout.mul_f64(0.8);
        for running in self
            .settled
            .iter()
            .flat_map(|it| it.running_longer_than(limit))
        {
            log::warn!(
                target: "coney::worker",
                "{}: a handler has run for {running:?}; after {:?} the broker requeues its message \
                 (consumer_timeout)",
                self.service, self.consumer_timeout
            );
        }
    }

    /// Declares all queues again: one of them was deleted.
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
