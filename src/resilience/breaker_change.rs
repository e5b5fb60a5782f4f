//! The states of a circuit breaker, and its changes of state.

use std::time::Duration;

/// A state of the circuit breaker of one service.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls are sent, and their outcomes are counted.
    Closed,
    /// Calls are refused: too many have failed, or were slow.
    Open,
    /// A few calls are sent as probes, and the others are refused. The outcomes of the probes
    /// decide: the breaker closes, or opens for another period.
    HalfOpen,
    /// Calls are refused because the program holds the breaker open.
    HeldOpen,
}

impl BreakerState {
    /// Returns the name of the state in snake case, for labels of metrics and fields of logs.
    ///
    /// ```
    /// use coney::resilience::BreakerState;
    ///
    /// assert_eq!(BreakerState::HalfOpen.as_str(), "half_open");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::HeldOpen => "held_open",
        }
    }
}

/// A change of state, before it has the name of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: BreakerState,
    pub(crate) to: BreakerState,
    /// The length of the period that begins, if calls are refused until it ends.
    pub(crate) retry_after: Option<Duration>,
}

/// A change of the state of a service's circuit breaker, passed to the listener of
/// [`Breaker::on_change`](crate::resilience::Breaker::on_change).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerChange {
    service: String,
    transition: Transition,
}

impl BreakerChange {
    /// Creates the change of the breaker of `service`.
    pub(crate) fn new(service: impl Into<String>, transition: Transition) -> Self {
        Self {
            service: service.into(),
            transition,
        }
    }

    /// Returns the name of the service that the calls go to.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Returns the state before the change.
    pub fn from(&self) -> BreakerState {
        self.transition.from
    }

    /// Returns the state after the change.
    pub fn to(&self) -> BreakerState {
        self.transition.to
    }

    /// Returns the time from the change until the first call is sent again, if the breaker has
    /// opened or is held open.
    pub fn retry_after(&self) -> Option<Duration> {
        self.transition.retry_after
    }
}
