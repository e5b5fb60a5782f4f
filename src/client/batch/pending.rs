//! The replies to a batch, still to come.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::message::{BatchContext, BatchMessage, SentCalls, SentMessage};
use super::replies::{BatchReplies, BatchedResult};
use crate::base::deadline;
use crate::client::batch_support;
use crate::client::call::CallDeadline;
use crate::client::call_outcome::{CallOutcome, ReplyBody};
use crate::client::pending::{Pending, Progress, ReadyOn};
use crate::client::sent_call::SentCall;
use crate::error::{Error, ErrorKind};
use crate::message::batch::BATCH_ACTION;
use crate::message::range_in;

/// The replies to a [`Batch`](crate::Batch), still to come. Dropping it abandons the calls:
/// requests that have not been sent are not sent, and others may run.
///
/// If the service does not know batches, waiting sends the calls again, one by one. That may block
/// for look-ups and while the outgoing queue is full: then a wait that is not to block, or not for
/// so long, lasts until it is done, at most until the batch's deadline.
#[must_use = "dropping a PendingBatch abandons its calls"]
pub struct PendingBatch {
    pub(super) context: BatchContext,
    pub(super) limit: CallDeadline,
    pub(super) waiting: VecDeque<SentMessage>,
    results: Vec<Option<BatchedResult>>,
    /// The bodies of messages that hold replies.
    bodies: Vec<ReplyBody>,
    /// True once the replies were taken.
    pub(super) taken: bool,
}

impl PendingBatch {
    pub(super) fn new(
        context: BatchContext,
        limit: CallDeadline,
        sent: impl IntoIterator<Item = SentMessage>,
        results: Vec<Option<BatchedResult>>,
    ) -> Self {
        Self {
            context,
            limit,
            waiting: sent.into_iter().collect(),
            results,
            bodies: Vec::new(),
            taken: false,
        }
    }

    /// Blocks until the last call has ended, at most until the deadline. Each call has its own
    /// result.
    pub fn wait(mut self) -> BatchReplies {
        // The calls have deadlines.
        let far = deadline::after(Duration::MAX);
        self.advance(far);
        self.take_replies()
    }

    /// Blocks until the last call has ended, at most `timeout`, or until calls have been sent
    /// again (see [`PendingBatch`]); `None` means not yet. After the replies have been taken,
    /// every result is [`ErrorKind::Misuse`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<BatchReplies> {
        self.wait_deadline(deadline::after(timeout))
    }

    /// Blocks until the last call has ended, at most until `deadline`, or until calls have been
    /// sent again (see [`PendingBatch`]); `None` means not yet.
    pub fn wait_deadline(&mut self, deadline: Instant) -> Option<BatchReplies> {
        self.advance(deadline).then(|| self.take_replies())
    }

    /// Returns the replies if the last call has ended; blocks only to send calls again (see
    /// [`PendingBatch`]).
    pub fn try_wait(&mut self) -> Option<BatchReplies> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Takes outcomes in the order of the messages, and waits for each at most until `until`.
    /// Returns true if the last has been taken.
    pub(super) fn advance(&mut self, until: Instant) -> bool {
        let broker = &self.context.client.inner.broker;
        if let Err(error) = broker.check_owner_process(&self.context.target(BATCH_ACTION)) {
            self.fail_in_child(&error);
            return true;
        }
        while let Some(message) = self.waiting.pop_front() {
            let Some(outcome) = self.outcome(&message, until) else {
                self.waiting.push_front(message);
                return false;
            };
            let again = self.settle(message, outcome);
            self.waiting.extend(again);
        }
        true
    }

    /// Waits for the outcome of a message, at most until `until`; the inner `None` means that
    /// it has none by its deadline, or was not sent.
    pub(super) fn outcome(
        &self,
        message: &SentMessage,
        until: Instant,
    ) -> Option<Option<CallOutcome>> {
        let Ok(sent) = &message.sent else {
            return Some(None);
        };
        let core = &self.context.client.inner;
        let end = sent.send_state.deadline();
        match sent.wait(until.min(end), core.broker.spin_for()) {
            Some(outcome) => Some(Some(outcome)),
            None if Instant::now() >= end => Some(sent.expire(&core.router).outcome()),
            None => None,
        }
    }

    /// Records the results of a message's calls. Returns the messages that were sent in its
    /// place, if the service does not know batches.
    pub(super) fn settle(
        &mut self,
        message: SentMessage,
        outcome: Option<CallOutcome>,
    ) -> Vec<SentMessage> {
        let SentMessage { sent, calls } = message;
        let outcome = match (outcome, &sent) {
            (Some(outcome), _) => outcome,
            (None, Ok(sent)) => {
                self.timed_out(&calls, sent);
                return Vec::new();
            }
            (None, Err(error)) => {
                self.set_all(&calls, || BatchedResult::Failed(error.duplicate()));
                return Vec::new();
            }
        };
        let SentCalls::Batch(message) = &calls else {
            self.set_all(&calls, || BatchedResult::Outcome(outcome.clone()));
            return Vec::new();
        };
        let core = &self.context.client.inner;
        core.record_latency(self.context.target(BATCH_ACTION), &outcome);
        match outcome {
            CallOutcome::Reply { body, .. } if batch_support::is_unknown(&body) => {
                let support = &core.router.batch_support;
                support.mark_unsupported(&self.context.routing_key());
                return self.context.send_one_by_one(message, self.limit);
            }
            CallOutcome::Reply {
                body, was_resent, ..
            } => self.replied(message, body, was_resent),
            outcome => self.set_all(&calls, || BatchedResult::Outcome(outcome.clone())),
        }
        Vec::new()
    }

    /// Fails the calls that wait, in a forked child: their replies go to the parent.
    fn fail_in_child(&mut self, error: &Error) {
        for message in std::mem::take(&mut self.waiting) {
            self.set_all(&message.calls, || BatchedResult::Failed(error.duplicate()));
            std::mem::forget(message);
        }
    }

    fn timed_out(&mut self, calls: &SentCalls, sent: &SentCall) {
        let count = calls.count();
        for at in calls.indices() {
            let target = self.context.target_of(at);
            let error = self.context.client.inner.timed_out(target, sent);
            let error = match count {
                1 => error,
                more => error.about(format_args!(
                    "{target} or another of the {more} calls of its message was not answered"
                )),
            };
            self.results[at] = Some(BatchedResult::Failed(error));
        }
    }

    /// Records the replies in the reply to a message.
    fn replied(&mut self, message: &BatchMessage, body: ReplyBody, was_resent: bool) {
        let calls = &message.calls;
        let in_body = self.bodies.len();
        let replies = batch_support::replies(&body);
        let Some(replies) = replies.filter(|replies| replies.len() == calls.len()) else {
            // An error is each call's own; any other reply cannot be understood.
            let is_success = batch_support::is_success(&body);
            for call in calls {
                self.results[call.at] = Some(match is_success {
                    false => BatchedResult::Outcome(CallOutcome::Reply {
                        body: body.clone(),
                        was_resent,
                        after: None,
                        is_of_pick: false,
                        _request: None,
                    }),
                    true => BatchedResult::Failed(Error::new(
                        ErrorKind::Decode,
                        "the batch was answered with something else than as many replies",
                    )),
                });
            }
            return;
        };
        for (call, reply) in calls.iter().zip(&replies) {
            let range = range_in(&body, reply.get());
            self.results[call.at] = Some(BatchedResult::Reply {
                in_body,
                range,
                was_resent,
            });
        }
        self.bodies.push(body);
    }

    fn set_all(&mut self, calls: &SentCalls, result: impl Fn() -> BatchedResult) {
        for at in calls.indices() {
            self.results[at] = Some(result());
        }
    }

    pub(super) fn take_replies(&mut self) -> BatchReplies {
        self.taken = true;
        let taken = self.results.iter().map(|_| None).collect();
        BatchReplies {
            client: self.context.client.clone(),
            service: self.context.service.clone(),
            actions: self.context.actions.clone(),
            batch: self.context.number,
            bodies: std::mem::take(&mut self.bodies),
            results: std::mem::replace(&mut self.results, taken),
        }
    }
}

impl SentCalls {
    fn count(&self) -> usize {
        match self {
            Self::Batch(message) => message.calls.len(),
            Self::Single(_) => 1,
        }
    }

    fn indices(&self) -> impl Iterator<Item = usize> {
        let (batch, single) = match self {
            Self::Batch(message) => (&*message.calls, None),
            Self::Single(at) => (&[][..], Some(*at)),
        };
        batch.iter().map(|call| call.at).chain(single)
    }
}

impl Progress for PendingBatch {
    fn is_ready(&mut self) -> bool {
        self.advance(Instant::now())
    }

    fn deadline(&self) -> Instant {
        self.limit.deadline
    }

    fn ready_on(&self) -> ReadyOn<'_> {
        match self.waiting.front().map(|message| &message.sent) {
            Some(Ok(sent)) => ReadyOn::Reply(&sent.slot.outcome),
            _ => ReadyOn::Nothing,
        }
    }
}

impl Pending for PendingBatch {}

impl Drop for PendingBatch {
    fn drop(&mut self) {
        for message in &self.waiting {
            if let Ok(sent) = &message.sent {
                self.context.client.inner.forget(sent);
            }
        }
    }
}

impl fmt::Debug for PendingBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingBatch")
            .field("service", &self.context.service)
            .field("calls", &self.results.len())
            .finish_non_exhaustive()
    }
}
