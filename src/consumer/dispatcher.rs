use super::local_retry::LocalAttempts;
use super::local_retry::LocalRetry;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::batch_job::BatchJob;
use super::executor::{HandlerOutcome, RequestExecutor, unknown_action};
use super::failure::{Failure, Reason};
use super::options::POSTPONE_FOR;
use super::reply_target::ReplyTarget;
use super::republisher::{DELIVERY_COUNT, Republisher};
use super::request::{DeliveryInfo, Request};
use super::settled::Settled;
use super::tracked::Tracked;
use crate::base::name::{check_action, check_short_string, shown};
use crate::error::Result;
use crate::message::batch::BATCH_ACTION;
use crate::message::{CODE_TOO_LARGE, CODE_UNKNOWN_ACTION, ServiceMessage};
use crate::topology;
use crate::transport::x_death::COPIES;
use crate::transport::{Delivery, LinkHandle, Message, Oversized, Publication};

/// The time for which a message waits that has to come again, as its body was not kept.
const COMES_AGAIN: Duration = Duration::from_millis(100);

/// What a worker does with a delivery, whatever is in it: decode, run the
/// handler, reply, ack; or see to it that it is tried again or kept.
pub(crate) struct Dispatcher {
    pub(crate) executor: RequestExecutor,
    pub(crate) republisher: Republisher,
    pub(crate) settled: Arc<Settled>,
    /// The number of times that a message may come back because its worker died of it.
    pub(crate) redelivery_limit: u32,
    /// Replies may go to queues of any name.
    pub(crate) any_reply_queue: bool,
}

/// What is left to do after a delivery has been processed.
pub(crate) enum AfterDelivery {
    Done,
    /// Process it again, later.
    LocalRetry(LocalRetry),
    /// It holds many requests, which several workers can handle at a time.
    Batch(Arc<BatchJob>),
}

impl From<Option<LocalRetry>> for AfterDelivery {
    fn from(again: Option<LocalRetry>) -> Self {
        again.map_or(Self::Done, Self::LocalRetry)
    }
}

impl Dispatcher {
    /// Handles one delivery to its end, unless something is left to do.
    pub(crate) fn process(&self, delivery: Delivery) -> AfterDelivery {
        match self.settled.track(delivery) {
            Some(tracked) => self.process_tracked(tracked, LocalAttempts::default()),
            None => AfterDelivery::Done,
        }
    }

    /// The same for one that is tracked, and may have failed here before.
    pub(crate) fn process_tracked(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
    ) -> AfterDelivery {
        if let Some(failure) = self.republisher.was_given_up(delivery.delivery()) {
            // Its sender was answered then.
            self.republisher
                .dead_letter(delivery, &failure, &attempt, None);
            return AfterDelivery::Done;
        }
        let oversized = delivery.message().oversized().cloned();
        if let Some(oversized) = oversized {
            return self.refuse_oversized(delivery, &oversized);
        }
        // Before anything of it is looked at: it may be what kills workers.
        let Some(delivery) = self.examine(delivery) else {
            return AfterDelivery::Done;
        };
        let message = delivery.share_message();
        let envelope = match ServiceMessage::decode(&message.body) {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse_envelope(delivery, error.to_string()),
        };
        if let Err(fault) = self.check(&envelope, &message) {
            return self.refuse_envelope(delivery, fault);
        }
        let executor = &self.executor;
        let mut answer = ReplyTarget::to(&envelope, &message, executor.instance_id.as_deref());
        let info = DeliveryInfo {
            redelivered: self.republisher.was_redelivered(delivery.delivery()),
            failed: self
                .republisher
                .failed_attempts(delivery.delivery(), &attempt),
            arrived: delivery.delivery().arrived(),
            is_copy: message.properties.headers.get(COPIES).is_some(),
        };
        if !executor.handlers.answer() {
            answer = answer.unwanted();
        } else if envelope.action == BATCH_ACTION {
            let batch = BatchJob::read(&envelope, &message, &answer, info);
            return match batch {
                Ok(batch) => AfterDelivery::Batch(Arc::new(batch.with(delivery))),
                Err(fault) => self.refuse_envelope(delivery, fault),
            };
        }
        let handler = executor.handlers.get(&envelope.action);
        let Some(handler) = handler else {
            let fault = unknown_action(&envelope.action);
            let body = answer.failure(&fault, Some(CODE_UNKNOWN_ACTION));
            let reply = answer.publication(body, executor.max_body());
            let failure = Failure::new(Reason::NoHandler, fault);
            self.republisher
                .dead_letter(delivery, &failure, &attempt, reply);
            return AfterDelivery::Done;
        };
        match executor.run(&Request::of(&envelope), handler, info, &answer) {
            HandlerOutcome::Done(None) => delivery.ack(),
            HandlerOutcome::Done(Some(body)) => self.reply(delivery, &answer, body),
            HandlerOutcome::InProgress => {
                return self.republisher.postpone(delivery, attempt).into();
            }
            HandlerOutcome::Unavailable(fault) if answer.is_wanted() => {
                let body = answer.busy(fault, self.executor.busy_retry_after());
                self.reply(delivery, &answer, body);
            }
            HandlerOutcome::Unavailable(_) => {
                return self.republisher.park(delivery, attempt).into();
            }
            HandlerOutcome::Failed(error) if answer.is_wanted() => {
                let body = answer.failure(error.message(), error.code());
                self.reply(delivery, &answer, body);
            }
            HandlerOutcome::Failed(error) => {
                return self.republisher.failed(delivery, attempt, error).into();
            }
        }
        AfterDelivery::Done
    }

    /// Puts back what was fetched and not begun: as new, so that nothing counts against it.
    /// Blocks at most until `deadline`.
    pub(crate) fn give_back(&self, delivery: Delivery, deadline: Instant) {
        // A copy would lack a body that was too large: it goes back by itself.
        if delivery.message().oversized().is_none()
            && Instant::now() < deadline
            && let Some(tracked) = self.settled.track(delivery)
        {
            self.republisher.give_back(tracked, deadline);
        }
    }

    /// The number of messages that are being handled or moved.
    pub(crate) fn unsettled(&self) -> usize {
        self.settled.running()
    }

    /// The number of messages that wait for another attempt in queues of the broker's.
    /// Blocks at most until `deadline`.
    pub(crate) fn waiting(&self, handle: &dyn LinkHandle, deadline: Instant) -> Result<usize> {
        let mut queues = self.republisher.queues_of_waiting();
        if !queues.is_empty() && self.executor.deduplication.is_some() {
            queues.push(self.republisher.queue.retry_queue(POSTPONE_FOR));
        }
        let mut count = 0;
        for queue in queues {
            count += handle.backlog(&queue, deadline)?;
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
        let (message, inbox) = (delivery.message(), &self.republisher.queue);
        if inbox.is_ordered {
            return Some(delivery); // it cannot leave its place: see `begun`
        }
        if !inbox.is_suspect(message) {
            if !delivery.delivery().is_redelivered() {
                return Some(delivery);
            }
            self.republisher.suspect(delivery);
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
    fn refuse_oversized(&self, delivery: Tracked, oversized: &Oversized) -> AfterDelivery {
        let (bytes, most) = (oversized.bytes(), self.republisher.broker.max_body());
        let error =
            format!("the message is {bytes} bytes long; at most {most} are allowed (max_body)");
        let failure = Failure::new(Reason::TooLarge, error);
        let whole = bytes <= self.republisher.broker.max_dead_letter();
        match oversized.body() {
            Some(body) => {
                let reply = self.refusal(&delivery, &failure, CODE_TOO_LARGE);
                let body = Arc::clone(&body.bytes);
                self.republisher
                    .dead_letter_oversized(delivery, &failure, body, reply);
            }
            // Another body was kept when it came: it comes again.
            None if whole => {
                thread::sleep(COMES_AGAIN);
                drop(delivery);
            }
            None => self.refuse(delivery, &failure, CODE_TOO_LARGE),
        }
        AfterDelivery::Done
    }

    fn refuse_envelope(&self, delivery: Tracked, fault: String) -> AfterDelivery {
        let failure = Failure::new(Reason::Undecodable, fault);
        self.refuse(delivery, &failure, "bad_envelope");
        AfterDelivery::Done
    }

    /// Answers a message that is not looked into, as far as its properties say
    /// where to, and keeps it among the dead letters.
    fn refuse(&self, delivery: Tracked, failure: &Failure, code: &str) {
        let reply = self.refusal(&delivery, failure, code);
        self.republisher
            .dead_letter(delivery, failure, &LocalAttempts::default(), reply);
    }

    fn refusal(&self, delivery: &Tracked, failure: &Failure, code: &str) -> Option<Publication> {
        let executor = &self.executor;
        if !executor.handlers.answer() {
            return None;
        }
        let answer = ReplyTarget::to_properties(
            &delivery.message().properties,
            executor.instance_id.as_deref(),
            self.any_reply_queue,
        );
        let body = answer.failure(&failure.error, Some(code));
        answer.publication(body, executor.max_body())
    }

    /// Publishes the reply, then acknowledges.
    fn reply(&self, delivery: Tracked, answer: &ReplyTarget<'_>, body: Vec<u8>) {
        delivery.done(answer.publication(body, self.executor.max_body()));
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
        let queue = ReplyTarget::queue(envelope, &message.properties);
        match queue.filter(|_| self.executor.handlers.answer()) {
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
