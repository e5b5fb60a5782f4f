//! Waiting until everything that is queued has been handled.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Phase, Result};

/// The time for which it waits before it looks again: the broker is asked each time.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The same while all that is left waits for another attempt.
const LATER_INTERVAL: Duration = Duration::from_millis(50);

/// The messages that are left to be handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) queued: usize,
    pub(crate) running: usize,
    /// What waits for another attempt; not looked at before the others are done.
    pub(crate) later: usize,
}

impl Left {
    pub(crate) const NOTHING: Self = Self {
        queued: 0,
        running: 0,
        later: 0,
    };

    fn is_nothing(self) -> bool {
        self.queued + self.running + self.later == 0
    }

    /// What is told after a shutdown: an error if something is left in a queue. What ran at
    /// the end of `drain` has ended with the shutdown, or that has failed.
    pub(crate) fn told(self, owner: &str, timeout: Duration) -> Result<()> {
        let Self { queued, later, .. } = self;
        if queued + later == 0 {
            return Ok(());
        }
        Err(Error::timed_out(
            Phase::Shutdown,
            format!(
                "{owner} is not drained after {timeout:?}: {queued} messages are queued, and \
                 {later} wait for another attempt"
            ),
        ))
    }
}

/// Waits until nothing is left, at most `timeout`; returns what is. What cannot be found out
/// while the connection is lost is asked again.
pub(crate) fn drain(timeout: Duration, mut look: impl FnMut() -> Result<Left>) -> Result<Left> {
    let end = Instant::now() + timeout.min(Duration::from_secs(60 * 60 * 24 * 365));
    // A message may be on its way between the queue and a worker: seen in neither.
    let mut empty = 0;
    loop {
        let looked = look();
        let is_expired = Instant::now() >= end;
        let left = match looked {
            Ok(left) => left,
            Err(error) if !is_expired && error.kind() == ErrorKind::ConnectionLost => {
                empty = 0;
                thread::sleep(LATER_INTERVAL);
                continue;
            }
            Err(error) => return Err(error),
        };
        empty = if left.is_nothing() { empty + 1 } else { 0 };
        if empty == 2 || is_expired {
            return Ok(left);
        }
        thread::sleep(match left.later {
            0 => LOOK_INTERVAL,
            _ => LATER_INTERVAL,
        });
    }
}
