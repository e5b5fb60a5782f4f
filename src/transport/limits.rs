//! Limits on the size of outgoing messages.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// The default of [`BrokerBuilder::max_body`](crate::BrokerBuilder::max_body), in bytes.
pub(crate) const DEFAULT_MAX_BODY: usize = 16 << 20;

/// The limits on messages sent over a connection. The broker's own limits are learnt from its
/// refusals and at login.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The largest body that the user allows, in bytes.
    max_body: usize,
    /// The largest message over `max_body` that is dead-lettered with its body, in bytes.
    max_dead_letter: u64,
    /// The largest body that the broker accepts, in bytes; known once it has refused one.
    broker_max_body: AtomicUsize,
    /// The largest frame in bytes, negotiated at each login.
    frame_max: AtomicUsize,
}

/// The most bytes that a content header's frame has beside the headers: frame, class and size, ten
/// short strings, and numbers.
const MAX_OTHER_BYTES: usize = 8 + 14 + 10 * 256 + 32;

impl Limits {
    pub(crate) fn new(max_body: usize, max_dead_letter: usize, frame_max: usize) -> Self {
        Self {
            max_body,
            max_dead_letter: max_dead_letter as u64,
            broker_max_body: AtomicUsize::new(usize::MAX),
            frame_max: AtomicUsize::new(frame_max),
        }
    }

    /// Returns the size of the largest allowed body, in bytes.
    pub(crate) fn max_body(&self) -> usize {
        self.max_body
            .min(self.broker_max_body.load(Ordering::Relaxed))
    }

    /// Returns the size of the largest message over `max_body` that is dead-lettered with its body,
    /// in bytes.
    pub(crate) fn max_dead_letter(&self) -> u64 {
        self.max_dead_letter
    }

    /// Returns the size of the largest header table that fits a frame, in bytes.
    pub(crate) fn max_headers(&self) -> usize {
        let frame_max = self.frame_max.load(Ordering::Relaxed);
        frame_max.saturating_sub(MAX_OTHER_BYTES)
    }

    /// Sets the negotiated frame size, in bytes.
    pub(crate) fn set_frame_max(&self, bytes: usize) {
        self.frame_max.store(bytes, Ordering::Relaxed);
    }

    /// Records that the broker refused a body of `bytes`, and the limit if it named one.
    pub(crate) fn learn_max_body(&self, bytes: usize, named: Option<usize>) {
        let limit = named.unwrap_or(bytes.saturating_sub(1));
        self.broker_max_body.fetch_min(limit, Ordering::Relaxed);
    }

    /// Resets the broker's limit: after a reconnect the broker may be another one, or have other
    /// settings.
    pub(crate) fn forget_broker(&self) {
        self.broker_max_body.store(usize::MAX, Ordering::Relaxed);
    }

    /// Checks the size of a body for the routing key `key`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::PayloadTooLarge`] if the body is too large; the error names the
    /// limit and its origin.
    pub(crate) fn check_body(&self, key: &str, bytes: usize) -> Result<()> {
        let broker = self.broker_max_body.load(Ordering::Relaxed);
        let (limit, origin) = match self.max_body <= broker {
            true => (self.max_body, "max_body"),
            false => (broker, "the broker's max_message_size"),
        };
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::PayloadTooLarge,
            format!(
                "a message for {key:?} is {bytes} bytes long; at most {limit} are allowed ({origin})"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_applies_and_is_named() {
        let limits = Limits::new(1_000, 2_000, 131_072);
        assert!(limits.check_body("k", 1_000).is_ok());
        let error = limits.check_body("k", 1_001).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
        assert!(error.to_string().contains("max_body"), "{error}");
        limits.learn_max_body(900, Some(800));
        assert_eq!(limits.max_body(), 800);
        let error = limits.check_body("k", 801).unwrap_err();
        assert!(error.to_string().contains("max_message_size"), "{error}");
        limits.learn_max_body(700, None);
        assert_eq!(limits.max_body(), 699);
        limits.forget_broker();
        assert_eq!(limits.max_body(), 1_000);
    }

    #[test]
    fn headers_fit_a_frame() {
        let limits = Limits::new(1_000, 2_000, 131_072);
        assert!(limits.max_headers() > 120_000);
        limits.set_frame_max(8_192);
        assert!((5_000..8_192).contains(&limits.max_headers()));
        limits.set_frame_max(100);
        assert_eq!(limits.max_headers(), 0);
    }
}
