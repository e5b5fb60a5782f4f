//! The wait until all queued messages have been handled.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Phase, Result};

/// The interval between two counts: each asks the broker.
const COUNT_INTERVAL: Duration = Duration::from_millis(5);

/// The interval between two counts while all messages that are left wait for another attempt, or
/// the connection is lost.
const RETRY_COUNT_INTERVAL: Duration = Duration::from_millis(50);

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

/// Blocks until `count` finds nothing left, at most for `timeout`; returns the last count. A count
/// that fails because the connection is lost is repeated.
pub(crate) fn drain(timeout: Duration, mut count: impl FnMut() -> Result<Left>) -> Result<Left> {
    let end = Instant::now() + timeout.min(Duration::from_secs(60 * 60 * 24 * 365));
    // A message on its way from the queue to a worker is in neither count: two empty ones are
    // needed.
    let mut empty = 0;
    loop {
        let counted = count();
        let is_expired = Instant::now() >= end;
        let left = match counted {
            Ok(left) => left,
            Err(error) if !is_expired && error.kind() == ErrorKind::ConnectionLost => {
                empty = 0;
                thread::sleep(RETRY_COUNT_INTERVAL);
                continue;
            }
            Err(error) => return Err(error),
        };
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
