//! Retries of a delivery in this process.

use std::time::Duration;

use super::tracked::Tracked;

/// The failed attempts at a delivery while this process has held it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalAttempts {
    pub(crate) failed: usize,
    /// The number of times that its handler refused it as busy.
    pub(crate) refused: usize,
    pub(crate) first_error: Option<String>,
}

/// A delivery to be processed again in this process after `delay`.
pub(crate) struct LocalRetry {
    pub(crate) delivery: Tracked,
    pub(crate) attempt: LocalAttempts,
    pub(crate) delay: Duration,
}
