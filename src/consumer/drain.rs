//! The wait until all queued messages have been handled.

use std::thread;
use std::time::{Duration, Instant};

use crate::base::deadline;
use crate::error::{Error, ErrorKind, Phase, Result};

/// The interval between two counts: each asks the broker.
const COUNT_INTERVAL: Duration = Duration::from_millis(5);

/// The interval between two counts while all messages that are left wait for another attempt, or
/// the connection is lost.
const RETRY_COUNT_INTERVAL: Duration = Duration::from_millis(50);

/// The age up to which a count stands if there was no time for another one.
const FRESH: Duration = Duration::from_secs(1);

/// The numbers of messages that are left to be handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) queued: usize,
    pub(crate) running: usize,
    /// The messages that wait for another attempt; counted only when the others are done.
    pub(crate) waiting: usize,
}

impl Left {
    pub(crate) const NOTHING: Self = Self {
        queued: 0,
        running: 0,
        waiting: 0,
    };

    fn is_nothing(self) -> bool {
        self.queued + self.running + self.waiting == 0
    }

    /// Returns the result of a drain after its shutdown: an error if messages are left in a queue.
    /// Handlers that ran at the end of `drain` have ended with the shutdown, or that has failed.
    pub(crate) fn into_result(self, owner: &str, timeout: Duration) -> Result<()> {
        let Self {
            queued, waiting, ..
        } = self;
        if queued + waiting == 0 {
            return Ok(());
        }
        Err(Error::timed_out(
            Phase::Shutdown,
            format!(
                "{owner} is not drained after {timeout:?}: {queued} messages are queued, and \
                 {waiting} wait for another attempt"
            ),
        ))
    }
}

/// Blocks until `count` finds nothing left, at most for half of `timeout`, as the shutdown needs the
/// rest; returns the last count. `count` is called with the end of that half, and must not block
/// longer. A count that times out, or fails because the connection is lost or cannot be made, is
/// repeated.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] if the last count failed in one of these ways, and none has succeeded
/// shortly before; another error of `count`
/// ends the drain.
pub(crate) fn drain(
    owner: &str,
    timeout: Duration,
    mut count: impl FnMut(Instant) -> Result<Left>,
) -> Result<Left> {
    let end = deadline::after(timeout / 2);
    // A message on its way from the queue to a worker is in neither count: two empty ones are
    // needed.
    let mut empty = 0;
    let mut last = None;
    loop {
        let counted = count(end);
        let is_expired = Instant::now() >= end;
        let left = match counted {
            Ok(left) => left,
            Err(error) if !may_be_repeated(&error) => return Err(error),
            Err(error) if is_expired => {
                if let Some((left, at)) = last
                    && Instant::now() < at + FRESH
                {
                    return Ok(left);
                }
                let fault = format!(
                    "{owner} is not drained after {timeout:?}: the messages that are left cannot \
                     be counted"
                );
                return Err(Error::timed_out(Phase::Shutdown, fault).with_source(error));
            }
            Err(_) => {
                empty = 0;
                thread::sleep(RETRY_COUNT_INTERVAL);
                continue;
            }
        };
        last = Some((left, Instant::now()));
        empty = if left.is_nothing() { empty + 1 } else { 0 };
        if empty == 2 || is_expired {
            return Ok(left);
        }
        thread::sleep(match left.waiting {
            0 => COUNT_INTERVAL,
            _ => RETRY_COUNT_INTERVAL,
        });
    }
}

/// Returns true for an error of a count that says nothing about the next one.
fn may_be_repeated(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Connect | ErrorKind::ConnectionLost | ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(200);

    #[test]
    fn a_count_that_times_out_ends_with_its_half() {
        let begun = Instant::now();
        let mut counts = 0;
        let drained = drain("math", TIMEOUT, |end| {
            counts += 1;
            assert!(end.saturating_duration_since(begun) < TIMEOUT, "its half");
            let first = begun + TIMEOUT / 8;
            let until = if counts == 1 { first } else { end };
            thread::sleep(until.saturating_duration_since(Instant::now()));
            Err(Error::timed_out(Phase::Broker, "no answer"))
        });
        assert_eq!(counts, 2);
        let error = drained.unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Shutdown));
        assert!(
            error.to_string().starts_with("math is not drained after"),
            "{error}"
        );
    }

    #[test]
    fn a_count_for_which_no_time_is_left_changes_nothing() {
        let counted = Left {
            queued: 3,
            ..Left::NOTHING
        };
        let mut counts = 0;
        let drained = drain("math", TIMEOUT, |end| {
            counts += 1;
            if counts == 1 {
                return Ok(counted);
            }
            thread::sleep(end.saturating_duration_since(Instant::now()));
            Err(Error::timed_out(Phase::Broker, "no answer"))
        });
        assert_eq!(drained.unwrap().queued, 3);
    }

    #[test]
    fn other_errors_end_a_drain() {
        let drained = drain("math", 1_000 * TIMEOUT, |_| {
            Err(Error::new(ErrorKind::Closed, "closed"))
        });
        assert_eq!(drained.unwrap_err().kind(), ErrorKind::Closed);
    }
}
