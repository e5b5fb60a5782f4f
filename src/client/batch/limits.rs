//! The limits of a message that holds several calls.

use crate::message::batch::MOST_ITEMS;
use crate::transport::CoalesceLimits;

/// The limits of one message of a [`Batch`](crate::Batch), or of a client that
/// [coalesces](crate::client::ServiceClientBuilder::coalesce): 500 calls and 512 KiB by default.
///
/// ```
/// use coney::batch::BatchLimits;
///
/// let limits = BatchLimits::new().calls(100).bytes(64 << 10);
/// # let _ = limits;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "limits have no effect until a batch or a client gets them"]
pub struct BatchLimits {
    pub(in crate::client) calls: usize,
    pub(in crate::client) bytes: usize,
}

impl BatchLimits {
    /// Creates limits with the defaults.
    pub fn new() -> Self {
        Self {
            calls: CoalesceLimits::MESSAGES,
            bytes: CoalesceLimits::BYTES,
        }
    }

    /// Sets the largest number of calls, from 1 to 10,000; values beyond are clamped. Defaults
    /// to 500.
    pub fn calls(mut self, calls: usize) -> Self {
        self.calls = calls.clamp(1, MOST_ITEMS);
        self
    }

    /// Sets the largest size of the requests, in bytes; a request that is larger goes alone.
    /// Defaults to 512 KiB.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Lowers the size to what fits a message.
    pub(in crate::client) fn within(mut self, max_body: usize) -> Self {
        /// The bytes around the requests.
        const ENVELOPE: usize = 4_096;
        self.bytes = self.bytes.min(max_body.saturating_sub(ENVELOPE));
        self
    }

    pub(in crate::client) fn coalesce(self) -> CoalesceLimits {
        CoalesceLimits {
            messages: self.calls,
            bytes: self.bytes,
        }
    }
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self::new()
    }
}
