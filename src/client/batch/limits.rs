use crate::message::batch::MOST_ITEMS;
use crate::transport::CoalesceLimits;

/// How much goes into one message of a [`Batch`](crate::Batch), and of a client that
/// [coalesces](crate::ServiceClientBuilder::coalesce). By default 500 calls and 512 KiB.
///
/// ```
/// use coney::BatchLimits;
///
/// let limits = BatchLimits::new().calls(100).bytes(64 << 10);
/// # let _ = limits;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    pub(in crate::client) calls: usize,
    pub(in crate::client) bytes: usize,
}

impl BatchLimits {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            calls: CoalesceLimits::MESSAGES,
            bytes: CoalesceLimits::BYTES,
        }
    }

    /// How many calls at most, from 1 to 10,000; less counts as the one, more as the other.
    /// Default: 500.
    pub fn calls(mut self, calls: usize) -> Self {
        self.calls = calls.clamp(1, MOST_ITEMS);
        self
    }

    /// How many bytes of requests at most; a request that is larger goes alone. Default:
    /// 512 KiB.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// The same, and no more than fits a message.
    pub(in crate::client) fn within(mut self, max_body: usize) -> Self {
        /// For what stands round the requests.
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
