//! Peers that know what to do with several requests in one message, and peers that do not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::message::batch::{BATCH_ACTION, MOST_ITEMS};
use crate::message::{BoundedSeq, Reply};

/// A peer that did not understand is asked no sooner again: it may have been replaced.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// Which queues' consumers do not understand, and until when that is believed. No more
/// than have been asked in that time.
#[derive(Default)]
pub(super) struct BatchSupport {
    any: AtomicBool,
    not: Mutex<HashMap<String, Instant>>,
}

impl BatchSupport {
    /// May several requests with this routing key share a message?
    pub(super) fn is_supported(&self, routing_key: &str) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return true;
        }
        let mut not = self.not.lock();
        match not.get(routing_key) {
            Some(&until) if Instant::now() < until => false,
            Some(_) => {
                not.remove(routing_key);
                self.any.store(!not.is_empty(), Ordering::Relaxed);
                true
            }
            None => true,
        }
    }

    /// Its consumer does not understand.
    pub(super) fn mark_unsupported(&self, routing_key: &str) {
        let mut not = self.not.lock();
        let now = Instant::now();
        not.retain(|_, until| now < *until);
        if !not.contains_key(routing_key) {
            log::info!(
                target: "coney::client",
                "what takes {routing_key} does not know batches: it is sent one request at a time"
            );
        }
        not.insert(routing_key.to_owned(), now + BELIEVED_FOR);
        self.any.store(true, Ordering::Relaxed);
    }
}

/// Is it the answer of a peer that does not understand?
pub(super) fn is_unknown(body: &[u8]) -> bool {
    let unknown = |reply: Reply<'_>| {
        !reply.success && reply.error.strip_prefix("Unknown action: ") == Some(BATCH_ACTION)
    };
    Reply::decode(body).is_ok_and(unknown)
}

/// Is it the answer of one that did not fail?
pub(super) fn is_success(body: &[u8]) -> bool {
    Reply::decode(body).is_ok_and(|reply| reply.success)
}

/// An answer to several requests, each with its own reply.
#[derive(Deserialize)]
struct Replies<'a> {
    #[serde(borrow)]
    data: BoundedSeq<&'a RawValue, MOST_ITEMS>,
}

/// The replies in an answer to several requests, if it is one.
pub(super) fn replies(body: &[u8]) -> Option<Vec<&RawValue>> {
    let replies: Replies<'_> = serde_json::from_slice(body).ok()?;
    Some(replies.data.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_words_are_understood() {
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
    fn what_is_remembered_counts_for_that_queue() {
        let batch_support = BatchSupport::default();
        assert!(batch_support.is_supported("request.a"));
        batch_support.mark_unsupported("request.a");
        assert!(!batch_support.is_supported("request.a"));
        assert!(batch_support.is_supported("request.b"));
        batch_support
            .not
            .lock()
            .insert("request.a".to_owned(), Instant::now());
        assert!(batch_support.is_supported("request.a"));
        assert!(!batch_support.any.load(Ordering::Relaxed));
    }
}
