//! A moment by both clocks of the machine.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks. The ids, the timestamp and the deadline of a request share it, as each
/// of them would otherwise read one clock or both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    at: Instant,
    since_epoch: Duration,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            since_epoch: since_epoch(),
        }
    }

    /// Returns the moment by the monotonic clock.
    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// Returns the moment by the wall clock, as the time since the Unix epoch.
    pub(crate) fn since_epoch(self) -> Duration {
        self.since_epoch
    }

    pub(crate) fn unix_seconds(self) -> i64 {
        i64::try_from(self.since_epoch.as_secs()).unwrap_or(i64::MAX)
    }
}

/// Reads the wall clock; zero before the Unix epoch.
pub(crate) fn since_epoch() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}
