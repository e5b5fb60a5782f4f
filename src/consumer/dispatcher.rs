//! The processing of one delivery, from decoding to its acknowledgement.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::batch_job::BatchJob;
use super::bulkheads::{Bulkheads, Entry};
use super::executor::{HandlerOutcome, RequestExecutor, unknown_action};
use super::failure::{MessageFailure, Reason};
use super::lane::Class;
use super::local_retry::{LocalAttempts, LocalRetry};
use super::reply_target::ReplyTarget;
use super::republisher::{DELIVERY_COUNT, Republisher};
use super::request::{DeliveryInfo, Request};
use super::settled::Settled;
use super::tracked::Tracked;
use super::turn::Turn;
use crate::base::name::{check_action, check_short_string, shown};
use crate::error::Result;
use crate::error_code;
use crate::message::ServiceMessage;
use crate::message::batch::BATCH_ACTION;
use crate::topology;
use crate::transport::x_death::COPIES;
use crate::transport::{Delivery, Message, Oversized, Publication};

/// The delay before an oversized message is requeued because its body was not kept.
const OVERSIZED_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The processing of deliveries by workers: decodes a delivery, runs the handler, replies and
/// acknowledges; or has the message retried or dead-lettered.
pub(crate) struct Dispatcher {
    pub(crate) executor: RequestExecutor,
    pub(crate) republisher: Republisher,
    pub(crate) settled: Arc<Settled>,
    /// The largest number of times that a message may come back because its worker died.
    pub(crate) redelivery_limit: u32,
    /// True if replies may go to queues of any name.
    pub(crate) any_reply_queue: bool,
    /// The bounds of single actions.
    pub(crate) bulkheads: Bulkheads,
}

/// The work that is left after a delivery has been processed.
pub(crate) enum AfterDelivery {
    Done,
    /// Process the delivery again in this process, after a delay.
    LocalRetry(LocalRetry),
    /// Handle the requests of a batch, which several workers can do at a time.
    Batch(Arc<BatchJob>),
    /// Process the delivery when there is a place in this class.
    Wait(Class, Tracked),
}

impl From<Option<LocalRetry>> for AfterDelivery {
    fn from(retry: Option<LocalRetry>) -> Self {
        retry.map_or(Self::Done, Self::LocalRetry)
    }
}

impl Dispatcher {
    /// Processes one delivery until it is settled, or returns the work that is left.
    pub(crate) fn process(&self, delivery: Delivery, turn: &dyn Turn) -> AfterDelivery {
        let tracked = self.settled.track(delivery);
        tracked.map_or(AfterDelivery::Done, |tracked| {
            self.process_as(tracked, LocalAttempts::default(), turn, false)
        })
    }

    /// Processes one delivery whose job has its place in the class of its action.
    pub(crate) fn process_in_class(&self, delivery: Delivery, turn: &dyn Turn) -> AfterDelivery {
        let tracked = self.settled.track(delivery);
        tracked.map_or(AfterDelivery::Done, |it| self.process_waited(it, turn))
    }

    /// Processes one delivery that has waited for its place in the class of its action.
    pub(crate) fn process_waited(&self, delivery: Tracked, turn: &dyn Turn) -> AfterDelivery {
        self.process_as(delivery, LocalAttempts::default(), turn, true)
    }

    /// Processes one delivery that is tracked already, and may have failed in this process before.
    pub(crate) fn process_tracked(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        turn: &dyn Turn,
    ) -> AfterDelivery {
        self.process_as(delivery, attempt, turn, false)
    }

    fn process_as(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        turn: &dyn Turn,
        has_place: bool,
    ) -> AfterDelivery {
        self.republisher.waiting.returned(delivery.message());
        if let Some(failure) = self.republisher.parked_failure(delivery.delivery()) {
            // The reply was sent when the message was parked.
            self.republisher
                .dead_letter(delivery, &failure, &attempt, None);
            return AfterDelivery::Done;
        }
        let oversized = delivery.message().oversized().cloned();
        if let Some(oversized) = oversized {
            return self.refuse_oversized(delivery, &oversized);
        }
        // Before the body is decoded: the message may be poison.
        let Some(delivery) = self.pass_suspect_check(delivery) else {
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
        let mut target =
            ReplyTarget::of_request(&envelope, &message, executor.instance_id.as_deref());
        let info = DeliveryInfo {
            redelivered: self.republisher.was_redelivered(delivery.delivery()),
            failed: self
                .republisher
                .failed_attempts(delivery.delivery(), &attempt),
            arrived: delivery.delivery().arrived(),
            is_copy: message.properties.headers.get(COPIES).is_some(),
            is_admitted: false,
            opens_message: true,
        };
        target.may_have_run = info.redelivered;
        if !executor.handlers.send_replies() {
            target = target.without_reply();
        } else if envelope.action == BATCH_ACTION {
            let batch = BatchJob::read(&envelope, &message, &target, info);
            return match batch {
                Ok(batch) => {
                    let batch = batch.with_delivery(delivery, &executor.load);
                    AfterDelivery::Batch(Arc::new(batch))
                }
                Err(fault) => self.refuse_envelope(delivery, fault),
            };
        }
        let handler = executor.handlers.get(&envelope.action);
        let Some(handler) = handler else {
            let fault = unknown_action(&envelope.action);
            let body = target.failure(&fault, Some(error_code::UNKNOWN_ACTION));
            let reply = target.publication(body, executor.max_body());
            let failure = MessageFailure::new(Reason::NoHandler, fault);
            self.republisher
                .dead_letter(delivery, &failure, &attempt, reply);
            return AfterDelivery::Done;
        };
        let entry = match has_place {
            true => None,
            false => self.bulkheads.enter(&envelope.action, turn),
        };
        let _place = match entry {
            None => None,
            Some(Entry::Run(place)) => Some(place),
            Some(Entry::Wait(class)) => return AfterDelivery::Wait(class, delivery),
            // In another queue its deliveries would be counted anew. There is one at a time.
            Some(Entry::Full(bulkhead)) if self.republisher.queue.is_suspect(&message) => {
                return AfterDelivery::Wait(bulkhead.class, delivery);
            }
            Some(Entry::Full(_)) if target.is_reply_wanted() => {
                let refusal = executor.full(&envelope.action, handler.number);
                let body = executor.busy_reply(&target, &refusal);
                self.reply(delivery, &target, body);
                return AfterDelivery::Done;
            }
            Some(Entry::Full(bulkhead)) => {
                self.republisher.move_to(delivery, &bulkhead.queue);
                return AfterDelivery::Done;
            }
        };
        match executor.run(&Request::of(&envelope), handler, info, &target, turn) {
            HandlerOutcome::Done(None) => delivery.ack(),
            HandlerOutcome::Done(Some(body)) => self.reply(delivery, &target, body),
            HandlerOutcome::InProgress => {
                return self.republisher.postpone(delivery, attempt).into();
            }
            HandlerOutcome::Unavailable(refusal) if target.is_reply_wanted() => {
                let body = executor.busy_reply(&target, &refusal);
                self.reply(delivery, &target, body);
            }
            HandlerOutcome::Unavailable(refusal) => {
                let retry = match refusal.retry_after {
                    Some(after) => {
                        let action = &envelope.action;
                        self.republisher.refused(delivery, attempt, action, after)
                    }
                    None => self.republisher.park(delivery, attempt),
                };
                return retry.into();
            }
            HandlerOutcome::OverLimit(over) if target.is_reply_wanted() => {
                let body = executor.limited_reply(&target, &envelope.action, over);
                self.reply(delivery, &target, body);
            }
            HandlerOutcome::OverLimit(over) => {
                let retry = self
                    .republisher
                    .put_off_by_limit(delivery, attempt, over.turn);
                return retry.into();
            }
            HandlerOutcome::Failed(error) if target.is_reply_wanted() => {
                let body = target.failure(error.message(), error.code());
                self.reply(delivery, &target, body);
            }
            HandlerOutcome::Failed(error) => {
                let action = &envelope.action;
                return self
                    .republisher
                    .failed(delivery, attempt, action, error)
                    .into();
            }
        }
        AfterDelivery::Done
    }

    /// Refuses a message whose body is larger than `max_body`, and requeues any other.
    pub(crate) fn refuse_unread(&self, delivery: Delivery) {
        if let Some(tracked) = self.settled.track(delivery)
            && let Some(oversized) = tracked.message().oversized().cloned()
        {
            self.refuse_oversized(tracked, &oversized);
        }
    }

    /// Requeues a message that was fetched and not started: as new, so that it does not count as
    /// redelivered. Blocks at most until `deadline`.
    pub(crate) fn give_back(&self, delivery: Delivery, deadline: Instant) {
        // A copy would lack an oversized body: such a delivery is requeued when it is dropped.
        if delivery.message().oversized().is_none()
            && Instant::now() < deadline
            && let Some(tracked) = self.settled.track(delivery)
        {
            self.republisher.give_back(tracked, deadline);
        }
    }

    /// Returns the number of messages that are being handled or republished.
    pub(crate) fn unsettled(&self) -> usize {
        self.settled.running()
    }

    /// Returns the number of messages that wait in the broker for another attempt, as far as this
    /// process has put them off. Blocks at most until `deadline`.
    pub(crate) fn count_waiting(&self, deadline: Instant) -> Result<usize> {
        let waiting = self.republisher.waiting.count();
        let suspects = match self.republisher.suspect_queue() {
            Some(queue) => {
                let broker = &self.republisher.broker;
                broker.queue_depth_until(&queue, deadline)?.messages
            }
            None => 0,
        };
        Ok(waiting + suspects)
    }

    /// Returns a message that may be processed; moves or dead-letters one that may be poison.
    ///
    /// A redelivered message was fetched by a process that has died or lost its connection, and
    /// nothing says whether its handler had started. So the message goes to the suspect queue,
    /// from which each process fetches one message at a time and starts it at once: there the
    /// queue's own delivery count is a count of attempts that ended with their worker, and
    /// messages that were merely fetched next to a poison message are not counted.
    fn pass_suspect_check(&self, delivery: Tracked) -> Option<Tracked> {
        let (message, queue) = (delivery.message(), &self.republisher.queue);
        if queue.is_ordered {
            return Some(delivery); // must keep its place: `events::begin_marks` counts instead
        }
        if !queue.is_suspect(message) {
            if !delivery.delivery().is_redelivered() {
                return Some(delivery);
            }
            self.republisher.suspect(delivery);
            return None;
        }
        // Without a redelivery the count is that of another queue, copied with the headers.
        let count = match delivery.delivery().is_redelivered() {
            true => message.properties.headers.int(DELIVERY_COUNT).unwrap_or(0),
            false => 0,
        };
        // A worker lost the message once before it came to this queue.
        let deaths = count.saturating_add(1);
        if count > 0 && deaths > i64::from(self.redelivery_limit) {
            self.refuse_poison(delivery, deaths);
            return None;
        }
        Some(delivery)
    }

    /// Refuses a poison message: dead-letters it after `deaths` starts that ended with their
    /// worker.
    pub(crate) fn refuse_poison(&self, delivery: Tracked, deaths: i64) {
        let error = format!(
            "started {deaths} times without being settled; its workers died, lost their \
             connections, or took longer than the broker's consumer_timeout"
        );
        let failure = MessageFailure::new(Reason::DeliveryLimit, error);
        self.refuse(delivery, &failure, error_code::POISON);
    }

    /// Refuses a message whose body is larger than `max_body`: dead-letters it with the body, if
    /// that was kept, over a separate connection; without it if it exceeds the broker's
    /// `max_dead_letter` limit.
    fn refuse_oversized(&self, delivery: Tracked, oversized: &Oversized) -> AfterDelivery {
        let (bytes, most) = (oversized.bytes(), self.republisher.broker.max_body());
        let error =
            format!("the message is {bytes} bytes long; at most {most} are allowed (max_body)");
        let failure = MessageFailure::new(Reason::TooLarge, error);
        let whole = bytes <= self.republisher.broker.max_dead_letter();
        match oversized.body() {
            Some(body) => {
                let reply = self.refusal(&delivery, &failure, error_code::TOO_LARGE);
                let body = Arc::clone(&body.bytes);
                self.republisher
                    .dead_letter_oversized(delivery, &failure, body, reply);
            }
            // Another body was kept when this message arrived: requeue it.
            None if whole => {
                thread::sleep(OVERSIZED_RETRY_DELAY);
                drop(delivery);
            }
            None => self.refuse(delivery, &failure, error_code::TOO_LARGE),
        }
        AfterDelivery::Done
    }

    fn refuse_envelope(&self, delivery: Tracked, fault: String) -> AfterDelivery {
        let failure = MessageFailure::new(Reason::Undecodable, fault);
        self.refuse(delivery, &failure, error_code::BAD_ENVELOPE);
        AfterDelivery::Done
    }

    /// Refuses a message without using its body: dead-letters it, and replies with an error if the
    /// properties name a reply queue.
    fn refuse(&self, delivery: Tracked, failure: &MessageFailure, code: &str) {
        let reply = self.refusal(&delivery, failure, code);
        self.republisher
            .dead_letter(delivery, failure, &LocalAttempts::default(), reply);
    }

    fn refusal(
        &self,
        delivery: &Tracked,
        failure: &MessageFailure,
        code: &str,
    ) -> Option<Publication> {
        let executor = &self.executor;
        if !executor.handlers.send_replies() {
            return None;
        }
        let target = ReplyTarget::of_properties(
            &delivery.message().properties,
            executor.instance_id.as_deref(),
            self.any_reply_queue,
        );
        let body = target.failure(&failure.error, Some(code));
        target.publication(body, executor.max_body())
    }

    /// Publishes the reply, then acknowledges the delivery.
    fn reply(&self, delivery: Tracked, target: &ReplyTarget<'_>, body: Vec<u8>) {
        delivery.done(target.publication(body, self.executor.max_body()));
    }

    /// Checks that each field of the envelope fits into its AMQP field, and that the reply goes to
    /// a queue that may take replies.
    fn check(&self, envelope: &ServiceMessage<'_>, message: &Message) -> Result<(), String> {
        for (field, text) in [
            ("message id", &*envelope.message_id),
            ("correlation id", &*envelope.correlation_id),
            ("source service", &*envelope.source_service),
        ] {
            check_short_string(field, text).map_err(|error| error.to_string())?;
        }
        check_action(&envelope.action).map_err(|error| error.to_string())?;
        let queue = ReplyTarget::queue_of(envelope, &message.properties);
        match queue.filter(|_| self.executor.handlers.send_replies()) {
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
