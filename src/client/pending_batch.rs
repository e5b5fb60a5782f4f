use std::collections::VecDeque;
use std::fmt;

use super::batch_replies::{BatchReplies, End};
use super::chunk::{Calls, Chunk, InChunk, Part, PartSent};
use super::event::{Outcome, ReplyBody};
use super::request::Limit;
use super::{Sent, together};
use crate::error::{Error, ErrorKind, Result};
use crate::message::batch::BATCH_ACTION;
use crate::message::range_in;

/// The replies to a [`Batch`](crate::Batch), still to come. Dropping it forgets the calls:
/// what has not left is not sent, and what has may run.
#[must_use = "dropping a PendingBatch forgets its calls"]
pub struct PendingBatch {
    calls: Calls,
    limit: Limit,
    parts: VecDeque<Part>,
    ends: Vec<Option<End>>,
    /// The bodies of messages that hold replies.
    bodies: Vec<ReplyBody>,
}

impl PendingBatch {
    pub(super) fn new(
        calls: Calls,
        limit: Limit,
        parts: Vec<Part>,
        ends: Vec<Option<End>>,
    ) -> Self {
        Self {
            calls,
            limit,
            parts: parts.into(),
            ends,
            bodies: Vec::new(),
        }
    }

    /// Blocks until the last call has ended, at most until the deadline. The replies say
    /// what became of each.
    pub fn wait(mut self) -> BatchReplies {
        while let Some(Part { chunk, sent }) = self.parts.pop_front() {
            match sent {
                PartSent::Alone(sent) => self.wait_alone(&chunk, &sent),
                PartSent::Together(sent) => {
                    if !self.wait_together(&chunk, &sent) {
                        let sent = self.calls.send_alone(&chunk, self.limit);
                        self.parts.push_back(Part { chunk, sent });
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
            ends: std::mem::take(&mut self.ends),
        }
    }

    /// Waits for a message's answer; false if the service does not know what it means.
    fn wait_together(&mut self, chunk: &Chunk, sent: &Result<Sent>) -> bool {
        let calls = &chunk.calls;
        let outcome = self.outcome(sent, calls);
        if let Some(outcome) = &outcome {
            let inner = &self.calls.client.inner;
            inner.credit(self.calls.target(BATCH_ACTION), outcome);
        }
        match outcome {
            Some(Outcome::Reply { body, .. }) if together::is_unknown(&body) => {
                let together = &self.calls.client.inner.router.together;
                together.remember(&self.calls.routing_key());
                return false;
            }
            Some(Outcome::Reply { body, .. }) => self.replied(calls, body),
            Some(outcome) => self.end(calls, || End::Outcome(outcome.clone())),
            None => {}
        }
        true
    }

    fn wait_alone(&mut self, chunk: &Chunk, sent: &[Result<Sent>]) {
        for (call, sent) in chunk.calls.iter().zip(sent) {
            if let Some(outcome) = self.outcome(sent, std::slice::from_ref(call)) {
                self.ends[call.at] = Some(End::Outcome(outcome));
            }
        }
    }

    /// Waits for what becomes of a message. Where that is an error, so it is for its calls.
    fn outcome(&mut self, sent: &Result<Sent>, calls: &[InChunk]) -> Option<Outcome> {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                self.end(calls, || End::Failed(error.same()));
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
                self.ends[call.at] = Some(End::Failed(error));
            }
        }
        outcome
    }

    /// A message has been answered.
    fn replied(&mut self, calls: &[InChunk], body: ReplyBody) {
        let in_body = self.bodies.len();
        let replies = together::replies(&body);
        let Some(replies) = replies.filter(|replies| replies.len() == calls.len()) else {
            // An error, which is then each call's own; or it is not to be understood.
            let is_success = together::is_success(&body);
            return self.end(calls, || match is_success {
                false => End::Outcome(Outcome::Reply {
                    body: body.clone(),
                    after: None,
                    _request: None,
                }),
                true => End::Failed(Error::new(
                    ErrorKind::Decode,
                    "the batch was answered with something else than as many replies",
                )),
            });
        };
        for (call, reply) in calls.iter().zip(&replies) {
            let range = range_in(&body, reply.get());
            self.ends[call.at] = Some(End::Reply { in_body, range });
        }
        self.bodies.push(body);
    }

    fn end(&mut self, calls: &[InChunk], how: impl Fn() -> End) {
        for call in calls {
            self.ends[call.at] = Some(how());
        }
    }
}

impl Drop for PendingBatch {
    fn drop(&mut self) {
        for sent in self.parts.iter().flat_map(Part::sent) {
            self.calls.client.inner.forget(sent);
        }
    }
}

impl fmt::Debug for PendingBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingBatch")
            .field("service", &self.calls.service)
            .field("calls", &self.ends.len())
            .finish_non_exhaustive()
    }
}
