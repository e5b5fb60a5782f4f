//! Deadlines, as an `Instant` in this process and as a Unix time for others.

use std::time::{Duration, Instant};

use super::moment::since_epoch;

/// The longest timeout, a year: in effect no limit, and far from overflowing an `Instant`.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// Returns the moment `timeout` from now; a timeout too long to add counts as a year.
pub(crate) fn after(timeout: Duration) -> Instant {
    after_moment(Instant::now(), timeout)
}

/// Returns the moment `timeout` after `begin`; a timeout too long to add counts as a year.
pub(crate) fn after_moment(begin: Instant, timeout: Duration) -> Instant {
    begin + timeout.min(FAR)
}

/// Returns the moment `timeout` from now as a Unix time in milliseconds, for other machines; a
/// timeout too long to add counts as a year.
pub(crate) fn unix_millis_after(timeout: Duration) -> u64 {
    unix_millis(since_epoch(), timeout)
}

/// Returns the moment `timeout` after `begin`, a time since the Unix epoch, in milliseconds; a timeout
/// too long to add counts as a year.
pub(crate) fn unix_millis(begin: Duration, timeout: Duration) -> u64 {
    u64::try_from((begin + timeout.min(FAR)).as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time left until a Unix time in milliseconds; zero if it has passed.
pub(crate) fn until_unix_millis(at: u64) -> Duration {
    Duration::from_millis(at.saturating_sub(unix_millis_after(Duration::ZERO)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_timeout_overflows() {
        assert!(after(Duration::MAX) > Instant::now());
        let at = unix_millis_after(Duration::from_secs(10));
        let left = until_unix_millis(at);
        assert!(left > Duration::from_secs(9) && left <= Duration::from_secs(10));
        assert_eq!(until_unix_millis(0), Duration::ZERO);
        assert!(until_unix_millis(u64::MAX) > FAR);
    }
}
