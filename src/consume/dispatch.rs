use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::batch::Batch;
use super::mover::{Failure, Mover, Reason};
use super::request::{Circumstances, Request};
use super::run::{Runner, Verdict, shown, unknown_action};
use crate::message::batch::BATCH_ACTION;
use crate::message::{CODE_UNKNOWN_ACTION, ServiceMessage};
use crate::name::{check_action, check_short_string};
use crate::topology;
use crate::transport::{Delivery, Message};

/// What a worker does with a delivery, whatever is in it: decode, run the
/// handler, reply, ack; or see to it that it is tried again or kept.
pub(crate) struct Dispatch {
    pub(crate) runner: Runner,
    pub(crate) mover: Mover,
}

/// The attempts at a delivery that have failed while it was held here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) failed: usize,
    pub(crate) first_error: Option<String>,
}

/// A delivery that is to be processed again here, after a while.
pub(crate) struct Again {
    pub(crate) delivery: Delivery,
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
    pub(crate) fn process(&self, delivery: Delivery, attempt: Attempt) -> Processed {
        // Before anything of it is looked at: it may be what kills workers.
        let delivery = self.mover.count_redelivery(delivery, |delivery, failure| {
            self.refuse(delivery, &failure, "poison");
        });
        let Some(delivery) = delivery else {
            return Processed::Done;
        };
        let message = delivery.share_message();
        let envelope = match ServiceMessage::decode(&message.body) {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse_envelope(delivery, error.to_string()),
        };
        if let Err(fault) = check(&envelope, &message) {
            return self.refuse_envelope(delivery, fault);
        }
        let runner = &self.runner;
        let mut answer = Answer::to(&envelope, &message, runner.instance_id.as_deref());
        let circumstances = Circumstances {
            redelivered: self.mover.was_redelivered(&delivery),
            failed: self.mover.failed_attempts(&delivery, &attempt),
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
            let reply = answer.publication(body, runner.max_body);
            let failure = Failure::new(Reason::NoHandler, fault);
            self.mover.bury(delivery, &failure, &attempt, reply);
            return Processed::Done;
        };
        match runner.run(&Request::of(&envelope), handler, circumstances, &answer) {
            Verdict::Done(None) => delivery.ack(),
            Verdict::Done(Some(body)) => self.reply(delivery, &answer, body),
            Verdict::InProgress => return self.mover.postpone(delivery, attempt).into(),
            Verdict::Failed(error) if answer.is_wanted() => {
                let body = answer.failure(error.message(), error.code());
                self.reply(delivery, &answer, body);
            }
            Verdict::Failed(error) => return self.mover.failed(delivery, attempt, error).into(),
        }
        Processed::Done
    }

    fn refuse_envelope(&self, delivery: Delivery, fault: String) -> Processed {
        let failure = Failure::new(Reason::Undecodable, fault);
        self.refuse(delivery, &failure, "bad_envelope");
        Processed::Done
    }

    /// Answers a message that is not looked into, as far as its properties say
    /// where to, and keeps it among the dead letters.
    fn refuse(&self, delivery: Delivery, failure: &Failure, code: &str) {
        let message = delivery.share_message();
        let runner = &self.runner;
        let answer = Answer::to_properties(&message.properties, runner.instance_id.as_deref());
        let body = answer.failure(&failure.error, Some(code));
        let reply = match runner.handlers.answer() {
            true => answer.publication(body, runner.max_body),
            false => None,
        };
        self.mover
            .bury(delivery, failure, &Attempt::default(), reply);
    }

    /// Publishes the reply, then acknowledges.
    fn reply(&self, delivery: Delivery, answer: &Answer<'_>, body: Vec<u8>) {
        match answer.publication(body, self.runner.max_body) {
            Some(reply) => delivery.ack_with(reply),
            None => delivery.ack(),
        }
    }
}

/// Nothing in the envelope is longer than what AMQP has for it, and the reply
/// goes nowhere it could do harm.
fn check(envelope: &ServiceMessage<'_>, message: &Message) -> Result<(), String> {
    for (what, text) in [
        ("message id", &*envelope.message_id),
        ("correlation id", &*envelope.correlation_id),
        ("source service", &*envelope.source_service),
    ] {
        check_short_string(what, text).map_err(|error| error.to_string())?;
    }
    check_action(&envelope.action).map_err(|error| error.to_string())?;
    let reply_to = envelope.reply_to.as_deref();
    match reply_to.or(message.properties.reply_to.as_deref()) {
        Some(queue) if !topology::may_take_replies(queue) => Err(format!(
            "reply_to names {:?}, which is not a queue for replies",
            shown(queue)
        )),
        Some(queue) => check_short_string("reply queue", queue).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}
