//! The execution of one request: the checks of its deadline and of repetition, then its handler.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Context;
use super::clock_offsets::ClockOffsets;
use super::context::NestedClient;
use super::deduplication::{Admission, Deduplication};
use super::handler::Handler;
use super::handler_error::HandlerError;
use super::limits::{LimitOutcome, OverLimit, RequestLimits};
use super::load::{Arrival, Entrance, LoadGate};
use super::reply_target::ReplyTarget;
use super::request::{DeliveryInfo, Request};
use super::turn::Turn;
use crate::base::catch::catch;
use crate::base::name::shown;
use crate::error_code;
use crate::message::{Headers, Reply, TIMEOUT_HEADER};

/// The handlers of a server or a subscription, and the settings that apply to all of them.
pub(crate) struct RequestExecutor {
    /// The service that the handlers belong to, for logs.
    pub(crate) owner: String,
    /// The instance id in replies, if the server has a registry.
    pub(crate) instance_id: Option<String>,
    pub(crate) handlers: Handlers,
    pub(crate) load: Arc<LoadGate>,
    pub(crate) limits: RequestLimits,
    /// The longest time for which a request is put off that is over a limit.
    pub(crate) longest_turn: Duration,
    pub(crate) deduplication: Option<Arc<Deduplication>>,
    pub(crate) nested: Arc<NestedClient>,
    /// The offsets of the callers' clocks.
    pub(crate) clocks: ClockOffsets,
    /// The delay that a `busy` reply asks the caller to wait before it retries.
    pub(crate) busy_retry_after: Duration,
}

/// The handlers of one queue's messages.
pub(crate) enum Handlers {
    /// A service's handlers, which reply.
    ByAction(HashMap<String, NumberedHandler>),
    /// A subscription's handler, for all events that match its pattern. Events get no reply.
    One(NumberedHandler),
}

/// A handler, and its number among those that share a [`LoadGate`].
pub(crate) struct NumberedHandler {
    pub(crate) number: usize,
    pub(crate) run: Handler,
}

impl Handlers {
    /// Returns the handler of an action.
    pub(super) fn get(&self, action: &str) -> Option<&NumberedHandler> {
        match self {
            Self::ByAction(handlers) => handlers.get(action),
            Self::One(handler) => Some(handler),
        }
    }

    pub(super) fn send_replies(&self) -> bool {
        matches!(self, Self::ByAction(_))
    }
}

/// The outcome of a request.
pub(super) enum HandlerOutcome {
    /// The request was handled; the body of the reply, if one is wanted.
    Done(Option<Vec<u8>>),
    Failed(HandlerError),
    /// Another worker is handling the same request.
    InProgress,
    /// The request cannot be handled now; nothing has been done.
    Unavailable(Unavailable),
    /// The request is over a rate limit; nothing has been done.
    OverLimit(OverLimit),
}

/// The reason why a request cannot be handled now.
pub(super) struct Unavailable {
    pub(super) fault: Cow<'static, str>,
    /// The delay that the handler names; `None` if it is not the handler that refuses.
    pub(super) retry_after: Option<Duration>,
}

impl RequestExecutor {
    /// Returns the largest size of a reply, in bytes.
    pub(super) fn max_body(&self) -> usize {
        self.nested.broker.max_body()
    }

    /// Returns the body of a `busy` reply.
    pub(super) fn busy_reply(&self, target: &ReplyTarget<'_>, refusal: &Unavailable) -> Vec<u8> {
        let retry_after = refusal.retry_after.unwrap_or(self.busy_retry_after);
        target.busy(error_code::BUSY, &refusal.fault, retry_after)
    }

    /// Creates the refusal of a call whose action has as many requests as it may.
    pub(super) fn full(&self, action: &str, number: usize) -> Unavailable {
        let fault = format!(
            "{}.{} has as many requests as may run and wait at a time (at_most)",
            self.owner,
            shown(action)
        );
        Unavailable {
            fault: fault.into(),
            retry_after: self.load.median(number),
        }
    }

    /// Returns the body of a `rate_limited` reply.
    pub(super) fn limited_reply(
        &self,
        target: &ReplyTarget<'_>,
        action: &str,
        over: OverLimit,
    ) -> Vec<u8> {
        let (owner, after) = (&self.owner, over.retry_after);
        let fault = format!(
            "{owner}.{} is over its rate limit, which has its next free place in about {after:?}",
            shown(action)
        );
        target.busy(error_code::RATE_LIMITED, &fault, after)
    }

    /// Returns the moment when the caller of a request stops waiting, if the caller waits for a
    /// reply and the headers name a deadline.
    pub(super) fn deadline(
        &self,
        headers: &Headers<'_>,
        info: DeliveryInfo,
        target: &ReplyTarget<'_>,
    ) -> Option<Instant> {
        let source = target.reply_to?;
        self.clocks
            .deadline(headers, source, info.arrived, info.is_copy)
    }

    /// Runs the handler, unless the caller's deadline has passed or the request is a repeated one.
    pub(super) fn run(
        &self,
        request: &Request<'_>,
        handler: &NumberedHandler,
        info: DeliveryInfo,
        target: &ReplyTarget<'_>,
        turn: &dyn Turn,
    ) -> HandlerOutcome {
        let deadline = self.deadline(&request.headers, info, target);
        let context = Context {
            request,
            redelivered: info.redelivered,
            attempt: u32::try_from(info.failed + 1).unwrap_or(u32::MAX),
            deadline,
            wants_reply: target.is_reply_wanted(),
            nested: &self.nested,
            instance_id: self.instance_id.as_deref(),
        };
        // The caller has stopped waiting.
        let left = context.remaining();
        if left == Some(Duration::ZERO) {
            return self.expired(request, "its caller's deadline had passed");
        }
        let arrival = Arrival {
            action: handler.number,
            is_call: target.is_reply_wanted(),
            left,
            timeout: self.timeout_of(request),
            opens_message: info.opens_message,
        };
        // A request that waits for its twin was admitted before.
        let entrance = match info.is_admitted {
            true => Entrance::Admitted,
            false => self.load.admit(turn, &arrival),
        };
        let mut running = match entrance {
            Entrance::Run(running) => Some(running),
            Entrance::Admitted => None,
            Entrance::Expired => {
                return self.expired(request, "its caller has less time left than it takes");
            }
            Entrance::Busy(after) => {
                let fault = format!(
                    "{} is overloaded: requests wait for about {after:?}",
                    self.owner
                );
                return HandlerOutcome::Unavailable(Unavailable {
                    fault: fault.into(),
                    retry_after: Some(after),
                });
            }
        };
        // Before anything is claimed: the store is spared what is over the limit.
        if !info.is_admitted {
            match self
                .limits
                .admit(&context, !target.is_reply_wanted(), self.longest_turn)
            {
                LimitOutcome::Admitted => {}
                LimitOutcome::Over(over) => {
                    self.log_over(request, over);
                    return HandlerOutcome::OverLimit(over);
                }
                LimitOutcome::Panicked(panic) => {
                    return self.panicked(request, "the key of its limit", &panic);
                }
            }
        }
        let claim = match &self.deduplication {
            None => None,
            Some(_) if request.message_id.is_empty() => None,
            Some(deduplication) => match deduplication.admit(request) {
                Admission::Run(claim) => Some(claim),
                Admission::Repeated(_) if !target.is_reply_wanted() => {
                    return HandlerOutcome::Done(None);
                }
                Admission::Repeated(reply) if Reply::decode(&reply).is_ok() => {
                    return HandlerOutcome::Done(Some(reply));
                }
                Admission::Repeated(_) => {
                    let fault = "the request was handled before, and its reply is unreadable";
                    let error = HandlerError::new(fault)
                        .with_reserved_code(error_code::DEDUPLICATION_FAILED);
                    return self.failed(request, error);
                }
                Admission::InProgress => return HandlerOutcome::InProgress,
                Admission::StoreUnavailable => {
                    let fault =
                        "the reply store is unavailable, so repeated requests cannot be detected";
                    return HandlerOutcome::Unavailable(Unavailable {
                        fault: fault.into(),
                        retry_after: None,
                    });
                }
            },
        };
        // A handler that panics may leave its own state half-changed. It cannot reach the library's
        // state.
        if let Some(running) = &mut running {
            running.has_run = true;
        }
        let run = || (handler.run)(&context, request.payload);
        match self.load.watched(turn, request.action, || catch(run)) {
            Ok(Ok(body)) => {
                if let Some(claim) = claim {
                    claim.complete(&body);
                }
                HandlerOutcome::Done(target.is_reply_wanted().then_some(body))
            }
            // Nothing has been done: the claim is released.
            Ok(Err(error)) if error.is_busy() => {
                self.log_error(request, &error);
                HandlerOutcome::Unavailable(Unavailable {
                    fault: error.message().to_owned().into(),
                    retry_after: error.retry_delay(),
                })
            }
            Ok(Err(error)) => {
                // Another attempt may succeed, so the error is stored as the reply only if the
                // handler rules out a retry.
                if let Some(claim) = claim
                    && target.is_reply_wanted()
                    && !error.is_retryable()
                    && !error.is_undecodable()
                {
                    claim.complete(&target.failure(error.message(), error.code()));
                }
                self.failed(request, error)
            }
            Err(panic) => self.panicked(request, "the handler", &panic),
        }
    }

    /// Returns the whole time that the caller of a request has, if it matters.
    fn timeout_of(&self, request: &Request<'_>) -> Option<Duration> {
        if !self.load.uses_timeouts() {
            return None;
        }
        request
            .headers
            .get(TIMEOUT_HEADER)
            .map(Duration::from_millis)
    }

    fn expired(&self, request: &Request<'_>, why: &str) -> HandlerOutcome {
        let fault = format!(
            "{} was not started by {}: {why}",
            request.action, self.owner
        );
        let error = HandlerError::new(fault).with_reserved_code(error_code::EXPIRED);
        self.failed(request, error)
    }

    fn panicked(&self, request: &Request<'_>, what: &str, panic: &str) -> HandlerOutcome {
        let action = shown(request.action);
        log::error!(
            target: "coney::worker",
            "{}.{action}: {what} panicked at the message {}: {}",
            self.owner, shown(request.message_id), shown(panic)
        );
        HandlerOutcome::Failed(panicked(&action))
    }

    fn log_over(&self, request: &Request<'_>, over: OverLimit) {
        log::debug!(
            target: "coney::worker",
            "{}.{} is over its rate limit ({}), the next place is free in {:?}",
            self.owner, shown(request.action), shown(request.message_id), over.retry_after
        );
    }

    fn failed(&self, request: &Request<'_>, error: HandlerError) -> HandlerOutcome {
        self.log_error(request, &error);
        HandlerOutcome::Failed(error)
    }

    fn log_error(&self, request: &Request<'_>, error: &HandlerError) {
        // Errors that a handler returns are part of normal operation. These codes point to a fault
        // in one of the two programs.
        let level = match error.code() {
            Some(error_code::BAD_REQUEST | error_code::BAD_REPLY | error_code::EXPIRED) => {
                log::Level::Warn
            }
            _ => log::Level::Debug,
        };
        log::log!(
            target: "coney::worker", level,
            "{}.{} failed ({}): {}", self.owner, shown(request.action),
            shown(request.message_id), error.message()
        );
    }
}

/// Returns the error text for an unknown action, as the contract words it: peers match on it.
pub(super) fn unknown_action(action: &str) -> String {
    format!("Unknown action: {action}")
}

pub(super) fn panicked(action: &str) -> HandlerError {
    HandlerError::new(format!("the handler of {action} panicked"))
        .with_reserved_code(error_code::PANIC)
}
