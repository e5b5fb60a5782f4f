//! The circuit breaker of one service: a state machine without a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::breaker_change::{BreakerState, Transition};
use crate::base::window::Window;

/// The time closed after which the next open period is the first again.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// The longest period, a year: in effect no limit, and far from overflowing an `Instant`.
const LONGEST_PERIOD: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The width of the range by which the lengths of periods vary, as a share of them, so that many
/// clients do not probe at the same moment.
const JITTER: f64 = 0.2;

/// The least number of failures in a row that open the breaker whatever the rate in the window: with
/// fewer, a setting of few minimum calls would make the rate meaningless.
const LEAST_IN_A_ROW: u32 = 10;

/// The time to wait when all probes are in flight: their outcomes are not far, and cannot be known.
const PROBE_WAIT: Duration = Duration::from_millis(100);

/// The time after the last deadline of the probes for which their ends are awaited. On a busy machine
/// the threads of callers run late: new probes, sent before, would be more than there may be.
pub(super) const LATE_END: Duration = Duration::from_secs(1);

/// The leave to send one call. Given back exactly once, by [`Circuit::ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a permit that is not given back occupies a place among the probes"]
pub(crate) struct CircuitPermit {
    /// The number of the state that it was given in, so that late outcomes of an earlier state
    /// do not count.
    generation: u64,
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallEnd {
    /// True if the service has failed: an error of a handler is no failure.
    pub(crate) failed: bool,
    /// The time from sending to the outcome.
    pub(crate) took: Duration,
}

/// A state, and all that is known only in it.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// `since` is none from the beginning, and after the program closed the breaker.
    Closed {
        since: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        in_flight: u32,
        went_well: u32,
        /// The last deadline of the probes: all have ended soon after it, even if their permits are
        /// kept.
        deadline: Instant,
    },
    HeldOpen {
        until: Instant,
    },
}

impl Phase {
    fn state(self) -> BreakerState {
        match self {
            Self::Closed { .. } => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::HalfOpen { .. } => BreakerState::HalfOpen,
            Self::HeldOpen { .. } => BreakerState::HeldOpen,
        }
    }

    /// Returns the end of the period in which calls are refused.
    fn until(self) -> Option<Instant> {
        match self {
            Self::Open { until } | Self::HeldOpen { until } => Some(until),
            Self::Closed { .. } | Self::HalfOpen { .. } => None,
        }
    }
}

/// The circuit breaker of one service.
///
/// It cannot stay half-open for ever: a probe frees its place when its permit comes back, with or
/// without an outcome, and every call has a deadline. Changes of state are collected until they
/// are taken by [`take_change`](Circuit::take_change), after every other method.
#[derive(Debug)]
pub(crate) struct Circuit {
    settings: Breaker,
    phase: Phase,
    generation: u64,
    /// The calls, those that failed, and those that were slow, while closed.
    window: Window<10, 3>,
    /// The failures since the last call that did not fail, and the time of that one, while closed.
    failed_in_a_row: u32,
    last_well: Option<Instant>,
    /// The number of periods in a row, each twice as long as the one before.
    periods: u32,
    changes: VecDeque<Transition>,
    random: fastrand::Rng,
}

impl Circuit {
    /// Creates a closed breaker.
    pub(crate) fn new(settings: &Breaker) -> Self {
        Self::with_random(settings, fastrand::Rng::new())
    }

    /// Creates a closed breaker with a source of random numbers for the lengths of its periods.
    fn with_random(settings: &Breaker, random: fastrand::Rng) -> Self {
        Self {
            settings: settings.clone(),
            phase: Phase::Closed { since: None },
            generation: 0,
            window: Window::new(settings.window),
            failed_in_a_row: 0,
            last_well: None,
            periods: 0,
            changes: VecDeque::new(),
            random,
        }
    }

    /// Returns a permit if a call may be sent that ends by `deadline`.
    ///
    /// # Errors
    ///
    /// The time after which another attempt makes sense, if not.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        deadline: Instant,
    ) -> Result<CircuitPermit, Duration> {
        if self.is_half_open_due(now) {
            let half_open = Phase::HalfOpen {
                in_flight: 0,
                went_well: 0,
                deadline,
            };
            self.enter(half_open, None);
        }
        match &mut self.phase {
            Phase::Closed { .. } => {}
            Phase::HalfOpen {
                in_flight,
                deadline: last,
                ..
            } if *in_flight < self.settings.probes => {
                *in_flight += 1;
                *last = (*last).max(deadline);
            }
            Phase::HalfOpen { .. } => return Err(PROBE_WAIT),
            Phase::Open { until } | Phase::HeldOpen { until } => {
                return Err(until.saturating_duration_since(now));
            }
        }
        Ok(CircuitPermit {
            generation: self.generation,
        })
    }

    /// Returns true if the open period is over, or all probes have ended without giving back their
    /// permits, as those of asynchronous calls that the program does not wait for.
    fn is_half_open_due(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Open { until } | Phase::HeldOpen { until } => until <= now,
            Phase::HalfOpen {
                in_flight,
                deadline,
                ..
            } => {
                let late = now.saturating_duration_since(deadline);
                in_flight >= self.settings.probes && late > LATE_END
            }
            Phase::Closed { .. } => false,
        }
    }

    /// Takes a permit back, with the outcome of its call; without one if the call was not sent, or
    /// ended in a way that says nothing about the service.
    pub(crate) fn ended(&mut self, permit: CircuitPermit, end: Option<CallEnd>, now: Instant) {
        if permit.generation != self.generation {
            return;
        }
        match &mut self.phase {
            Phase::Closed { .. } => {
                if let Some(end) = end {
                    self.count(end, now);
                }
            }
            Phase::HalfOpen {
                in_flight,
                went_well,
                ..
            } => {
                *in_flight = in_flight.saturating_sub(1);
                let Some(end) = end else { return };
                if end.failed || is_slow(&self.settings, end) {
                    return self.open(now);
                }
                *went_well += 1;
                if *went_well >= self.settings.probes {
                    self.enter(Phase::Closed { since: Some(now) }, None);
                }
            }
            // No permit is given in these.
            Phase::Open { .. } | Phase::HeldOpen { .. } => {}
        }
    }

    /// Counts the outcome of a call while closed, and opens if the rate is reached, or no call has
    /// succeeded for a while.
    fn count(&mut self, end: CallEnd, now: Instant) {
        let is_slow = is_slow(&self.settings, end);
        if end.failed {
            self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
        } else {
            (self.failed_in_a_row, self.last_well) = (0, Some(now));
        }
        self.window.add(now, [true, end.failed, is_slow]);
        let [calls, failed, slow] = self.window.sums(now);
        if calls < u64::from(self.settings.minimum_calls) {
            return;
        }
        // A quotient, unlike a product, is exactly the number that the program wrote as its rate.
        let share = |part: u64| part as f64 / calls as f64;
        let slow_rate = self.settings.slow.map(|(_, rate)| rate);
        if share(failed) >= self.settings.failure_rate
            || slow_rate.is_some_and(|rate| share(slow) >= rate)
            || self.is_outage(failed, now)
        {
            self.open(now);
        }
    }

    /// Returns true if all calls of late have failed, `failed` of them in the window: the successes
    /// before would hide that for nearly the whole window, since calls that time out are far fewer
    /// than calls that are answered. A tenth of the window without a success is required too:
    /// all calls that are in flight during a short stall fail at one moment.
    fn is_outage(&self, failed: u64, now: Instant) -> bool {
        let row = self.settings.minimum_calls.max(LEAST_IN_A_ROW);
        let quiet = self.settings.window / 10;
        let was_long_ago = |last: Instant| now.saturating_duration_since(last) >= quiet;
        self.failed_in_a_row >= row
            && failed >= u64::from(row)
            && self.last_well.is_none_or(was_long_ago)
    }

    /// Returns the state that a call at this time meets: an open period that has passed is
    /// half-open, though no change is recorded before the first call.
    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match self.phase.until() {
            Some(until) if until <= now => BreakerState::HalfOpen,
            _ => self.phase.state(),
        }
    }

    /// Returns the time left for which all calls are refused; none if some are sent.
    pub(crate) fn retry_after(&self, now: Instant) -> Option<Duration> {
        let left = self.phase.until()?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Refuses all calls for this long, whatever the state, and then goes on half-open.
    pub(crate) fn hold_open(&mut self, now: Instant, length: Duration) {
        self.forget_old_periods(now);
        let length = length.min(LONGEST_PERIOD);
        let until = now + length;
        self.enter(Phase::HeldOpen { until }, Some(length));
    }

    /// Closes whatever the state, and forgets all outcomes and the earlier open periods.
    pub(crate) fn close(&mut self) {
        self.periods = 0;
        self.enter(Phase::Closed { since: None }, None);
    }

    /// Returns the oldest change of state that was not returned yet.
    pub(crate) fn take_change(&mut self) -> Option<Transition> {
        self.changes.pop_front()
    }

    fn open(&mut self, now: Instant) {
        self.forget_old_periods(now);
        let factor = 1u32.checked_shl(self.periods).unwrap_or(u32::MAX);
        self.periods = self.periods.saturating_add(1);
        let length = self.settings.first_open.saturating_mul(factor);
        let longest = self.settings.longest_open.min(LONGEST_PERIOD);
        // The longest period varies below its length, and the others round theirs.
        let jitter = (self.random.f64() - 0.5) * JITTER;
        let length = length.min(longest.div_f64(1.0 + JITTER / 2.0));
        let length = length.mul_f64(1.0 + jitter).min(longest);
        let until = now + length;
        self.enter(Phase::Open { until }, Some(length));
    }

    fn forget_old_periods(&mut self, now: Instant) {
        if let Phase::Closed { since: Some(since) } = self.phase
            && now.saturating_duration_since(since) >= FORGET_AFTER
        {
            self.periods = 0;
        }
    }

    fn enter(&mut self, phase: Phase, retry_after: Option<Duration>) {
        let (from, to) = (self.phase.state(), phase.state());
        self.phase = phase;
        self.generation += 1;
        self.window.clear();
        (self.failed_in_a_row, self.last_well) = (0, None);
        if from != to {
            self.changes.push_back(Transition {
                from,
                to,
                retry_after,
            });
        }
    }
}

fn is_slow(settings: &Breaker, end: CallEnd) -> bool {
    settings.slow.is_some_and(|(than, _)| end.took > than)
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
