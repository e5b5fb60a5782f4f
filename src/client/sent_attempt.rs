//! One attempt at a call: its request on its way, and its end.

use std::sync::Arc;
use std::time::Instant;

use super::answer::CallReply;
use super::call_outcome::CallOutcome;
use super::core::ClientCore;
use super::discovery::InstanceFilter;
use super::layer::OnEnd;
use super::sent_call::{Expiry, SentCall};
use crate::error::Result;
use crate::registry::Candidate;
use crate::resilience::{Permit, Place, ServicePolicies};

/// An attempt on its way.
pub(super) struct SentAttempt {
    /// The request; none if a layer has ended the attempt.
    pub(super) sent: Option<SentCall>,
    pub(super) permit: Option<Permit>,
    /// The instance that was picked.
    pub(super) instance: Option<Box<str>>,
    pub(super) deadline: Instant,
    pub(super) on_end: Vec<OnEnd>,
    /// True if the request was sent, and a layer has ended the attempt.
    pub(super) was_sent: bool,
    /// True if the call's deadline leaves it little of the time that calls have.
    pub(super) is_cut_short: bool,
    /// The result, if a layer has ended the attempt.
    pub(super) ended: Option<Result<CallReply>>,
}

/// The end of an attempt.
pub(super) enum AttemptEnd {
    Outcome(CallOutcome),
    /// The call's deadline has passed.
    TimedOut {
        /// False if the request did not go to the instance that was picked.
        is_of_pick: bool,
    },
    /// The deadline of this attempt has passed, and that of the call has not. The request is still on
    /// its way.
    Slow,
    /// A layer has ended it, or it was not sent.
    Result(Result<CallReply>),
}

impl AttemptEnd {
    /// Ends the wait for a request.
    pub(super) fn expired(sent: &SentCall, core: &ClientCore) -> Self {
        match sent.expire(&core.router) {
            Expiry::Expired { is_of_pick } => Self::TimedOut { is_of_pick },
            Expiry::Decided(outcome) => Self::Outcome(outcome),
        }
    }
}

impl SentAttempt {
    /// Creates an attempt that is not sent yet.
    pub(super) fn new(permit: Option<Permit>, deadline: Instant) -> Self {
        Self {
            sent: None,
            permit,
            instance: None,
            deadline,
            on_end: Vec::new(),
            was_sent: false,
            is_cut_short: false,
            ended: None,
        }
    }

    /// Returns true if there is a request whose outcome decides the attempt.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.sent.is_some() && self.ended.is_none()
    }

    /// Waits for the end of the attempt at a call with this deadline, at most until `until`.
    pub(super) fn wait(
        &mut self,
        core: &ClientCore,
        until: Instant,
        call_deadline: Instant,
    ) -> Option<AttemptEnd> {
        if let Some(result) = self.ended.take() {
            if let Some(sent) = self.sent.take() {
                self.was_sent = true;
                core.forget(&sent);
            }
            return Some(AttemptEnd::Result(result));
        }
        let Some(sent) = &self.sent else {
            return Some(AttemptEnd::TimedOut { is_of_pick: true });
        };
        let until = until.min(self.deadline);
        let spin = core.lone_spin.as_ref().filter(|_| sent.woken.is_some());
        let spun = spin.and_then(|spin| sent.spin(spin, &core.router, until));
        let outcome = spun.or_else(|| sent.wait(until, core.broker.spin_for()));
        if let Some(outcome) = outcome {
            return Some(AttemptEnd::Outcome(outcome));
        }
        if Instant::now() < self.deadline {
            return None;
        }
        Some(match self.deadline < call_deadline {
            true => AttemptEnd::Slow,
            false => AttemptEnd::expired(sent, core),
        })
    }
}

/// The instances that an attempt may go to: not those that have failed before, unless there are no
/// others, and not those that are ejected.
pub(super) struct AttemptFilter<'a> {
    pub(super) policies: Option<&'a ServicePolicies>,
    pub(super) tried: &'a [Box<str>],
    pub(super) attempt: &'a mut SentAttempt,
}

impl InstanceFilter for AttemptFilter<'_> {
    fn narrow(&mut self, candidates: &[Arc<Candidate>]) -> Option<Vec<Arc<Candidate>>> {
        let policies = self.policies?;
        let pickable = policies.pickable(candidates, candidate_id, Instant::now());
        if self.tried.is_empty() {
            return pickable;
        }
        let left = pickable.as_deref().unwrap_or(candidates).iter();
        let was_tried = |id: &str| self.tried.iter().any(|tried| **tried == *id);
        let untried: Vec<_> = left
            .filter(|one| !was_tried(candidate_id(one)))
            .cloned()
            .collect();
        match untried.is_empty() {
            true => pickable,
            false => Some(untried),
        }
    }

    fn picked(&mut self, id: &str, known: usize) -> bool {
        self.attempt.instance = Some(id.into());
        let permit = self.attempt.permit.as_mut();
        permit.is_none_or(|permit| permit.picked(id, known, Instant::now()))
    }

    fn take_place(&mut self) -> Option<Place> {
        self.attempt.permit.as_mut()?.take_place()
    }
}

fn candidate_id(candidate: &Arc<Candidate>) -> &str {
    candidate.instance().id()
}
