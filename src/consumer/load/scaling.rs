//! The settings of a number of workers that follows the load.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The settings by which the number of workers follows the load, within the range of
/// [`WorkerCount`](crate::server::WorkerCount).
///
/// The number doubles every 100 ms while all workers are busy, the prefetch is full, and requests
/// would wait for longer than the [target](Scaling::target_wait): from 2 to 32 in half a second. A
/// worker that had nothing to do for the [idle time](Scaling::idle) ends, down to the lowest
/// number; no worker ends while its handler runs. The prefetch follows the number.
///
/// More workers do not help handlers that compute: on Linux, where the processor time of the
/// workers can be read, there are no more of them than the processors can run, with a quarter to
/// spare. A worker whose handler waits for a call to its own service counts as not there, so such
/// calls find a worker as long as the highest number is not reached.
///
/// ```
/// use std::time::Duration;
/// use coney::server::Scaling;
///
/// let scaling = Scaling::new().target_wait(Duration::from_millis(20)).idle(Duration::from_secs(60));
/// # let _ = scaling;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "scaling has no effect until a server or a subscriber gets it"]
pub struct Scaling {
    target_wait: Duration,
    idle: Duration,
}

impl Scaling {
    /// Creates settings with the defaults.
    pub fn new() -> Self {
        Self {
            target_wait: Duration::from_millis(50),
            idle: Duration::from_secs(10),
        }
    }

    /// Sets the estimated time for which a request may wait before there are more workers: longer
    /// than zero. Defaults to 50 ms.
    pub fn target_wait(mut self, wait: Duration) -> Self {
        self.target_wait = wait;
        self
    }

    /// Sets the time without a request after which a worker ends: longer than zero. Defaults to
    /// 10 s.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Returns the estimated time for which a request may wait.
    pub(super) fn wait(&self) -> Duration {
        self.target_wait
    }

    /// Returns the time without a request after which a worker ends.
    pub(crate) fn idle_time(&self) -> Duration {
        self.idle
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for the first setting that is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        let remedy = if self.target_wait.is_zero() {
            "set target_wait to more than zero, such as 50 ms"
        } else if self.idle.is_zero() {
            "set idle to more than zero, such as 10 s"
        } else {
            return Ok(());
        };
        let text = format!("invalid scaling: {remedy}");
        Err(Error::new(ErrorKind::InvalidConfig, text))
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_zero_are_refused_with_a_remedy() {
        for (scaling, remedy) in [
            (
                Scaling::new().target_wait(Duration::ZERO),
                "target_wait to more",
            ),
            (Scaling::new().idle(Duration::ZERO), "idle to more"),
        ] {
            let error = scaling.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(remedy), "{error}");
        }
        assert!(Scaling::default().check().is_ok());
    }
}
