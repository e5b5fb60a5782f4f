//! One moment by the clocks of this process and of the store.

use std::time::{Duration, Instant};

use super::Instance;
use crate::base::deadline;

/// One moment by both clocks: the store's, by which heartbeats are written, and this process's
/// monotonic clock, by which timeouts are measured.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) at: Instant,
    unix_millis: u64,
}

impl Clock {
    /// Returns the present moment. Without a store's clock, this machine's takes its place.
    pub(super) fn now(store_millis: Option<u64>) -> Self {
        let ours = || deadline::unix_millis_after(Duration::ZERO);
        Self::at(Instant::now(), store_millis.unwrap_or_else(ours))
    }

    pub(super) fn at(at: Instant, unix_millis: u64) -> Self {
        Self { at, unix_millis }
    }

    /// Returns the age of an instance's last heartbeat by the store's clock; zero for a heartbeat
    /// in the future, as a fast clock writes it.
    pub(super) fn age(&self, instance: &Instance) -> Duration {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        Duration::from_millis(self.unix_millis.saturating_sub(beat))
    }

    /// Returns true if the last heartbeat is less than `heartbeat_ttl` in the past, or at most
    /// that far in the future.
    pub(super) fn is_young(&self, instance: &Instance, heartbeat_ttl: Duration) -> bool {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        let ahead = Duration::from_millis(beat.saturating_sub(self.unix_millis));
        ahead <= heartbeat_ttl && self.age(instance) < heartbeat_ttl
    }
}
