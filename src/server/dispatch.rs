use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::Context;
use super::handler::{Handler, HandlerError};
use crate::deadline;
use crate::message::{CODE_UNKNOWN_ACTION, DEADLINE_HEADER, Reply, ServiceMessage};
use crate::transport::{Delivery, Properties, Publication};

/// What a worker does with a delivery: decode, run the handler, reply, ack.
pub(super) struct Dispatch {
    service: String,
    handlers: HashMap<String, Handler>,
    max_body: usize,
}

/// The answer to a request, and where it goes.
struct Answer {
    body: Vec<u8>,
    reply_to: Option<String>,
    correlation_id: Option<String>,
    message_id: String,
}

impl Dispatch {
    pub(super) fn new(
        service: String,
        handlers: HashMap<String, Handler>,
        max_body: usize,
    ) -> Self {
        Self {
            service,
            handlers,
            max_body,
        }
    }

    /// Handles one delivery to its end, whatever is in it.
    pub(super) fn process(&self, delivery: Delivery) {
        match ServiceMessage::decode(&delivery.message().body) {
            Ok(message) => {
                let answer = self.answer(&message, &delivery);
                drop(message);
                self.reply(delivery, answer);
            }
            Err(error) => {
                log::warn!(target: "coney::server", "{}: {error}", self.service);
                self.refuse(delivery, &error.to_string());
            }
        }
    }

    fn answer(&self, message: &ServiceMessage<'_>, delivery: &Delivery) -> Answer {
        let properties = &delivery.message().properties;
        let deadline = message
            .headers
            .get::<u64>(DEADLINE_HEADER)
            .map(|at| deadline::after(deadline::until_unix_millis(at)));
        let context = Context::new(message, delivery.is_redelivered(), deadline);
        let result = self.run(&context, message);
        let body = result.unwrap_or_else(|error| {
            // What a handler answers is its own business; the rest is a fault
            // in one of the two programs.
            let level = match error.code() {
                Some("bad_request" | "bad_reply" | "expired" | CODE_UNKNOWN_ACTION) => {
                    log::Level::Warn
                }
                _ => log::Level::Debug,
            };
            log::log!(
                target: "coney::server", level,
                "{}.{} failed: {}", self.service, message.action, error.message()
            );
            error.into_reply(&message.message_id)
        });
        let correlation_id = properties
            .correlation_id
            .clone()
            .unwrap_or_else(|| message.correlation_id.clone().into_owned());
        Answer {
            body,
            reply_to: match &message.reply_to {
                Some(queue) => Some(queue.clone().into_owned()),
                None => properties.reply_to.clone(),
            },
            correlation_id: Some(correlation_id),
            message_id: message.message_id.clone().into_owned(),
        }
    }

    fn run(
        &self,
        context: &Context<'_>,
        message: &ServiceMessage<'_>,
    ) -> Result<Vec<u8>, HandlerError> {
        let action = &*message.action;
        let Some(handler) = self.handlers.get(action) else {
            return Err(HandlerError::new(format!("Unknown action: {action}"))
                .with_code(CODE_UNKNOWN_ACTION));
        };
        // Nobody waits for it any more, unless the two clocks disagree; then
        // the answer says so.
        if context.remaining() == Some(Duration::ZERO) {
            let fault = format!(
                "{action} was not started: its caller's deadline has passed by the clock of {}",
                self.service
            );
            return Err(HandlerError::new(fault).with_code("expired"));
        }
        // A handler that panics may leave its own state half-changed; coney's
        // is not reachable from it.
        catch_unwind(AssertUnwindSafe(|| handler(context, message.payload))).unwrap_or_else(|_| {
            log::error!(target: "coney::server", "{}.{action} panicked", self.service);
            Err(HandlerError::new(format!("the handler of {action} panicked")).with_code("panic"))
        })
    }

    /// Answers a body that is not an envelope, as far as its properties say
    /// where to. It is rejected rather than acknowledged when nobody is told,
    /// so that a dead-letter policy on the queue can keep it.
    fn refuse(&self, delivery: Delivery, error: &str) {
        let properties = &delivery.message().properties;
        let message_id = properties.message_id.clone().unwrap_or_default();
        let answer = Answer {
            body: Reply::failure(error, Some("bad_envelope"), &message_id),
            reply_to: properties.reply_to.clone(),
            correlation_id: properties.correlation_id.clone(),
            message_id,
        };
        if answer.reply_to.is_some() {
            self.reply(delivery, answer);
        } else {
            delivery.reject(false);
        }
    }

    /// Publishes the reply, then acknowledges.
    fn reply(&self, delivery: Delivery, answer: Answer) {
        let Some(reply_to) = answer.reply_to.filter(|queue| !queue.is_empty()) else {
            return delivery.ack();
        };
        let mut reply = Publication {
            properties: Properties {
                correlation_id: answer.correlation_id,
                ..Properties::json()
            },
            ..Publication::new("", reply_to, answer.body)
        };
        if reply.body.len() > self.max_body {
            let fault = format!(
                "the reply is {} bytes long; at most {} are allowed",
                reply.body.len(),
                self.max_body
            );
            log::warn!(target: "coney::server", "{}: {fault}", self.service);
            let error = HandlerError::new(fault).with_code("reply_too_large");
            reply.body = error.into_reply(&answer.message_id).into();
        }
        delivery.ack_with(reply);
    }
}
