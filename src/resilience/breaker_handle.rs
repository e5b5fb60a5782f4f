//! The circuit breaker of one service, for those who operate it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker_change::BreakerState;
use super::policies::ServicePolicies;

/// The circuit breaker of one service in one client. Made by
/// [`ServiceClient::breaker`](crate::ServiceClient::breaker).
#[derive(Clone)]
pub struct BreakerHandle(Arc<ServicePolicies>);

impl BreakerHandle {
    /// Creates the handle, if the policies have a breaker.
    pub(crate) fn new(policies: Arc<ServicePolicies>) -> Option<Self> {
        policies.breaker(Instant::now()).map(|_| Self(policies))
    }

    /// Returns the state.
    pub fn state(&self) -> BreakerState {
        let breaker = self.0.breaker(Instant::now());
        breaker.map_or(BreakerState::Closed, |(state, _)| state)
    }

    /// Returns the time for which calls are refused, while it is open.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.breaker(Instant::now())?.1
    }

    /// Holds it open for this long from now on, whatever its state: calls are refused at once.
    /// Afterwards it goes on half-open, with probes. A second call sets a new end.
    pub fn hold_open(&self, time: Duration) {
        self.0.hold_open(time, Instant::now());
    }

    /// Closes it, whatever its state, and forgets the outcomes that it has counted.
    pub fn close(&self) {
        self.0.close();
    }
}

impl fmt::Debug for BreakerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerHandle")
            .field("service", &self.0.service())
            .field("state", &self.state())
            .finish()
    }
}
