use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::Context;
use super::answer::Answer;
use super::context::Nested;
use super::deduplication::{Admission, Deduplication};
use super::handler::{Handler, HandlerError};
use super::mover::{Failure, Mover, Reason};
use crate::deadline;
use crate::message::{CODE_UNKNOWN_ACTION, DEADLINE_HEADER, ServiceMessage};
use crate::name::{check_action, check_short_string};
use crate::topology;
use crate::transport::Delivery;

/// What a worker does with a delivery, whatever is in it: decode, run the
/// handler, reply, ack; or see to it that it is tried again or kept.
pub(crate) struct Dispatch {
    /// Who answers, where the server has a registry.
    pub(crate) instance_id: Option<String>,
    pub(crate) handlers: Handlers,
    pub(crate) max_body: usize,
    pub(crate) mover: Mover,
    pub(crate) deduplication: Option<Deduplication>,
    pub(crate) nested: Arc<Nested>,
}

/// Who handles what comes out of a queue.
pub(crate) enum Handlers {
    /// A service's, which answer.
    ByAction(HashMap<String, Handler>),
    /// A subscription's, for whatever its pattern fits. Events are not answered.
    One(Handler),
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

/// How a request ended that was not refused.
enum Verdict {
    /// It was answered, or there was nothing to answer.
    Done(Option<Vec<u8>>),
    Failed(HandlerError),
    /// Another worker is at the same request.
    InProgress,
}

impl Dispatch {
    /// Handles one delivery to its end, unless it is to come again.
    pub(crate) fn process(&self, delivery: Delivery, attempt: Attempt) -> Option<Again> {
        // Before anything of it is looked at: it may be what kills workers.
        let delivery = self.mover.count_redelivery(delivery, |delivery, failure| {
            self.refuse(delivery, &failure, "poison");
        })?;
        let message = match ServiceMessage::decode(&delivery.message().body) {
            Ok(message) => message,
            Err(error) => {
                let failure = Failure::new(Reason::Undecodable, error.to_string());
                self.refuse(delivery, &failure, "bad_envelope");
                return None;
            }
        };
        if let Err(fault) = check(&message, &delivery) {
            drop(message);
            let failure = Failure::new(Reason::Undecodable, fault);
            self.refuse(delivery, &failure, "bad_envelope");
            return None;
        }
        let mut answer = Answer::to(&message, &delivery, self.instance_id.as_deref());
        let handler = match &self.handlers {
            Handlers::ByAction(handlers) => handlers.get(&*message.action),
            Handlers::One(handler) => {
                answer = answer.unwanted();
                Some(handler)
            }
        };
        let Some(handler) = handler else {
            let fault = format!("Unknown action: {}", message.action);
            drop(message);
            let body = answer.failure(&fault, Some(CODE_UNKNOWN_ACTION));
            let reply = answer.publication(body, self.max_body);
            let failure = Failure::new(Reason::NoHandler, fault);
            self.mover.bury(delivery, &failure, &attempt, reply);
            return None;
        };
        let verdict = self.handle(&message, handler, &delivery, &attempt, &answer);
        drop(message);
        match verdict {
            Verdict::Done(None) => delivery.ack(),
            Verdict::Done(Some(body)) => self.reply(delivery, &answer, body),
            Verdict::InProgress => return self.mover.postpone(delivery, attempt),
            Verdict::Failed(error) if answer.is_wanted() => {
                let body = answer.failure(error.message(), error.code());
                self.reply(delivery, &answer, body);
            }
            Verdict::Failed(error) => return self.mover.failed(delivery, attempt, error),
        }
        None
    }

    /// Runs the handler if the request is still wanted and not a repetition.
    fn handle(
        &self,
        message: &ServiceMessage<'_>,
        handler: &Handler,
        delivery: &Delivery,
        attempt: &Attempt,
        answer: &Answer<'_>,
    ) -> Verdict {
        let deadline = message
            .headers
            .get::<u64>(DEADLINE_HEADER)
            .filter(|_| answer.is_wanted())
            .map(|at| deadline::after(deadline::until_unix_millis(at)));
        let redelivered = self.mover.was_redelivered(delivery);
        let failed = self.mover.failed_attempts(delivery, attempt);
        let attempt = u32::try_from(failed + 1).unwrap_or(u32::MAX);
        let context = Context {
            message,
            redelivered,
            attempt,
            deadline,
            nested: &self.nested,
            instance_id: self.instance_id.as_deref(),
        };
        // Nobody waits for it any more, unless the two clocks disagree; then
        // the answer says so.
        if context.remaining() == Some(Duration::ZERO) {
            let fault = format!(
                "{} was not started: its caller's deadline has passed by the clock of {}",
                message.action, self.mover.inbox.owner
            );
            return self.failed(message, HandlerError::new(fault).with_code("expired"));
        }
        let claim = match &self.deduplication {
            None => None,
            Some(_) if message.message_id.is_empty() => None,
            Some(deduplication) => match deduplication.admit(&message.message_id) {
                Admission::Run(claim) => Some(claim),
                Admission::Repeated(reply) => {
                    return Verdict::Done(answer.is_wanted().then_some(reply));
                }
                Admission::InProgress => return Verdict::InProgress,
                Admission::Unknown(error) => return self.failed(message, error),
            },
        };
        // A handler that panics may leave its own state half-changed; coney's
        // is not reachable from it.
        let run = AssertUnwindSafe(|| handler(&context, message.payload));
        match catch_unwind(run) {
            Ok(Ok(body)) => {
                if let Some(claim) = claim {
                    claim.complete(&body);
                }
                Verdict::Done(answer.is_wanted().then_some(body))
            }
            Ok(Err(error)) => {
                if let (Some(claim), true) = (claim, answer.is_wanted()) {
                    claim.complete(&answer.failure(error.message(), error.code()));
                }
                self.failed(message, error)
            }
            Err(_) => {
                let action = shown(&message.action);
                log::error!(target: "coney::worker", "{}.{action} panicked", self.mover.inbox.owner);
                let fault = format!("the handler of {action} panicked");
                Verdict::Failed(HandlerError::new(fault).with_code("panic"))
            }
        }
    }

    fn failed(&self, message: &ServiceMessage<'_>, error: HandlerError) -> Verdict {
        // What a handler answers is its own business; the rest is a fault in one
        // of the two programs.
        let level = match error.code() {
            Some("bad_request" | "bad_reply" | "expired") => log::Level::Warn,
            _ => log::Level::Debug,
        };
        log::log!(
            target: "coney::worker", level,
            "{}.{} failed: {}", self.mover.inbox.owner, shown(&message.action), error.message()
        );
        Verdict::Failed(error)
    }

    /// Answers a message that is not looked into, as far as its properties say
    /// where to, and keeps it among the dead letters.
    fn refuse(&self, delivery: Delivery, failure: &Failure, code: &str) {
        let answer = Answer::to_properties(&delivery, self.instance_id.as_deref());
        let reply = match self.handlers {
            Handlers::ByAction(_) => {
                let body = answer.failure(&failure.error, Some(code));
                answer.publication(body, self.max_body)
            }
            Handlers::One(_) => None,
        };
        self.mover
            .bury(delivery, failure, &Attempt::default(), reply);
    }

    /// Publishes the reply, then acknowledges.
    fn reply(&self, delivery: Delivery, answer: &Answer<'_>, body: Vec<u8>) {
        match answer.publication(body, self.max_body) {
            Some(reply) => delivery.ack_with(reply),
            None => delivery.ack(),
        }
    }
}

/// Nothing in the envelope is longer than what AMQP has for it, and the reply
/// goes nowhere it could do harm.
fn check(message: &ServiceMessage<'_>, delivery: &Delivery) -> Result<(), String> {
    for (what, text) in [
        ("message id", &*message.message_id),
        ("correlation id", &*message.correlation_id),
        ("source service", &*message.source_service),
    ] {
        check_short_string(what, text).map_err(|error| error.to_string())?;
    }
    check_action(&message.action).map_err(|error| error.to_string())?;
    let properties = &delivery.message().properties;
    let reply_to = message
        .reply_to
        .as_deref()
        .or(properties.reply_to.as_deref());
    match reply_to {
        Some(queue) if !topology::may_take_replies(queue) => Err(format!(
            "reply_to names {:?}, which is not a queue for replies",
            shown(queue)
        )),
        Some(queue) => check_short_string("reply queue", queue).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// A name from the network as a log may show it: short and on one line.
fn shown(name: &str) -> Cow<'_, str> {
    const LONGEST: usize = 80;
    if name.len() <= LONGEST && !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    let start: String = name.chars().take(LONGEST).collect();
    Cow::Owned(start.escape_debug().to_string())
}
