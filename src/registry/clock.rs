//! The present moment by the clock of this process and by that of the store.

use std::time::{Duration, Instant};

use super::Instance;
use crate::base::deadline;

/// One moment by both clocks: heartbeats are told by the one, and waited for by the
/// other.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) at: Instant,
    unix_millis: u64,
}

impl Clock {
    /// Now, by the store's clock if it has one.
    pub(super) fn now(store_millis: Option<u64>) -> Self {
        let ours = || deadline::unix_millis_after(Duration::ZERO);
        Self::at(Instant::now(), store_millis.unwrap_or_else(ours))
    }

    pub(super) fn at(at: Instant, unix_millis: u64) -> Self {
        Self { at, unix_millis }
    }

    /// The time since an instance was last heard of, by this clock; nothing for one of the
    /// near future, as a clock that is fast writes it.
    pub(super) fn age(&self, instance: &Instance) -> Duration {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        Duration::from_millis(self.unix_millis.saturating_sub(beat))
    }

    /// True if the heartbeat is of the time before or after now, as far as `heartbeat_ttl`.
    pub(super) fn is_young(&self, instance: &Instance, heartbeat_ttl: Duration) -> bool {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        let ahead = Duration::from_millis(beat.saturating_sub(self.unix_millis));
        ahead <= heartbeat_ttl && self.age(instance) < heartbeat_ttl
    }
}
