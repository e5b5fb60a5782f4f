//! The pending table, the policies and rate limits for this crate's own benchmarks; not part of the
//! API.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::client::pending_table::{self, PendingCall, Waiter, Wake};
use crate::message::CorrelationId;
use crate::resilience::{Limiter, RateLimit, Resilience, ServicePolicies, Turn};
use crate::transport::SendState;

/// A client's pending table, alone.
#[derive(Debug)]
pub struct PendingTable(pending_table::PendingTable);

impl PendingTable {
    /// Creates a table with so many calls in flight.
    pub fn with_calls(calls: usize) -> Self {
        let mut table = Self(pending_table::PendingTable::new(calls + 1));
        for _ in 0..calls {
            table.call_in();
        }
        table
    }

    /// Puts a call in and takes it out, as a call and its reply do.
    pub fn call_in_and_out(&mut self) {
        let id = self.call_in();
        drop(self.0.remove(id));
    }

    fn call_in(&mut self) -> CorrelationId {
        let id = CorrelationId::random();
        let call = PendingCall {
            send_state: Arc::new(SendState::until(Instant::now())),
            waiter: Waiter {
                slot: bounded(1).0,
                wake: Wake::Thread(std::thread::current()),
            },
            resend_copy: None,
            sent_in: None,
            balanced: None,
            began: None,
            place: None,
        };
        let inserted = self.0.insert(id, call);
        debug_assert!(inserted.is_ok());
        id
    }
}

/// The policies of a client for one service, alone.
#[derive(Debug)]
pub struct Policies(Arc<ServicePolicies>);

impl Policies {
    /// Creates the policies as a client does at its first call to the service.
    pub fn new(settings: &Resilience) -> Self {
        let policies = ServicePolicies::new("user-service", settings, Box::new(|_, _| {}));
        Self(Arc::new(policies))
    }

    /// Admits a call and ends it, as for one that succeeds at once; false if it is refused.
    pub fn call_succeeds(&self) -> bool {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(5);
        self.0.called(now);
        let Ok(Turn::Now) = self.0.reserve(now, Duration::from_secs(5), false) else {
            return false;
        };
        let Ok(permit) = self.0.admit(now, deadline) else {
            return false;
        };
        let took = Some(Duration::from_micros(5));
        permit.ended(Ok(()), took, true, false, Instant::now());
        true
    }
}

/// The rate limit of a server's action, alone.
#[derive(Debug)]
pub struct ActionLimit(Limiter);

impl ActionLimit {
    /// Creates a limit of all requests together, or one for each key.
    pub fn new(rate: &RateLimit, has_keys: bool) -> Self {
        Self(Limiter::new(rate, has_keys))
    }

    /// Checks a request; false if it is refused.
    pub fn admits(&self, key: Option<&str>, now: Instant) -> bool {
        self.0.admit(key, now, Duration::ZERO, None).is_ok()
    }
}
