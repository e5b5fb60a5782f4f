use std::fmt;

use super::batch::{Calls, Chunk, InChunk};
use super::batch_replies::{BatchReplies, End};
use super::event::Outcome;
use super::request::Limit;
use super::{Sent, together};
use crate::error::{Error, ErrorKind, Result};

/// The replies to a [`Batch`](crate::Batch), still to come. Dropping it forgets the calls,
/// sent or not.
#[must_use = "dropping a PendingBatch forgets its calls"]
pub struct PendingBatch {
    calls: Calls,
    limit: Limit,
    parts: Vec<Part>,
    ends: Vec<Option<End>>,
    /// The bodies of messages that hold replies.
    bodies: Vec<Vec<u8>>,
}

/// A message of a batch.
pub(super) struct Part {
    pub(super) chunk: Chunk,
    pub(super) sent: Result<Sent>,
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
            parts,
            ends,
            bodies: Vec::new(),
        }
    }

    /// Blocks until the last call has ended, at most until the deadline. The replies say
    /// what became of each.
    pub fn wait(mut self) -> BatchReplies {
        let mut not_understood = Vec::new();
        while let Some(part) = self.parts.pop() {
            let calls = &part.chunk.calls;
            match self.outcome(&part.sent, calls) {
                Some(Outcome::Reply { body, .. }) if calls.len() > 1 => {
                    match together::is_unknown(&body) {
                        true => not_understood.push(part.chunk),
                        false => self.replied(calls, body),
                    }
                }
                Some(outcome) => self.end(calls, |_| End::Outcome(outcome.clone())),
                None => {}
            }
        }
        self.one_by_one(&not_understood);
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

    /// Waits for what becomes of a message. Where that is an error, so it is for its calls.
    fn outcome(&mut self, sent: &Result<Sent>, calls: &[InChunk]) -> Option<Outcome> {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                self.end(calls, |_| End::Failed(error.same()));
                return None;
            }
        };
        let outcome = self.calls.client.inner.outcome(sent);
        if outcome.is_none() {
            for call in calls {
                let target = self.calls.target(&self.calls.actions[call.at]);
                let error = self.calls.client.inner.timed_out(target, sent);
                self.ends[call.at] = Some(End::Failed(error));
            }
        }
        outcome
    }

    /// A message has been answered.
    fn replied(&mut self, calls: &[InChunk], body: Vec<u8>) {
        let in_body = self.bodies.len();
        let replies = together::replies(&body);
        let Some(replies) = replies.filter(|replies| replies.len() == calls.len()) else {
            // An error, which is then each call's own; or it is not to be understood.
            let is_error = together::is_error(&body);
            return self.end(calls, |_| match is_error {
                true => End::Outcome(Outcome::Reply {
                    body: body.clone(),
                    after: None,
                }),
                false => End::Failed(Error::new(
                    ErrorKind::Decode,
                    "the batch was answered with something else than as many replies",
                )),
            });
        };
        let start = body.as_ptr() as usize;
        for (call, reply) in calls.iter().zip(&replies) {
            let at = reply.get().as_ptr() as usize - start;
            let range = at..at + reply.get().len();
            self.ends[call.at] = Some(End::Reply { in_body, range });
        }
        self.bodies.push(body);
    }

    /// Calls those again, one message each, whose service does not understand batches.
    fn one_by_one(&mut self, chunks: &[Chunk]) {
        let calls = &self.calls;
        let alone: Vec<(&InChunk, Result<Sent>)> = chunks
            .iter()
            .flat_map(|chunk| chunk.calls.iter().map(move |call| (chunk, call)))
            .map(|(chunk, call)| (call, calls.send_alone(chunk, call, self.limit)))
            .collect();
        for (call, sent) in alone {
            let call = std::slice::from_ref(call);
            if let Some(outcome) = self.outcome(&sent, call) {
                self.end(call, |_| End::Outcome(outcome.clone()));
            }
        }
    }

    fn end(&mut self, calls: &[InChunk], how: impl Fn(&InChunk) -> End) {
        for call in calls {
            self.ends[call.at] = Some(how(call));
        }
    }
}

impl Drop for PendingBatch {
    fn drop(&mut self) {
        for sent in self.parts.iter().flat_map(|part| &part.sent) {
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
