//! Callers' deadlines, corrected by the estimated offsets of the callers' clocks.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::base::deadline;
use crate::message::{DEADLINE_HEADER, Headers, TIMEOUT_HEADER};

/// The time for which a measurement of an offset counts, in milliseconds.
const WINDOW_MS: i64 = 5 * 60 * 1_000;

/// The time for which the clock of a new source is assumed to be right, in milliseconds, as long
/// as its timestamps are plausible: its first messages may have waited in a queue, and the wait
/// must not be taken for an offset.
const PROBATION_MS: i64 = 2_000;

/// The largest number of sources that are remembered: each is a connection of another process.
const MAX_SOURCES: usize = 4_096;

/// The estimated clock offsets of all callers.
#[derive(Default)]
pub(crate) struct ClockOffsets {
    sources: Mutex<HashMap<Box<str>, Offset>>,
}

impl ClockOffsets {
    /// Returns the moment when the caller of a request with these headers stops waiting, if the
    /// headers say so.
    ///
    /// `source` names the caller's connection, `arrived` is the moment when the request arrived
    /// in this process. A republished copy does not expire in its queue, so it may have waited
    /// for longer than its timeout.
    pub(super) fn deadline(
        &self,
        headers: &Headers<'_>,
        source: &str,
        arrived: Instant,
        is_copy: bool,
    ) -> Option<Instant> {
        let (timeout, at) = match headers.get_each::<u64, 2>([TIMEOUT_HEADER, DEADLINE_HEADER]) {
            [Some(timeout), Some(at)] => (timeout, at),
            [Some(timeout), None] => return Some(after(arrived, timeout)),
            // A client that sends an absolute deadline only.
            [None, Some(at)] => return Some(deadline::after(deadline::until_unix_millis(at))),
            [None, None] => return None,
        };
        let timeout_ms = i64::try_from(timeout).unwrap_or(i64::MAX);
        let sent = i64::try_from(at)
            .unwrap_or(i64::MAX)
            .saturating_sub(timeout_ms);
        let now = local_millis(arrived);
        let raw = now.saturating_sub(sent);
        let waited = {
            let mut sources = self.sources.lock();
            if sources.len() >= MAX_SOURCES && !sources.contains_key(source) {
                sources.retain(|_, offset| now - offset.latest < WINDOW_MS);
                if sources.len() >= MAX_SOURCES {
                    sources.clear();
                }
            }
            match sources.get_mut(source) {
                Some(offset) => offset.waited(raw, timeout_ms, now),
                None => {
                    let offset = sources.entry(source.into()).or_insert(Offset::new(now));
                    offset.waited(raw, timeout_ms, now)
                }
            }
        };
        let waited = match waited {
            Some(waited) => waited,
            None if is_copy => timeout_ms,
            None => 0,
        };
        let left = timeout.saturating_sub(u64::try_from(waited).unwrap_or(0));
        Some(after(arrived, left))
    }
}

fn after(arrived: Instant, millis: u64) -> Instant {
    // Bounded, so that the sum does not overflow.
    let left = Duration::from_millis(millis).min(Duration::from_secs(60 * 60 * 24 * 365));
    arrived + left
}

/// Converts a moment to Unix milliseconds: the wall clock is read once per process and advanced
/// by the monotonic clock, so the result does not jump.
fn local_millis(at: Instant) -> i64 {
    static START: LazyLock<(Instant, i64)> = LazyLock::new(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = wall.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0));
        (Instant::now(), millis)
    });
    let (start, wall) = *START;
    let later = i64::try_from(at.saturating_duration_since(start).as_millis()).unwrap_or(0);
    let earlier = i64::try_from(start.saturating_duration_since(at).as_millis()).unwrap_or(0);
    wall.saturating_add(later).saturating_sub(earlier)
}

/// The offset of one source's clock from the local one: the smallest difference between the
/// arrival and the sending of a message in the last five minutes, since no message arrives
/// before it is sent. Reads no clock: the caller passes the time, in milliseconds.
#[derive(Debug)]
struct Offset {
    /// The smallest difference in the current half of the window, and in the half before.
    halves: [Option<i64>; 2],
    half_began: i64,
    known_since: i64,
    latest: i64,
}

impl Offset {
    fn new(now: i64) -> Self {
        Self {
            halves: [None; 2],
            half_began: now,
            known_since: now,
            latest: now,
        }
    }

    /// Returns the time for which a message waited, if the two clocks differ by `raw` between its
    /// sending and its arrival; `None` if the result is longer than its timeout. The message
    /// would have expired, so a clock has jumped: measuring starts over.
    fn waited(&mut self, raw: i64, timeout: i64, now: i64) -> Option<i64> {
        self.latest = now;
        if now - self.half_began >= WINDOW_MS / 2 {
            let skipped = now - self.half_began >= WINDOW_MS;
            self.halves = [None, self.halves[0].filter(|_| !skipped)];
            self.half_began = now;
        }
        let smallest = self.halves[0].map_or(raw, |before| before.min(raw));
        self.halves[0] = Some(smallest);
        let measured = self.halves[1].map_or(smallest, |before| before.min(smallest));
        let is_new = now - self.known_since < PROBATION_MS;
        let offset = match is_new && (0..=timeout).contains(&measured) {
            true => 0,
            false => measured,
        };
        let waited = raw.saturating_sub(offset);
        if waited > timeout {
            self.halves = [Some(raw), None];
            self.half_began = now;
            return None;
        }
        Some(waited.max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: i64 = 5_000;
    const HOUR: i64 = 3_600_000;

    #[test]
    fn equal_clocks_measure_the_waiting_time() {
        let mut offset = Offset::new(0);
        assert_eq!(
            offset.waited(4_000, TIMEOUT, 0),
            Some(4_000),
            "the first too"
        );
        assert_eq!(
            offset.waited(3_900, TIMEOUT, 10),
            Some(3_900),
            "and its successors"
        );
        assert_eq!(offset.waited(1, TIMEOUT, 3_000), Some(0));
        assert_eq!(offset.waited(3_001, TIMEOUT, 10_000), Some(3_000));
    }

    #[test]
    fn a_skewed_clock_changes_nothing() {
        for skew in [-HOUR, -8_000, 8_000, HOUR] {
            let mut offset = Offset::new(0);
            assert_eq!(offset.waited(skew, TIMEOUT, 0), Some(0), "{skew}");
            assert_eq!(
                offset.waited(skew + 2_000, TIMEOUT, 3_000),
                Some(2_000),
                "{skew}"
            );
            assert_eq!(offset.waited(skew, TIMEOUT, 4_000), Some(0), "{skew}");
        }
        let mut offset = Offset::new(0);
        offset.waited(3_000, TIMEOUT, 0); // less than the timeout: applied after the probation
        assert_eq!(offset.waited(3_000, TIMEOUT, 2_500), Some(0));
    }

    #[test]
    fn a_clock_that_jumps_starts_over() {
        let mut offset = Offset::new(0);
        offset.waited(5, TIMEOUT, 0);
        for (n, jump) in [HOUR, -HOUR, 2 * HOUR, 5].into_iter().enumerate() {
            let now = 10_000 * (1 + n as i64);
            let waited = offset.waited(jump, TIMEOUT, now);
            assert_eq!(waited.unwrap_or(0), 0, "{jump}");
            assert_eq!(
                offset.waited(jump + 100, TIMEOUT, now + 1),
                Some(100),
                "{jump}"
            );
        }
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let mut offset = Offset::new(0);
        offset.waited(0, TIMEOUT, 0);
        let later = 2 * WINDOW_MS;
        assert_eq!(
            offset.waited(1_000, TIMEOUT, later),
            Some(0),
            "its clock drifts"
        );
    }

    #[test]
    fn the_deadline_is_counted_from_the_arrival() {
        let (clocks, arrived) = (ClockOffsets::default(), Instant::now());
        let headers = |timeout: u64, sent: i64| {
            let mut headers = Headers::new();
            headers.insert(TIMEOUT_HEADER, &timeout);
            headers.insert(DEADLINE_HEADER, &(sent + timeout as i64));
            headers
        };
        let behind = local_millis(arrived) - 8_000;
        let deadline = clocks.deadline(&headers(5_000, behind), "amq.gen-a", arrived, false);
        assert_eq!(deadline, Some(arrived + Duration::from_secs(5)));
        let none = clocks.deadline(&Headers::new(), "amq.gen-a", arrived, false);
        assert_eq!(none, None);
        let mut only = Headers::new();
        only.insert(TIMEOUT_HEADER, &u64::MAX);
        assert!(clocks.deadline(&only, "", arrived, false).is_some());
        for n in 0..3 * MAX_SOURCES {
            clocks.deadline(&headers(5, behind), &n.to_string(), arrived, false);
        }
        assert!(clocks.sources.lock().len() <= MAX_SOURCES);
    }

    proptest! {
        #[test]
        fn the_waiting_time_is_between_zero_and_the_timeout(
            messages in prop::collection::vec((-HOUR..HOUR, 0..10_000i64, 0..400_000i64), 1..50),
        ) {
            let (mut offset, mut now) = (Offset::new(0), 0);
            for (raw, timeout, pause) in messages {
                now += pause;
                let waited = offset.waited(raw, timeout, now).unwrap_or(0);
                prop_assert!((0..=timeout).contains(&waited));
            }
        }
    }
}
