//! Services that do not know messages of several requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::base::log_relay;
use crate::message::batch::{BATCH_ACTION, MOST_ITEMS};
use crate::message::{BoundedSeq, Reply};

/// The time after which a service is sent a batch again: it may have been replaced.
const UNSUPPORTED_FOR: Duration = Duration::from_secs(60);

/// The routing keys whose services do not know batches, each with the moment until which that
/// is believed. At most those that were called in that time.
#[derive(Default)]
pub(super) struct BatchSupport {
    any_unsupported: AtomicBool,
    unsupported: Mutex<HashMap<String, Instant>>,
}

impl BatchSupport {
    /// Returns true if several requests with this routing key may share a message.
    pub(super) fn is_supported(&self, routing_key: &str) -> bool {
        if !self.any_unsupported.load(Ordering::Relaxed) {
            return true;
        }
        let mut unsupported = self.unsupported.lock();
        match unsupported.get(routing_key) {
            Some(&until) if Instant::now() < until => false,
            Some(_) => {
                unsupported.remove(routing_key);
                self.any_unsupported
                    .store(!unsupported.is_empty(), Ordering::Relaxed);
                true
            }
            None => true,
        }
    }

    /// Records that the service behind a routing key does not know batches.
    pub(super) fn mark_unsupported(&self, routing_key: &str) {
        let mut unsupported = self.unsupported.lock();
        let now = Instant::now();
        unsupported.retain(|_, until| now < *until);
        let before = unsupported.insert(routing_key.to_owned(), now + UNSUPPORTED_FOR);
        self.any_unsupported.store(true, Ordering::Relaxed);
        drop(unsupported);
        if before.is_none() {
            // This may be an I/O thread, which runs no logger.
            log_relay::log(
                log::Level::Info,
                "coney::client",
                format_args!(
                    "{routing_key} does not know batches: its requests are sent one by one"
                ),
            );
        }
    }
}

/// Returns true for the reply of a service that does not know batches.
pub(super) fn is_unknown(body: &[u8]) -> bool {
    let unknown = |reply: Reply<'_>| {
        !reply.success && reply.error.strip_prefix("Unknown action: ") == Some(BATCH_ACTION)
    };
    Reply::decode(body).is_ok_and(unknown)
}

/// Returns true for a reply that is no error.
pub(super) fn is_success(body: &[u8]) -> bool {
    Reply::decode(body).is_ok_and(|reply| reply.success)
}

/// A reply to several requests, which holds a reply to each.
#[derive(Deserialize)]
struct Replies<'a> {
    #[serde(borrow)]
    data: BoundedSeq<&'a RawValue, MOST_ITEMS>,
}

/// Returns the replies in a reply to several requests, if it is one.
pub(super) fn replies(body: &[u8]) -> Option<Vec<&RawValue>> {
    let replies: Replies<'_> = serde_json::from_slice(body).ok()?;
    Some(replies.data.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_error_text_is_recognised() {
        assert!(is_unknown(
            br#"{"success":false,"error":"Unknown action: $batch"}"#
        ));
        assert!(!is_unknown(
            br#"{"success":false,"error":"Unknown action: batch"}"#
        ));
        assert!(!is_unknown(br#"{"success":true,"data":[]}"#));
        assert!(
            replies(br#"{"success":true,"data":[{"a":1},null]}"#).is_some_and(|r| r.len() == 2)
        );
        assert!(replies(br#"{"success":false,"error":"x"}"#).is_none());
    }

    #[test]
    fn a_mark_counts_for_its_routing_key_and_ends() {
        let batch_support = BatchSupport::default();
        assert!(batch_support.is_supported("request.a"));
        batch_support.mark_unsupported("request.a");
        assert!(!batch_support.is_supported("request.a"));
        assert!(batch_support.is_supported("request.b"));
        batch_support
            .unsupported
            .lock()
            .insert("request.a".to_owned(), Instant::now());
        assert!(batch_support.is_supported("request.a"));
        assert!(!batch_support.any_unsupported.load(Ordering::Relaxed));
    }
}
