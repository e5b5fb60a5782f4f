//! The state of the policies for one service: the plain structs, in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::breaker_change::BreakerState;
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
    places: Option<Places>,
    pub(super) outliers: Option<Outliers>,
    pub(super) random: fastrand::Rng,
}

/// A refusal by a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) by: Refusal,
    pub(crate) retry_after: Option<Duration>,
}

impl Refused {
    /// Returns the refusal by a rate limit that has a free place in this time.
    pub(super) fn by_rate(after: Duration) -> Self {
        Self {
            by: Refusal::RateLimit,
            retry_after: Some(after),
        }
    }
}

/// The turn of an attempt in the rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    /// The attempt has a place at this moment.
    Reserved(Instant),
    /// No place before this moment, at which to look again.
    NotBefore(Instant),
}

/// Looks for a place in the rate limit that several processes share; `None` if there is no such
/// limit. Blocks while the limit's store is being asked: for at most a tenth of a second, and not
/// beyond `longest_wait`.
pub(super) fn shared_turn(
    settings: &Resilience,
    now: Instant,
    longest_wait: Duration,
    is_again: bool,
) -> Option<Result<Turn, Refused>> {
    let shared = settings.rate.as_ref()?.shared_limit()?;
    Some(match shared.take(None, now + longest_wait, is_again) {
        Ok(()) => Ok(Turn::Now),
        Err(wait) if wait > longest_wait => Err(Refused::by_rate(wait)),
        Err(wait) => Ok(Turn::NotBefore(now + wait)),
    })
}

/// The places of requests that wait for replies.
struct Places {
    most: usize,
    /// Goes up under the lock of the policies, and down without it.
    taken: Arc<AtomicUsize>,
}

/// The place of a request that waits for its reply. Given back when it is dropped, which the thread
/// does that takes the reply in.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Places {
    fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    fn take(&self) -> Option<Place> {
        if self.taken.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(Place(Arc::clone(&self.taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The leave to send an attempt, as its policies have given it.
pub(super) struct Admitted {
    pub(super) circuit: Option<CircuitPermit>,
    pub(super) place: Option<Place>,
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
            rate: (settings.rate.as_ref().filter(|it| !it.is_shared()))
                .map(|it| Gcra::new(&it.rate())),
            circuit: settings.breaker.as_ref().map(Circuit::new),
            throttle: settings.throttle.as_ref().map(ThrottleState::new),
            places: settings.max_in_flight.map(Places::new),
            outliers: settings.ejection.as_ref().map(Outliers::new),
            random: fastrand::Rng::new(),
        }
    }

    /// Reserves a place in the rate limit of this client alone. Admits all under another.
    pub(super) fn reserve(
        &mut self,
        now: Instant,
        longest_wait: Duration,
    ) -> Result<Turn, Refused> {
        // To wait for a turn and be refused then would help no caller.
        if let Some(after) = (self.circuit.as_ref()).and_then(|circuit| circuit.retry_after(now)) {
            return Err(Refused {
                by: Refusal::Breaker,
                retry_after: Some(after),
            });
        }
        let Some(rate) = &mut self.rate else {
            return Ok(Turn::Now);
        };
        match rate.reserve(now, longest_wait) {
            Ok(None) => Ok(Turn::Now),
            Ok(Some(at)) => Ok(Turn::Reserved(at)),
            Err(after) => Err(Refused::by_rate(after)),
        }
    }

    /// Admits an attempt by the breaker, the throttle and the bound of attempts in flight. Each that
    /// is admitted is given back by [`end`](Self::end).
    pub(super) fn admit(&mut self, now: Instant, deadline: Instant) -> Result<Admitted, Refused> {
        let circuit = match &mut self.circuit {
            Some(it) => match it.admit(now, deadline) {
                Ok(permit) => Some(permit),
                Err(_) => {
                    return Err(Refused {
                        by: Refusal::Breaker,
                        // None while half-open: nothing says when a probe ends.
                        retry_after: it.retry_after(now),
                    });
                }
            },
            None => None,
        };
        let is_throttled = (self.throttle.as_mut()).is_some_and(|it| it.admit(now).is_err());
        let by = match (
            is_throttled,
            self.places
                .as_ref()
                .filter(|_| !is_throttled)
                .map(Places::take),
        ) {
            (true, _) => Refusal::Throttle,
            (false, Some(None)) => Refusal::InFlight,
            (false, place) => {
                let place = place.flatten();
                return Ok(Admitted { circuit, place });
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
        if let (Some(throttle), Some(outcome)) = (&mut self.throttle, outcome) {
            throttle.ended(outcome.verdict == Verdict::Busy, now);
        }
        if let (Some(it), Some(permit)) = (&mut self.circuit, circuit) {
            // A refusal as busy is no success that would hide failures, but a probe so answered shows
            // that the service is there.
            let is_half_open = it.state(now) == BreakerState::HalfOpen;
            let counts = |outcome: &AttemptOutcome| {
                is_half_open || outcome.is_failure || outcome.verdict != Verdict::Busy
            };
            let end = outcome.filter(counts).map(|outcome| CallEnd {
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
