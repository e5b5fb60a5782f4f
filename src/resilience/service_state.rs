//! The state of the policies for one service: the plain structs, in their order.

use std::time::{Duration, Instant};

use super::circuit::{CallEnd, Circuit, CircuitPermit};
use super::gcra::Gcra;
use super::outliers::{EjectionChange, EndedAttempt, Outliers, Pick};
use super::settings::Resilience;
use super::throttle::ThrottleState;
use crate::error_kind::Refusal;
use crate::verdict::Verdict;

/// The state of the policies for one service. Like the structs in it, it takes the time as an argument.
pub(super) struct ServiceState {
    rate: Option<Gcra>,
    pub(super) circuit: Option<Circuit>,
    throttle: Option<ThrottleState>,
    most_in_flight: Option<usize>,
    in_flight: usize,
    pub(super) outliers: Option<Outliers>,
    pub(super) random: fastrand::Rng,
}

/// A refusal by a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) by: Refusal,
    pub(crate) retry_after: Option<Duration>,
}

/// The instance of an attempt, as it was picked.
pub(super) struct PickedAttempt {
    pub(super) id: Box<str>,
    pub(super) pick: Pick,
    /// The number of the service's instances.
    pub(super) known: usize,
}

/// The outcome of an attempt.
#[derive(Clone, Copy)]
pub(super) struct AttemptOutcome {
    pub(super) verdict: Verdict,
    /// True if it counts as a failure of the service.
    pub(super) is_failure: bool,
    pub(super) took: Duration,
}

impl ServiceState {
    pub(super) fn new(settings: &Resilience) -> Self {
        Self {
            rate: settings.rate.as_ref().map(Gcra::new),
            circuit: settings.breaker.as_ref().map(Circuit::new),
            throttle: settings.throttle.as_ref().map(ThrottleState::new),
            most_in_flight: settings.max_in_flight,
            in_flight: 0,
            outliers: settings.ejection.as_ref().map(Outliers::new),
            random: fastrand::Rng::new(),
        }
    }

    /// Reserves a place in the rate limit: `None` is now.
    pub(super) fn reserve(
        &mut self,
        now: Instant,
        longest_wait: Duration,
    ) -> Result<Option<Instant>, Refused> {
        let Some(rate) = &mut self.rate else {
            return Ok(None);
        };
        let reserved = rate.reserve(now, longest_wait);
        reserved.map_err(|after| Refused {
            by: Refusal::RateLimit,
            retry_after: Some(after),
        })
    }

    /// Admits an attempt by the breaker, the throttle and the bound of attempts in flight. Each that
    /// is admitted is given back by [`end`](Self::end).
    pub(super) fn admit(
        &mut self,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CircuitPermit>, Refused> {
        let circuit = match &mut self.circuit {
            Some(circuit) => Some(circuit.admit(now, deadline).map_err(|after| Refused {
                by: Refusal::Breaker,
                retry_after: Some(after),
            })?),
            None => None,
        };
        let is_throttled = (self.throttle.as_mut()).is_some_and(|it| it.admit(now).is_err());
        let is_full = self
            .most_in_flight
            .is_some_and(|most| self.in_flight >= most);
        let by = match (is_throttled, is_full) {
            (true, _) => Refusal::Throttle,
            (false, true) => Refusal::InFlight,
            (false, false) => {
                self.in_flight += 1;
                return Ok(circuit);
            }
        };
        if let (Some(permit), Some(it)) = (circuit, &mut self.circuit) {
            it.ended(permit, None, now);
        }
        Err(Refused {
            by,
            retry_after: None,
        })
    }

    /// Takes an attempt back, with its outcome if it says something about the service.
    pub(super) fn end(
        &mut self,
        circuit: Option<CircuitPermit>,
        picked: Option<&PickedAttempt>,
        outcome: Option<AttemptOutcome>,
        now: Instant,
    ) -> Option<EjectionChange> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let (Some(throttle), Some(outcome)) = (&mut self.throttle, outcome) {
            throttle.ended(outcome.verdict == Verdict::Busy, now);
        }
        if let (Some(it), Some(permit)) = (&mut self.circuit, circuit) {
            let end = outcome.map(|outcome| CallEnd {
                failed: outcome.is_failure,
                took: outcome.took,
            });
            it.ended(permit, end, now);
        }
        let (outliers, picked) = (self.outliers.as_mut()?, picked?);
        let Some(outcome) = outcome else {
            outliers.released(&picked.id, picked.pick);
            return None;
        };
        let attempt = EndedAttempt {
            pick: picked.pick,
            failed: outcome.verdict.counts_against_instance(),
            took: outcome.took,
        };
        outliers.ended(&picked.id, attempt, picked.known, now)
    }
}
