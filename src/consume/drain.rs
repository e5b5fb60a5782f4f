//! Waiting until everything that is queued has been handled.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Phase, Result};

/// How long it waits before it looks again: the broker is asked each time.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until nothing is queued and no handler runs, at most `timeout`. `look` gives both
/// numbers. `owner` is whose they are.
pub(crate) fn drain(
    owner: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<(usize, usize)>,
) -> Result<()> {
    let end = Instant::now() + timeout.min(Duration::from_secs(60 * 60 * 24 * 365));
    // A message may be on its way between the queue and a worker: seen in neither.
    let mut empty = 0;
    loop {
        let (queued, running) = look()?;
        empty = if queued + running == 0 { empty + 1 } else { 0 };
        if empty == 2 {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Error::timed_out(
                Phase::Shutdown,
                format!(
                    "{owner} is not drained after {timeout:?}: {queued} messages are queued and \
                     {running} fetched"
                ),
            ));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}
