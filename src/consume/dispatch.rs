use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::batch::Batch;
use super::failure::{Failure, Reason};
use super::mover::{DELIVERY_COUNT, Mover, POSTPONE_FOR};
use super::request::{Circumstances, Request};
use super::run::{Runner, Verdict, unknown_action};
use super::settled::Settled;
use super::tracked::Tracked;
use crate::error::Result;
use crate::message::batch::BATCH_ACTION;
use crate::message::{CODE_TOO_LARGE, CODE_UNKNOWN_ACTION, ServiceMessage};
use crate::name::{check_action, check_short_string, shown};
use crate::topology;
use crate::transport::x_death::COPIES;
use crate::transport::{Delivery, Message, Oversized, Publication, Wire};

/// The time for which a message waits that has to come again, as its body was not kept.
const COMES_AGAIN: Duration = Duration::from_millis(100);

/// What a worker does with a delivery, whatever is in it: decode, run the
/// handler, reply, ack; or see to it that it is tried again or kept.
pub(crate) struct Dispatch {
    pub(crate) runner: Runner,
    pub(crate) mover: Mover,
    pub(crate) settled: Arc<Settled>,
    /// The number of times that a message may come back because its worker died of it.
    pub(crate) redelivery_limit: u32,
    /// Replies may go to queues of any name.
    pub(crate) any_reply_queue: bool,
}

/// The attempts at a delivery that have failed while it was held here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) failed: usize,
    pub(crate) first_error: Option<String>,
}

/// A delivery that is to be processed again here, after a while.
pub(crate) struct Again {
    pub(crate) delivery: Tracked,
    pub(crate) attempt: Attempt,
    pub(crate) delay: Duration,
}

/// What is left to do after a delivery has been processed.
pub(crate) enum Processed {
    Done,
    /// Process it again, later.
    Again(Again),
    /// It holds many requests, which several workers can handle at a time.
    Batch(Arc<Batch>),
}

impl From<Option<Again>> for Processed {
    fn from(again: Option<Again>) -> Self {
        again.map_or(Self::Done, Self::Again)
    }
}

impl Dispatch {
    /// Handles one delivery to its end, unless something is left to do.
    pub(crate) fn process(&self, delivery: Delivery) -> Processed {
        match self.settled.track(delivery) {
            Some(tracked) => self.process_tracked(tracked, Attempt::default()),
            None => Processed::Done,
        }
    }

    /// The same for one that is tracked, and may have failed here before.
    pub(crate) fn process_tracked(&self, delivery: Tracked, attempt: Attempt) -> Processed {
        if let Some(failure) = self.mover.was_given_up(delivery.delivery()) {
            // Its sender was answered then.
            self.mover.dead_letter(delivery, &failure, &attempt, None);
            return Processed::Done;
        }
        let oversized = delivery.message().oversized().cloned();
        if let Some(oversized) = oversized {
            return self.refuse_oversized(delivery, &oversized);
        }
        // Before anything of it is looked at: it may be what kills workers.
        let Some(delivery) = self.examine(delivery) else {
            return Processed::Done;
        };
        let message = delivery.share_message();
        let envelope = match ServiceMessage::decode(&message.body) {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse_envelope(delivery, error.to_string()),
        };
        if let Err(fault) = self.check(&envelope, &message) {
            return self.refuse_envelope(delivery, fault);
        }
        let runner = &self.runner;
        let mut answer = Answer::to(&envelope, &message, runner.instance_id.as_deref());
        let circumstances = Circumstances {
            redelivered: self.mover.was_redelivered(delivery.delivery()),
            failed: self.mover.failed_attempts(delivery.delivery(), &attempt),
            arrived: delivery.delivery().arrived(),
            is_copy: message.properties.headers.get(COPIES).is_some(),
        };
        if !runner.handlers.answer() {
            answer = answer.unwanted();
        } else if envelope.action == BATCH_ACTION {
            let batch = Batch::read(&envelope, &message, &answer, circumstances);
            return match batch {
                Ok(batch) => Processed::Batch(Arc::new(batch.with(delivery))),
                Err(fault) => self.refuse_envelope(delivery, fault),
            };
        }
        let handler = runner.handlers.get(&envelope.action);
        let Some(handler) = handler else {
            let fault = unknown_action(&envelope.action);
            let body = answer.failure(&fault, Some(CODE_UNKNOWN_ACTION));
            let reply = answer.publication(body, runner.max_body());
            let failure = Failure::new(Reason::NoHandler, fault);
            self.mover.dead_letter(delivery, &failure, &attempt, reply);
            return Processed::Done;
        };
        match runner.run(&Request::of(&envelope), handler, circumstances, &answer) {
            Verdict::Done(None) => delivery.ack(),
            Verdict::Done(Some(body)) => self.reply(delivery, &answer, body),
            Verdict::InProgress => return self.mover.postpone(delivery, attempt).into(),
            Verdict::Unavailable(fault) if answer.is_wanted() => {
                let body = answer.busy(fault, self.runner.busy_retry_after());
                self.reply(delivery, &answer, body);
            }
            Verdict::Unavailable(_) => return self.mover.park(delivery, attempt).into(),
            Verdict::Failed(error) if answer.is_wanted() => {
                let body = answer.failure(error.message(), error.code());
                self.reply(delivery, &answer, body);
            }
            Verdict::Failed(error) => return self.mover.failed(delivery, attempt, error).into(),
        }
        Processed::Done
    }

    /// Puts back what was fetched and not begun: as new, so that nothing counts against it.
    /// Blocks at most until `deadline`.
    pub(crate) fn give_back(&self, delivery: Delivery, deadline: Instant) {
        // A copy would lack a body that was too large: it goes back by itself.
        if delivery.message().oversized().is_none()
            && Instant::now() < deadline
            && let Some(tracked) = self.settled.track(delivery)
        {
            self.mover.give_back(tracked, deadline);
        }
    }

    /// The number of messages that are being handled or moved.
    pub(crate) fn unsettled(&self) -> usize {
        self.settled.running()
    }

    /// The number of messages that wait for another attempt in queues of the broker's.
    /// Blocks at most until `deadline`.
    pub(crate) fn waiting(&self, wire: &dyn Wire, deadline: Instant) -> Result<usize> {
        let mut queues = self.mover.queues_of_waiting();
        if !queues.is_empty() && self.runner.deduplication.is_some() {
            queues.push(self.mover.inbox.retry_queue(POSTPONE_FOR));
        }
        let mut count = 0;
        for queue in queues {
            count += wire.backlog(&queue, deadline)?;
        }
        Ok(count)
    }

    /// Lets a message pass unless it may be what its worker died of.
    ///
    /// A redelivered message had been fetched by a worker that has gone, or lost its
    /// connection; whether it had been begun, nothing says. So it goes to a queue of
    /// suspects, from which each process takes one at a time and begins at once: there
    /// the queue's own count of redeliveries is one of attempts that ended with their
    /// worker, and what is merely near a message that kills workers is not counted.
    fn examine(&self, delivery: Tracked) -> Option<Tracked> {
        let (message, inbox) = (delivery.message(), &self.mover.inbox);
        if inbox.is_ordered {
            return Some(delivery); // it cannot leave its place: see `begun`
        }
        if !inbox.is_suspect(message) {
            if !delivery.delivery().is_redelivered() {
                return Some(delivery);
            }
            self.mover.suspect(delivery);
            return None;
        }
        // The count of another queue may have come with it.
        let count = match delivery.delivery().is_redelivered() {
            true => message.properties.headers.int(DELIVERY_COUNT).unwrap_or(0),
            false => 0,
        };
        // Its worker had gone once before it came here.
        let deaths = count.saturating_add(1);
        if count > 0 && deaths > i64::from(self.redelivery_limit) {
            self.refuse_poison(delivery, deaths);
            return None;
        }
        Some(delivery)
    }

    /// Gives up a message that its workers died of.
    pub(crate) fn refuse_poison(&self, delivery: Tracked, deaths: i64) {
        let error = format!(
            "begun {deaths} times without being settled; the workers that had it died, lost their \
             connections, or took longer than the broker's consumer_timeout"
        );
        let failure = Failure::new(Reason::DeliveryLimit, error);
        self.refuse(delivery, &failure, "poison");
    }

    /// Gives up a message whose body is larger than `max_body`: whole, if the body was kept,
    /// over a connection of its own; and without it where it is over the second limit.
    fn refuse_oversized(&self, delivery: Tracked, oversized: &Oversized) -> Processed {
        let (bytes, most) = (oversized.bytes(), self.mover.broker.max_body());
        let error =
            format!("the message is {bytes} bytes long; at most {most} are allowed (max_body)");
        let failure = Failure::new(Reason::TooLarge, error);
        let whole = bytes <= self.mover.broker.max_dead_letter();
        match oversized.body() {
            Some(body) => {
                let reply = self.refusal(&delivery, &failure, CODE_TOO_LARGE);
                let body = Arc::clone(&body.bytes);
                self.mover
                    .dead_letter_oversized(delivery, &failure, body, reply);
            }
            // Another body was kept when it came: it comes again.
            None if whole => {
                thread::sleep(COMES_AGAIN);
                drop(delivery);
            }
            None => self.refuse(delivery, &failure, CODE_TOO_LARGE),
        }
        Processed::Done
    }

    fn refuse_envelope(&self, delivery: Tracked, fault: String) -> Processed {
        let failure = Failure::new(Reason::Undecodable, fault);
        self.refuse(delivery, &failure, "bad_envelope");
        Processed::Done
    }

    /// Answers a message that is not looked into, as far as its properties say
    /// where to, and keeps it among the dead letters.
    fn refuse(&self, delivery: Tracked, failure: &Failure, code: &str) {
        let reply = self.refusal(&delivery, failure, code);
        self.mover
            .dead_letter(delivery, failure, &Attempt::default(), reply);
    }

    fn refusal(&self, delivery: &Tracked, failure: &Failure, code: &str) -> Option<Publication> {
        let runner = &self.runner;
        if !runner.handlers.answer() {
            return None;
        }
        let answer = Answer::to_properties(
            &delivery.message().properties,
            runner.instance_id.as_deref(),
            self.any_reply_queue,
        );
        let body = answer.failure(&failure.error, Some(code));
        answer.publication(body, runner.max_body())
    }

    /// Publishes the reply, then acknowledges.
    fn reply(&self, delivery: Tracked, answer: &Answer<'_>, body: Vec<u8>) {
        delivery.done(answer.publication(body, self.runner.max_body()));
    }

    /// Nothing in the envelope is longer than what AMQP has for it, and the reply
    /// goes nowhere it could do damage.
    fn check(&self, envelope: &ServiceMessage<'_>, message: &Message) -> Result<(), String> {
        for (what, text) in [
            ("message id", &*envelope.message_id),
            ("correlation id", &*envelope.correlation_id),
            ("source service", &*envelope.source_service),
        ] {
            check_short_string(what, text).map_err(|error| error.to_string())?;
        }
        check_action(&envelope.action).map_err(|error| error.to_string())?;
        let queue = Answer::queue(envelope, &message.properties);
        match queue.filter(|_| self.runner.handlers.answer()) {
            Some(queue) if !topology::may_take_replies(queue, self.any_reply_queue) => {
                Err(format!(
                    "reply_to names {:?}; replies go to queues that the broker has named \
                     (amq.gen-…, amq.rabbitmq.reply-to) unless the server allows others",
                    shown(queue)
                ))
            }
            Some(queue) => {
                check_short_string("reply queue", queue).map_err(|error| error.to_string())
            }
            None => Ok(()),
        }
    }
}
