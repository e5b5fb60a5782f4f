//! Attempts at a delivery that are made again in this process.

use std::time::Duration;

use super::tracked::Tracked;

/// The attempts at a delivery that have failed while it was held here.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalAttempts {
    pub(crate) failed: usize,
    pub(crate) first_error: Option<String>,
}

/// A delivery that is to be processed again here, after a while.
pub(crate) struct LocalRetry {
    pub(crate) delivery: Tracked,
    pub(crate) attempt: LocalAttempts,
    pub(crate) delay: Duration,
}
