//! The policies of one client for one service, and their state.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::breaker_change::{BreakerChange, BreakerState, Transition};
use super::budget::RetryBudget;
use super::circuit::{Circuit, CircuitPermit};
use super::outliers::EjectionChange;
use super::retry::Retry;
use super::service_state::{
    Admitted, AttemptOutcome, PickedAttempt, Place, Refused, ServiceState, Turn, shared_turn,
};
use super::settings::Resilience;
use super::sync::{Mutex, MutexGuard};
use crate::base::catch::catch;
use crate::error::{Error, ErrorKind};
use crate::verdict::Verdict;

/// The policies of one client for one service, and their state behind one lock, which is held for
/// one step of the plain structs and never while anything waits or code of the program runs.
pub(crate) struct ServicePolicies {
    service: String,
    pub(super) settings: Resilience,
    budget: Option<RetryBudget>,
    state: Mutex<ServiceState>,
    /// Hands a change of the breaker's state to its listener; does not wait.
    report: Report,
    changes: Mutex<Changes>,
}

/// The way of a change of a breaker's state to its listener.
pub(crate) type Report = Box<dyn Fn(&Breaker, BreakerChange) + Send + Sync>;

impl ServicePolicies {
    pub(crate) fn new(service: &str, settings: &Resilience, report: Report) -> Self {
        let retry = settings.retry.as_ref();
        Self {
            service: service.to_owned(),
            settings: settings.clone(),
            budget: retry.map(Retry::budget_of_service),
            state: Mutex::new(ServiceState::new(settings)),
            report,
            changes: Mutex::new(Changes::default()),
        }
    }

    /// Returns true if the policies have no state worth keeping: a closed breaker, and no instance
    /// ejected.
    pub(crate) fn may_be_forgotten(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let circuit = state.circuit.as_ref();
        circuit.is_none_or(|it| it.state(now) == BreakerState::Closed)
            && state.outliers.as_ref().is_none_or(|it| !it.has_ejected())
    }

    /// Returns the name of the service.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// Returns true if calls may be sent more than once.
    pub(crate) fn retries(&self) -> bool {
        let retry = self.settings.retry.as_ref();
        retry.is_some_and(|retry| retry.most_attempts() > 1)
    }

    /// Returns true if calls may have to wait for their turn.
    pub(crate) fn has_rate_limit(&self) -> bool {
        self.settings.rate.is_some()
    }

    /// Returns true if another attempt may follow after so many.
    pub(crate) fn may_follow(&self, made: u32) -> bool {
        let retry = self.settings.retry.as_ref();
        retry.is_some_and(|retry| made < retry.most_attempts())
    }

    /// Returns the longest time of one attempt at an idempotent call, if it is limited.
    pub(crate) fn attempt_timeout(&self) -> Option<Duration> {
        self.settings.retry.as_ref()?.attempt_timeout()
    }

    /// Records a call, for the budget of retries.
    pub(crate) fn called(&self, now: Instant) {
        if let Some(budget) = &self.budget {
            budget.called(now);
        }
    }

    /// Reserves the place of an attempt in the rate limit; `is_again` if it has looked for one before.
    /// For a limit that is shared it blocks a short time, without the lock.
    pub(crate) fn reserve(
        &self,
        now: Instant,
        longest_wait: Duration,
        is_again: bool,
    ) -> Result<Turn, Refused> {
        if !self.has_rate_limit() {
            return Ok(Turn::Now);
        }
        let turn = self.state.lock().reserve(now, longest_wait)?;
        shared_turn(&self.settings, now, longest_wait, is_again).unwrap_or(Ok(turn))
    }

    /// Admits an attempt by the breaker, the throttle and the bound of calls in flight, in this
    /// order. The attempt ends by `deadline`, and the permit is given back when it is dropped.
    pub(crate) fn admit(
        self: &Arc<Self>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Permit, Refused> {
        let mut state = self.state.lock();
        let admitted = state.admit(now, deadline);
        self.unlock(state);
        let Admitted { circuit, place } = admitted?;
        Ok(Permit {
            policies: Arc::clone(self),
            circuit,
            place,
            began: now,
            deadline,
            picked: None,
            is_given_back: false,
        })
    }

    /// Returns the candidates that may be picked; `None` if all may.
    pub(crate) fn pickable<T: Clone>(
        &self,
        candidates: &[T],
        id: impl Fn(&T) -> &str,
        now: Instant,
    ) -> Option<Vec<T>> {
        self.settings.ejection.as_ref()?;
        let mut state = self.state.lock();
        state.outliers.as_mut()?.pickable(candidates, id, now)
    }

    /// Decides whether a call that failed with `error` is tried again, and when: `None` is never.
    /// Takes the retry from the budget, if it costs something.
    pub(crate) fn next_attempt(
        &self,
        error: &Error,
        made: u32,
        is_idempotent: bool,
        now: Instant,
        deadline: Instant,
    ) -> Option<Instant> {
        let retry = self.settings.retry.as_ref()?;
        if made >= retry.most_attempts() {
            return None;
        }
        let is_named = error.kind() == ErrorKind::Remote
            && (error.remote_code()).is_some_and(|code| retry.retries_code(code));
        let may_run_again = is_named || is_idempotent || error.is_safe_to_retry();
        let costs = match error.verdict() {
            _ if !may_run_again => return None,
            _ if is_named => true,
            Verdict::NotSent | Verdict::NoRoute | Verdict::NoInstance => false,
            Verdict::Busy => true,
            // An attempt may expire on its way while there is time for another one.
            Verdict::TimedOut | Verdict::Expired if is_idempotent => true,
            _ => return None,
        };
        let delay = retry.delay(made, &mut self.state.lock().random);
        // The service names the same time to many callers, so the delay spreads them after it.
        let delay = delay.saturating_add(error.retry_after().unwrap_or_default());
        let at = now.checked_add(delay).filter(|at| *at < deadline)?;
        let is_paid = !costs || (self.budget.as_ref()).is_some_and(|it| it.try_withdraw(now));
        is_paid.then_some(at)
    }

    /// Returns the state of the breaker, and the time left of an open period; `None` without a
    /// breaker.
    pub(crate) fn breaker(&self, now: Instant) -> Option<(BreakerState, Option<Duration>)> {
        let state = self.state.lock();
        let circuit = state.circuit.as_ref()?;
        Some((circuit.state(now), circuit.retry_after(now)))
    }

    /// Holds the breaker open for this long.
    pub(crate) fn hold_open(&self, length: Duration, now: Instant) {
        let mut state = self.state.lock();
        if let Some(circuit) = &mut state.circuit {
            circuit.hold_open(now, length);
        }
        self.unlock(state);
    }

    /// Closes the breaker.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        if let Some(circuit) = &mut state.circuit {
            circuit.close();
        }
        self.unlock(state);
    }

    /// Returns the instances that are not picked at this time, each with the time until it is tried
    /// again.
    pub(crate) fn ejected(&self, now: Instant) -> Vec<(String, Duration)> {
        let state = self.state.lock();
        state
            .outliers
            .as_ref()
            .map_or_else(Vec::new, |it| it.ejected(now))
    }

    /// Releases the lock, and reports and logs the changes of the breaker's state, in their order:
    /// by one thread at a time, and without a lock, as a logger is code of the program's.
    fn unlock(&self, mut state: MutexGuard<'_, ServiceState>) {
        let mut change = state.circuit.as_mut().and_then(Circuit::take_change);
        if change.is_none() {
            return;
        }
        let mut changes = self.changes.lock();
        while let Some(next) = change {
            changes.waiting.push_back(next);
            change = state.circuit.as_mut().and_then(Circuit::take_change);
        }
        drop(state);
        if std::mem::replace(&mut changes.is_reporting, true) {
            return; // to the thread that reports
        }
        while let Some(change) = changes.waiting.pop_front() {
            drop(changes);
            // A logger that panics must not keep the next changes from being reported.
            let _ = catch(|| {
                let breaker = self.settings.breaker.as_ref();
                if let Some(breaker) = breaker.filter(|it| it.has_listener()) {
                    (self.report)(breaker, BreakerChange::new(&*self.service, change));
                }
                self.log(change);
            });
            changes = self.changes.lock();
        }
        changes.is_reporting = false;
    }

    fn log(&self, change: Transition) {
        let level = match change.to {
            BreakerState::Open | BreakerState::HeldOpen => log::Level::Warn,
            BreakerState::Closed | BreakerState::HalfOpen => log::Level::Info,
        };
        let (from, to) = (change.from.as_str(), change.to.as_str());
        match change.retry_after {
            Some(after) => log::log!(
                target: "coney::client", level,
                "{}: the circuit breaker is {to} for {after:?}, and was {from}", self.service
            ),
            None => log::log!(
                target: "coney::client", level,
                "{}: the circuit breaker is {to}, and was {from}", self.service
            ),
        }
    }

    fn log_ejection(&self, id: &str, change: EjectionChange) {
        let service = &self.service;
        match change {
            EjectionChange::Ejected(time) => log::warn!(
                target: "coney::client",
                "{service}: the instance {id} fails or is slow, and is not picked for {time:?}"
            ),
            EjectionChange::Restored => log::info!(
                target: "coney::client",
                "{service}: the instance {id} works again, and is picked again"
            ),
            EjectionChange::AllRestored => log::warn!(
                target: "coney::client",
                "{service}: too many instances fail or are slow to leave them out; all are picked"
            ),
        }
    }
}

impl fmt::Debug for ServicePolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServicePolicies")
            .field("service", &self.service)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The changes of a breaker's state that are not reported yet.
#[derive(Default)]
struct Changes {
    waiting: VecDeque<Transition>,
    is_reporting: bool,
}

/// The leave to send one attempt. Dropping it gives it back without an outcome.
#[must_use = "a permit that is dropped is given back"]
pub(crate) struct Permit {
    policies: Arc<ServicePolicies>,
    circuit: Option<CircuitPermit>,
    place: Option<Place>,
    began: Instant,
    deadline: Instant,
    picked: Option<PickedAttempt>,
    is_given_back: bool,
}

/// The time after which an outcome says nothing of the present any more: that of an asynchronous
/// call which the program has waited for late.
const OUTDATED: Duration = Duration::from_secs(1);

impl Permit {
    /// Takes the place of the request, to be dropped when its reply has come.
    pub(crate) fn take_place(&mut self) -> Option<Place> {
        self.place.take()
    }

    /// Records the instance that was picked, one of `known`; false if another must be picked.
    pub(crate) fn picked(&mut self, id: &str, known: usize, now: Instant) -> bool {
        self.release_instance();
        let mut state = self.policies.state.lock();
        let Some(outliers) = &mut state.outliers else {
            return true;
        };
        let Some(pick) = outliers.picked(id, now, self.deadline) else {
            return false;
        };
        drop(state);
        self.picked = Some(PickedAttempt {
            id: id.into(),
            pick,
            known,
        });
        true
    }

    /// Records the outcome of the attempt, and the time it took, where that is known better than by
    /// now. `is_of_pick` is false if another instance than the picked one had the request. With
    /// `is_cut_short`, the call's deadline left it little of the time that calls have, so that a
    /// timeout says nothing of the service.
    pub(crate) fn ended(
        mut self,
        result: Result<(), &Error>,
        took: Option<Duration>,
        is_of_pick: bool,
        is_cut_short: bool,
        now: Instant,
    ) {
        if !is_of_pick {
            self.release_instance();
        }
        let verdict = result.map_or_else(Error::verdict, |()| Verdict::Ok);
        let breaker = self.policies.settings.breaker.as_ref();
        let is_failure = verdict.counts_against_service()
            || (result.err()).is_some_and(|error| breaker.is_some_and(|it| it.is_failure(error)));
        let is_too_late = matches!(verdict, Verdict::TimedOut | Verdict::Expired);
        let ended_at = match took {
            Some(took) => self.began + took,
            None if verdict == Verdict::TimedOut => self.deadline,
            None => now,
        };
        let counts = (verdict.is_reply() || is_failure)
            && !(is_cut_short && is_too_late)
            && now.saturating_duration_since(ended_at) <= OUTDATED;
        let outcome = counts.then(|| AttemptOutcome {
            verdict,
            is_failure,
            took: took.unwrap_or_else(|| now.saturating_duration_since(self.began)),
        });
        self.give_back(outcome, now);
    }

    fn give_back(&mut self, outcome: Option<AttemptOutcome>, now: Instant) {
        self.is_given_back = true;
        let policies = &*self.policies;
        let mut state = policies.state.lock();
        let change = state.end(self.circuit.take(), self.picked.as_ref(), outcome, now);
        policies.unlock(state);
        if let (Some(change), Some(picked)) = (change, &self.picked) {
            policies.log_ejection(&picked.id, change);
        }
    }

    fn release_instance(&mut self) {
        if let Some(picked) = self.picked.take()
            && let Some(outliers) = &mut self.policies.state.lock().outliers
        {
            outliers.released(&picked.id, picked.pick);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_given_back {
            self.give_back(None, Instant::now());
        }
    }
}
