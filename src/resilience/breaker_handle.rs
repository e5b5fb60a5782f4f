//! The circuit breaker of one service, for those who operate it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker_change::BreakerState;
use super::policies::ServicePolicies;
use crate::base::thread::OwnerProcess;

/// The circuit breaker of one service in one client. Made by
/// [`ServiceClient::breaker`](crate::ServiceClient::breaker).
#[derive(Clone)]
pub struct BreakerHandle {
    policies: Arc<ServicePolicies>,
    owner: OwnerProcess,
}

impl BreakerHandle {
    /// Creates the handle, if the policies have a breaker.
    pub(crate) fn new(policies: Arc<ServicePolicies>) -> Option<Self> {
        policies.breaker(Instant::now())?;
        Some(Self {
            policies,
            owner: OwnerProcess::current(),
        })
    }

    /// Returns the state. In a forked child it is always closed.
    pub fn state(&self) -> BreakerState {
        let breaker = self.breaker();
        breaker.map_or(BreakerState::Closed, |(state, _)| state)
    }

    fn breaker(&self) -> Option<(BreakerState, Option<Duration>)> {
        // Another thread of the parent may have held the lock.
        let is_forked = self.owner.is_another();
        (!is_forked).then(|| self.policies.breaker(Instant::now()))?
    }

    /// Returns the time for which calls are refused, while it is open.
    pub fn retry_after(&self) -> Option<Duration> {
        self.breaker()?.1
    }

    /// Holds it open for this long from now on, whatever its state: calls are refused at once.
    /// Afterwards it goes on half-open, with probes. A second call sets a new end.
    pub fn hold_open(&self, time: Duration) {
        if !self.owner.is_another() {
            self.policies.hold_open(time, Instant::now());
        }
    }

    /// Closes it, whatever its state, and forgets the outcomes that it has counted.
    pub fn close(&self) {
        if !self.owner.is_another() {
            self.policies.close();
        }
    }
}

impl fmt::Debug for BreakerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerHandle")
            .field("service", &self.policies.service())
            .field("state", &self.state())
            .finish()
    }
}
