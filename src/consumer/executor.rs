//! From a request to how it ended: is it still wanted, has it been run, and if not, its
//! handler.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Context;
use super::clock_offsets::ClockOffsets;
use super::context::NestedClient;
use super::deduplication::{Admission, Deduplication};
use super::handler::{Handler, HandlerError};
use super::reply_target::ReplyTarget;
use super::request::{DeliveryInfo, Request};
use crate::base::catch::catch;
use crate::base::name::shown;
use crate::message::{Headers, Reply};

/// Those who handle requests, and what goes with them.
pub(crate) struct RequestExecutor {
    /// Whose they are.
    pub(crate) owner: String,
    /// Who answers, where the server has a registry.
    pub(crate) instance_id: Option<String>,
    pub(crate) handlers: Handlers,
    pub(crate) deduplication: Option<Arc<Deduplication>>,
    pub(crate) nested: Arc<NestedClient>,
    /// The callers' clocks.
    pub(crate) clocks: ClockOffsets,
    /// After how long a caller that was refused should ask again.
    pub(crate) busy_retry_after: Duration,
}

/// Who handles what comes out of a queue.
pub(crate) enum Handlers {
    /// A service's, which answer.
    ByAction(HashMap<String, Handler>),
    /// A subscription's, for whatever its pattern fits. Events are not answered.
    One(Handler),
}

impl Handlers {
    /// The one for an action.
    pub(super) fn get(&self, action: &str) -> Option<&Handler> {
        match self {
            Self::ByAction(handlers) => handlers.get(action),
            Self::One(handler) => Some(handler),
        }
    }

    pub(super) fn answer(&self) -> bool {
        matches!(self, Self::ByAction(_))
    }
}

/// How a request ended that was not refused.
pub(super) enum HandlerOutcome {
    /// It was answered, or there was nothing to answer.
    Done(Option<Vec<u8>>),
    Failed(HandlerError),
    /// Another worker is at the same request.
    InProgress,
    /// Something is away that the server needs; why. Nothing ran.
    Unavailable(&'static str),
}

impl RequestExecutor {
    /// The largest reply, in bytes.
    pub(super) fn max_body(&self) -> usize {
        self.nested.broker.max_body()
    }

    pub(super) fn busy_retry_after(&self) -> Duration {
        self.busy_retry_after
    }

    /// The moment when the caller of a request stops waiting, if it says, and if it does.
    pub(super) fn deadline(
        &self,
        headers: &Headers<'_>,
        info: DeliveryInfo,
        answer: &ReplyTarget<'_>,
    ) -> Option<Instant> {
        let source = answer.reply_to?;
        self.clocks
            .deadline(headers, source, info.arrived, info.is_copy)
    }

    /// Runs the handler if the request is still wanted and not a repetition.
    pub(super) fn run(
        &self,
        request: &Request<'_>,
        handler: &Handler,
        info: DeliveryInfo,
        answer: &ReplyTarget<'_>,
    ) -> HandlerOutcome {
        let deadline = self.deadline(&request.headers, info, answer);
        let context = Context {
            request,
            redelivered: info.redelivered,
            attempt: u32::try_from(info.failed + 1).unwrap_or(u32::MAX),
            deadline,
            wants_reply: answer.is_wanted(),
            nested: &self.nested,
            instance_id: self.instance_id.as_deref(),
        };
        // Its caller has given up.
        if context.remaining() == Some(Duration::ZERO) {
            let fault = format!(
                "{} was not started: its caller's deadline had passed when {} came to it",
                request.action, self.owner
            );
            return self.failed(request, HandlerError::new(fault).with_code("expired"));
        }
        let claim = match &self.deduplication {
            None => None,
            Some(_) if request.message_id.is_empty() => None,
            Some(deduplication) => match deduplication.admit(request) {
                Admission::Run(claim) => Some(claim),
                Admission::Repeated(_) if !answer.is_wanted() => return HandlerOutcome::Done(None),
                Admission::Repeated(reply) if Reply::decode(&reply).is_ok() => {
                    return HandlerOutcome::Done(Some(reply));
                }
                Admission::Repeated(_) => {
                    let fault = "the request was handled before, and its reply is unreadable";
                    let error = HandlerError::new(fault).with_code("deduplication_failed");
                    return self.failed(request, error);
                }
                Admission::InProgress => return HandlerOutcome::InProgress,
                Admission::Unknown => {
                    return HandlerOutcome::Unavailable(
                        "whether the request is a repeated one cannot be found out now",
                    );
                }
            },
        };
        // A handler that panics may leave its own state half-changed; coney's
        // is not reachable from it.
        let run = || handler(&context, request.payload);
        match catch(run) {
            Ok(Ok(body)) => {
                if let Some(claim) = claim {
                    claim.complete(&body);
                }
                HandlerOutcome::Done(answer.is_wanted().then_some(body))
            }
            Ok(Err(error)) => {
                // Another attempt may succeed, unless the handler says that it will not.
                if let Some(claim) = claim
                    && answer.is_wanted()
                    && !error.is_retryable()
                    && !error.is_undecodable()
                {
                    claim.complete(&answer.failure(error.message(), error.code()));
                }
                self.failed(request, error)
            }
            Err(panic) => {
                let action = shown(request.action);
                log::error!(
                    target: "coney::worker",
                    "{}.{action} panicked over the message {}: {}",
                    self.owner, shown(request.message_id), shown(&panic)
                );
                HandlerOutcome::Failed(panicked(&action))
            }
        }
    }

    fn failed(&self, request: &Request<'_>, error: HandlerError) -> HandlerOutcome {
        // What a handler answers is its own business; the rest is a fault in one
        // of the two programs.
        let level = match error.code() {
            Some("bad_request" | "bad_reply" | "expired") => log::Level::Warn,
            _ => log::Level::Debug,
        };
        log::log!(
            target: "coney::worker", level,
            "{}.{} failed ({}): {}", self.owner, shown(request.action),
            shown(request.message_id), error.message()
        );
        HandlerOutcome::Failed(error)
    }
}

/// The contract's own words, which peers look for.
pub(super) fn unknown_action(action: &str) -> String {
    format!("Unknown action: {action}")
}

pub(super) fn panicked(action: &str) -> HandlerError {
    HandlerError::new(format!("the handler of {action} panicked")).with_code("panic")
}
