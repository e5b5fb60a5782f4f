//! The response to a request that is on its way.

use std::sync::Arc;
use std::time::Instant;

use super::action::Action;
use super::core::{Outcome, OutcomeLead};
use super::entries::Response;
use super::key::Key;
use super::tags::Stamp;
use crate::client::{CachedAnswer, PendingFill};
use crate::error::{Error, ErrorKind};
use crate::error_kind::Refusal;

/// The place of a response, and the callers that wait for it.
pub(super) struct ActionFill {
    action: Arc<Action>,
    key: Key,
    stamp: Stamp,
    /// The moment before the request was sent.
    since: Instant,
    /// `None` if no callers can wait for this request.
    lead: Option<OutcomeLead>,
}

impl ActionFill {
    /// Prepares for a request that is about to be sent, with the callers that wait for it.
    pub(super) fn begin(
        action: &Arc<Action>,
        key: Key,
        lead: Option<OutcomeLead>,
        now: Instant,
    ) -> Self {
        let stamp = action.stamp(key.payload());
        if let Some(lead) = &lead {
            lead.set_stamp(stamp.clone());
        }
        Self {
            action: Arc::clone(action),
            key,
            stamp,
            since: now,
            lead,
        }
    }

    /// Stores the response and passes it, or the error, to the callers that wait. Returns a stale
    /// response if one may stand in for the error.
    pub(super) fn settle(self, result: Result<&str, &Error>, now: Instant) -> Option<CachedAnswer> {
        match result {
            Ok(text) => {
                self.succeed(text.into());
                None
            }
            Err(error) => self.fail(error, now),
        }
    }

    fn succeed(self, text: Arc<str>) {
        let response = Response::Text(Arc::clone(&text));
        let ages = self.action.settings.ages;
        // Stored first: callers that find no flight any more find the response.
        self.action
            .store(self.key, response, self.stamp, ages, self.since);
        if let Some(lead) = self.lead {
            lead.land(Outcome::Answer(CachedAnswer {
                text,
                is_stale: false,
            }));
        }
    }

    fn fail(self, error: &Error, now: Instant) -> Option<CachedAnswer> {
        if error.is_unavailable()
            && let Some(answer) = self.action.stand_in(self.key.as_ref(), now)
        {
            if let Some(lead) = self.lead {
                lead.land(Outcome::Answer(answer.clone()));
            }
            return Some(answer);
        }
        let shared = Arc::new(error.duplicate());
        if let Some(ages) = self.action.settings.error_ages(error) {
            let response = Response::Error(Arc::clone(&shared));
            self.action
                .store(self.key, response, self.stamp, ages, self.since);
        }
        match self.lead {
            Some(lead) if is_callers_own(error) => lead.give_up(Outcome::Error(shared)),
            Some(lead) => lead.land(Outcome::Error(shared)),
            None => {}
        }
        None
    }
}

impl PendingFill for ActionFill {
    fn finish(self: Box<Self>, result: Result<&str, &Error>) -> Option<CachedAnswer> {
        let core = Arc::clone(&self.action.core);
        let answer = self.settle(result, Instant::now());
        if answer.is_some() {
            core.counters.stale.count();
        }
        answer
    }
}

/// Returns true if an error comes from the options of one call, such as its timeout: the request of
/// another caller may succeed.
fn is_callers_own(error: &Error) -> bool {
    let is_own_refusal = matches!(
        error.refused_by(),
        Some(Refusal::RateLimit | Refusal::Layer)
    );
    is_own_refusal
        || matches!(
            error.kind(),
            ErrorKind::TimedOut | ErrorKind::InvalidConfig | ErrorKind::Misuse
        )
}
