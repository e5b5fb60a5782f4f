use std::collections::VecDeque;
use std::fmt;

use super::message::{BatchContext, BatchMessage, BatchedCall, SentAs, SentMessage};
use super::replies::{BatchReplies, BatchedResult};
use crate::client::batch_support;
use crate::client::call::CallDeadline;
use crate::client::call_outcome::{CallOutcome, ReplyBody};
use crate::client::sent_call::SentCall;
use crate::error::{Error, ErrorKind, Result};
use crate::message::batch::BATCH_ACTION;
use crate::message::range_in;

/// The replies to a [`Batch`](crate::Batch), still to come. Dropping it forgets the calls:
/// what has not left is not sent, and what has may run.
#[must_use = "dropping a PendingBatch forgets its calls"]
pub struct PendingBatch {
    calls: BatchContext,
    limit: CallDeadline,
    parts: VecDeque<SentMessage>,
    results: Vec<Option<BatchedResult>>,
    /// The bodies of messages that hold replies.
    bodies: Vec<ReplyBody>,
}

impl PendingBatch {
    pub(super) fn new(
        calls: BatchContext,
        limit: CallDeadline,
        parts: Vec<SentMessage>,
        results: Vec<Option<BatchedResult>>,
    ) -> Self {
        Self {
            calls,
            limit,
            parts: parts.into(),
            results,
            bodies: Vec::new(),
        }
    }

    /// Blocks until the last call has ended, at most until the deadline. The replies say
    /// what became of each.
    pub fn wait(mut self) -> BatchReplies {
        while let Some(SentMessage { message, sent }) = self.parts.pop_front() {
            match sent {
                SentAs::OneByOne(sent) => self.wait_one_by_one(&message, &sent),
                SentAs::BatchSupport(sent) => {
                    if !self.wait_for_batch(&message, &sent) {
                        let sent = self.calls.send_one_by_one(&message, self.limit);
                        self.parts.push_back(SentMessage { message, sent });
                    }
                }
            }
        }
        let calls = &mut self.calls;
        BatchReplies {
            client: calls.client.clone(),
            service: std::mem::take(&mut calls.service),
            actions: std::mem::take(&mut calls.actions),
            batch: calls.number,
            bodies: std::mem::take(&mut self.bodies),
            results: std::mem::take(&mut self.results),
        }
    }

    /// Waits for a message's answer; false if the service does not know what it means.
    fn wait_for_batch(&mut self, message: &BatchMessage, sent: &Result<SentCall>) -> bool {
        let calls = &message.calls;
        let outcome = self.outcome(sent, calls);
        if let Some(outcome) = &outcome {
            let inner = &self.calls.client.inner;
            inner.record_latency(self.calls.target(BATCH_ACTION), outcome);
        }
        match outcome {
            Some(CallOutcome::Reply { body, .. }) if batch_support::is_unknown(&body) => {
                let batch_support = &self.calls.client.inner.router.batch_support;
                batch_support.mark_unsupported(&self.calls.routing_key());
                return false;
            }
            Some(CallOutcome::Reply { body, .. }) => self.replied(calls, body),
            Some(outcome) => self.end(calls, || BatchedResult::CallOutcome(outcome.clone())),
            None => {}
        }
        true
    }

    fn wait_one_by_one(&mut self, message: &BatchMessage, sent: &[Result<SentCall>]) {
        for (call, sent) in message.calls.iter().zip(sent) {
            if let Some(outcome) = self.outcome(sent, std::slice::from_ref(call)) {
                self.results[call.at] = Some(BatchedResult::CallOutcome(outcome));
            }
        }
    }

    /// Waits for what becomes of a message. Where that is an error, so it is for its calls.
    fn outcome(&mut self, sent: &Result<SentCall>, calls: &[BatchedCall]) -> Option<CallOutcome> {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                self.end(calls, || BatchedResult::Failed(error.same()));
                return None;
            }
        };
        let outcome = self.calls.client.inner.outcome(sent);
        if outcome.is_none() {
            for call in calls {
                let target = self.calls.target(&self.calls.actions[call.at]);
                let error = self.calls.client.inner.timed_out(target, sent);
                let error = match calls {
                    [_] => error,
                    more => error.about(format_args!(
                        "{target} or another of the {} calls of its message was not answered",
                        more.len()
                    )),
                };
                self.results[call.at] = Some(BatchedResult::Failed(error));
            }
        }
        outcome
    }

    /// A message has been answered.
    fn replied(&mut self, calls: &[BatchedCall], body: ReplyBody) {
        let in_body = self.bodies.len();
        let replies = batch_support::replies(&body);
        let Some(replies) = replies.filter(|replies| replies.len() == calls.len()) else {
            // An error, which is then each call's own; or it is not to be understood.
            let is_success = batch_support::is_success(&body);
            return self.end(calls, || match is_success {
                false => BatchedResult::CallOutcome(CallOutcome::Reply {
                    body: body.clone(),
                    after: None,
                    _request: None,
                }),
                true => BatchedResult::Failed(Error::new(
                    ErrorKind::Decode,
                    "the batch was answered with something else than as many replies",
                )),
            });
        };
        for (call, reply) in calls.iter().zip(&replies) {
            let range = range_in(&body, reply.get());
            self.results[call.at] = Some(BatchedResult::Reply { in_body, range });
        }
        self.bodies.push(body);
    }

    fn end(&mut self, calls: &[BatchedCall], how: impl Fn() -> BatchedResult) {
        for call in calls {
            self.results[call.at] = Some(how());
        }
    }
}

impl Drop for PendingBatch {
    fn drop(&mut self) {
        for sent in self.parts.iter().flat_map(SentMessage::sent) {
            self.calls.client.inner.forget(sent);
        }
    }
}

impl fmt::Debug for PendingBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingBatch")
            .field("service", &self.calls.service)
            .field("calls", &self.results.len())
            .finish_non_exhaustive()
    }
}
