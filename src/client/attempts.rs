//! The attempts at one call: admission, sending, waiting, and the decision to try again.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::answer::CallReply;
use super::call::CallDeadline;
use super::call_outcome::CallOutcome;
use super::call_sender::{AttemptSpec, CallSender};
use super::core::ClientCore;
use super::layer::{self, keep_what_ran};
use super::options::{RequestKind, RequestOptions};
use super::sent_attempt::{AttemptEnd, SentAttempt};
use super::sent_call::SentCall;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::message::MessageId;
use crate::resilience::{ServicePolicies, Turn};

/// The attempts at one call, at most one at a time. Driven by the thread that waits for the call.
pub(super) struct Attempts {
    policies: Option<Arc<ServicePolicies>>,
    limit: CallDeadline,
    is_idempotent: bool,
    may_retry: bool,
    /// The message id of all attempts, if there may be several.
    message_id: Option<MessageId>,
    /// The number of attempts that were begun.
    made: u32,
    /// The instances that have failed.
    tried: Vec<Box<str>>,
    /// True if an attempt that failed may have run.
    may_have_run: bool,
    state: State,
}

#[expect(
    clippy::large_enum_variant,
    reason = "a box would cost each call an allocation"
)]
enum State {
    /// The next attempt begins at this moment.
    Due {
        at: Instant,
        place: RatePlace,
    },
    Sent(SentAttempt),
    Ended,
}

/// The place of an attempt in the rate limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RatePlace {
    None,
    /// None was found.
    Missed,
    Reserved,
}

impl Attempts {
    /// Creates the attempts at a call that begins now.
    pub(super) fn new(
        policies: Option<Arc<ServicePolicies>>,
        options: &RequestOptions,
        limit: CallDeadline,
    ) -> Self {
        let may_retry = (policies.as_ref()).is_some_and(|it| it.retries()) && !options.no_retry;
        let needs_id = may_retry && options.message_id.is_none();
        Self {
            policies,
            limit,
            is_idempotent: options.idempotent,
            may_retry,
            message_id: needs_id.then(MessageId::random),
            made: 0,
            tried: Vec::new(),
            may_have_run: false,
            state: State::Due {
                at: limit.began,
                place: RatePlace::None,
            },
        }
    }

    /// Returns true if a request may have to be sent after the start: again, or when its turn comes.
    pub(super) fn may_send_later(&self) -> bool {
        self.may_retry || (self.policies.as_ref()).is_some_and(|it| it.has_rate_limit())
    }

    /// Returns true if the next step is to send a request.
    pub(super) fn is_due(&self) -> bool {
        matches!(self.state, State::Due { .. })
    }

    /// Sends the first attempt, if it is due now. Returns the error of a call that cannot be sent and
    /// is not tried again.
    pub(super) fn start<Req: Serialize + ?Sized>(
        &mut self,
        call: &CallSender<'_, Req>,
    ) -> Option<Result<CallReply>> {
        self.step(call, None)
    }

    /// Drives the call until it ends, and waits at most until `until`; `None` means not yet. Sending
    /// may wait longer, for a look-up and for room in the outgoing queue, at most until the
    /// attempt's deadline.
    pub(super) fn advance<Req: Serialize + ?Sized>(
        &mut self,
        call: &CallSender<'_, Req>,
        until: Instant,
    ) -> Option<Result<CallReply>> {
        self.step(call, Some(until))
    }

    /// Drives the call until `until`, or, without one, until a request is on its way.
    fn step<Req: Serialize + ?Sized>(
        &mut self,
        call: &CallSender<'_, Req>,
        until: Option<Instant>,
    ) -> Option<Result<CallReply>> {
        loop {
            let result = match &mut self.state {
                &mut State::Due { at, place } => {
                    let now = sleep_until(at, until, &call.client.inner)?;
                    // A balancer may panic: the call has ended then.
                    self.state = State::Ended;
                    match self.begin(call, place, now) {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                State::Sent(attempt) if until.is_none() && attempt.is_on_its_way() => return None,
                State::Sent(attempt) => {
                    let until = until.unwrap_or_else(Instant::now);
                    match attempt.wait(&call.client.inner, until, self.limit.deadline)? {
                        AttemptEnd::Slow => match self.end_slow_attempt(call) {
                            Some(result) => result,
                            None => continue,
                        },
                        end => self.end_attempt(call, end),
                    }
                }
                State::Ended => {
                    let fault = format!("the outcome of {} has been taken already", call.target);
                    return Some(Err(Error::new(ErrorKind::Misuse, fault)));
                }
            };
            let made = self.made;
            match result {
                Ok(reply) => {
                    self.state = State::Ended;
                    return Some(Ok(reply.with_attempts(made)));
                }
                Err(error) => match self.next_attempt(&error) {
                    Some(at) => {
                        self.state = State::Due {
                            at,
                            place: RatePlace::None,
                        };
                    }
                    None => {
                        self.state = State::Ended;
                        let result = Err(error.with_attempts(made));
                        return Some(keep_what_ran(self.may_have_run, result));
                    }
                },
            }
        }
    }

    /// Begins the attempt that is due: reserves its place in the rate limit, which may put it off,
    /// passes the other policies, and sends the request.
    fn begin<Req: Serialize + ?Sized>(
        &mut self,
        call: &CallSender<'_, Req>,
        place: RatePlace,
        now: Instant,
    ) -> Result<()> {
        let limit = self.attempt_limit(now);
        let mut permit = None;
        if let Some(policies) = &self.policies {
            let refused = |refused| call.target.refused(refused);
            if place != RatePlace::Reserved {
                let is_again = place == RatePlace::Missed;
                if self.made == 0 && !is_again {
                    policies.called(now);
                }
                // The time of the attempt itself begins with its turn.
                let left = self.limit.deadline.saturating_duration_since(now);
                let turn = policies.reserve(now, left, is_again).map_err(refused)?;
                let (at, place) = match turn {
                    Turn::Now => (now, RatePlace::Reserved),
                    Turn::Reserved(at) => (at, RatePlace::Reserved),
                    Turn::NotBefore(at) => (at, RatePlace::Missed),
                };
                if turn != Turn::Now {
                    self.state = State::Due { at, place };
                    return Ok(());
                }
            }
            permit = Some(policies.admit(now, limit.deadline).map_err(refused)?);
        }
        self.made += 1;
        let mut attempt = SentAttempt::new(permit, limit.deadline);
        let left = limit.deadline.saturating_duration_since(now);
        attempt.is_cut_short = limit.deadline == self.limit.deadline && left < limit.full / 2;
        call.send(
            &mut attempt,
            AttemptSpec {
                number: self.made,
                limit,
                message_id: self.message_id,
                policies: self.policies.as_deref(),
                tried: &self.tried,
            },
        );
        self.state = State::Sent(attempt);
        Ok(())
    }

    /// Ends the attempt on its way, and passes its result through the layers round it.
    fn end_attempt<Req: ?Sized>(
        &mut self,
        call: &CallSender<'_, Req>,
        outcome: AttemptEnd,
    ) -> Result<CallReply> {
        let State::Sent(attempt) = std::mem::replace(&mut self.state, State::Ended) else {
            let fault = format!("{} has no attempt under way", call.target);
            return Err(Error::new(ErrorKind::Misuse, fault));
        };
        let SentAttempt {
            sent,
            permit,
            instance,
            on_end,
            is_cut_short,
            was_sent,
            ..
        } = attempt;
        let core = &call.client.inner;
        let (mut took, mut is_of_pick, mut is_unreported) = (None, true, false);
        // A layer may end an attempt whose request is on its way.
        let was_given_up = was_sent && matches!(outcome, AttemptEnd::Result(_));
        // What a layer makes of an attempt says nothing of the service.
        let is_of_service = !matches!(outcome, AttemptEnd::Result(_));
        let result = match outcome {
            AttemptEnd::Outcome(outcome) => {
                is_unreported = matches!(outcome, CallOutcome::Unreported);
                if let CallOutcome::Reply {
                    after,
                    is_of_pick: of_pick,
                    ..
                } = &outcome
                {
                    (took, is_of_pick) = (*after, *of_pick);
                }
                core.reply(call.target, outcome)
            }
            AttemptEnd::TimedOut {
                is_of_pick: of_pick,
            } => {
                is_of_pick = of_pick;
                match &sent {
                    Some(sent) => Err(core.timed_out(call.target, sent)),
                    None => Err(core.unreported(call.target)),
                }
            }
            AttemptEnd::Slow => Err(core.unreported(call.target)),
            AttemptEnd::Result(result) => result,
        };
        // A slot whose outcome was decided and never came may still be filled.
        if let Some(sent) = sent
            && call.kind == RequestKind::Call
            && !is_unreported
        {
            sent.slot.put_back();
        }
        if let Some(permit) = permit.filter(|_| is_of_service) {
            let result = result.as_ref().map(drop);
            permit.ended(result, took, is_of_pick, is_cut_short, Instant::now());
        }
        if result.is_err()
            && let Some(instance) = instance
        {
            self.tried.push(instance);
        }
        let result = layer::run_on_end(on_end, call.target, result);
        let result = keep_what_ran(was_given_up, result);
        self.may_have_run |= (result.as_ref()).is_err_and(|error| !error.is_safe_to_retry());
        result
    }

    /// Ends an attempt that has not been answered in its time, if another may follow; if not, it has
    /// the rest of the call's. Returns the result if the request was answered at this moment.
    fn end_slow_attempt<Req: ?Sized>(
        &mut self,
        call: &CallSender<'_, Req>,
    ) -> Option<Result<CallReply>> {
        let next = self.next_attempt(&Error::timed_out(Phase::Reply, ""));
        let State::Sent(attempt) = &mut self.state else {
            return None;
        };
        let (Some(at), Some(sent)) = (next, &attempt.sent) else {
            attempt.deadline = self.limit.deadline;
            return None;
        };
        let end = AttemptEnd::expired(sent, &call.client.inner);
        let is_answered = matches!(end, AttemptEnd::Outcome(_));
        let result = self.end_attempt(call, end);
        if is_answered {
            return Some(result);
        }
        self.state = State::Due {
            at,
            place: RatePlace::None,
        };
        None
    }

    /// Returns the time of the next attempt after one that failed with `error`, if there is one.
    fn next_attempt(&self, error: &Error) -> Option<Instant> {
        let policies = self.policies.as_ref().filter(|_| self.may_retry)?;
        let now = Instant::now();
        let (made, deadline) = (self.made, self.limit.deadline);
        policies.next_attempt(error, made, self.is_idempotent, now, deadline)
    }

    /// Returns the deadline of an attempt that begins now.
    fn attempt_limit(&self, now: Instant) -> CallDeadline {
        let timeout = self.policies.as_ref().and_then(|it| it.attempt_timeout());
        match timeout {
            Some(timeout)
                if self.is_idempotent
                    && self.may_retry
                    && (self.policies.as_ref()).is_some_and(|it| it.may_follow(self.made + 1))
                    && timeout < self.limit.deadline.saturating_duration_since(now) =>
            {
                CallDeadline {
                    timeout,
                    deadline: now + timeout,
                    ..self.limit
                }
            }
            _ => self.limit,
        }
    }
}

impl Attempts {
    /// Returns the moment of the next step if nothing happens before.
    pub(super) fn next_step(&self) -> Instant {
        match &self.state {
            State::Due { at, .. } => *at,
            State::Sent(attempt) => attempt.deadline,
            State::Ended => self.limit.deadline,
        }
    }

    /// Returns the request that is on its way.
    pub(super) fn sent(&self) -> Option<&SentCall> {
        match &self.state {
            State::Sent(attempt) => attempt.sent.as_ref(),
            State::Due { .. } | State::Ended => None,
        }
    }

    /// Abandons the request on its way.
    pub(super) fn abandon(&mut self, core: &ClientCore) {
        if core.broker.is_forked() {
            // Another thread of the parent may have held the lock of the policies.
            std::mem::forget(std::mem::replace(&mut self.state, State::Ended));
            return;
        }
        if let Some(sent) = self.sent() {
            core.forget(sent);
        }
        self.state = State::Ended;
    }
}

/// Sleeps until `at`, or until the client is closed, and returns the time; `None` at `until`, if that
/// comes before, and at once without one.
fn sleep_until(at: Instant, until: Option<Instant>, core: &ClientCore) -> Option<Instant> {
    loop {
        let now = Instant::now();
        if at <= now || core.router.closed_cause().is_some() {
            return Some(now);
        }
        let pause = at.min(until?).saturating_duration_since(now);
        if pause.is_zero() {
            return None;
        }
        thread::sleep(pause.min(LONGEST_SLEEP));
    }
}

/// The longest sleep at a time: the client may be closed meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
