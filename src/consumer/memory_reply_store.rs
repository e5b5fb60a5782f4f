//! The reply store in the memory of one process.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{ClaimOutcome, ReplyStore, StoreError};
use crate::base::deadline;

/// A [`ReplyStore`] in the memory of this process, for a bounded number of replies: beyond it the
/// oldest are removed.
///
/// ```
/// use std::time::Duration;
/// use coney::deduplication::MemoryReplyStore;
/// use coney::{Broker, ServiceServer};
///
/// let store = MemoryReplyStore::new(100_000); // in an `Arc` to share it
/// let server = ServiceServer::builder(&Broker::memory(), "payments")
///     .respond("charge", |cents: u64| cents)
///     .deduplicate(store, Duration::from_secs(600))
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct MemoryReplyStore {
    entries: Mutex<Entries>,
    capacity: usize,
}

/// The entries of a store. Not a general cache: its eviction could remove a request in progress,
/// or a young reply before an old one.
#[derive(Default)]
struct Entries {
    by_key: HashMap<Arc<str>, Entry>,
    /// The keys of the replies, in the order in which they were stored.
    by_age: VecDeque<Arc<str>>,
}

struct Entry {
    /// The reply; `None` while the request is being handled.
    reply: Option<Vec<u8>>,
    owner: u64,
    until: Instant,
}

impl Entry {
    fn is_claim_of(&self, owner: u64) -> bool {
        self.reply.is_none() && self.owner == owner
    }
}

impl MemoryReplyStore {
    /// Creates a store for at most `replies` replies.
    pub fn new(replies: usize) -> Self {
        Self {
            entries: Mutex::default(),
            capacity: replies,
        }
    }
}

impl Entries {
    /// Removes replies that have expired, and the oldest beyond `capacity`.
    fn evict(&mut self, capacity: usize) {
        let now = Instant::now();
        while let Some(oldest) = self.by_age.front() {
            let entry = self.by_key.get(oldest);
            let is_expired = entry.is_none_or(|entry| entry.until <= now);
            if !is_expired && self.by_age.len() <= capacity {
                return;
            }
            if let Some(key) = self.by_age.pop_front()
                && self
                    .by_key
                    .get(&key)
                    .is_some_and(|entry| entry.reply.is_some())
            {
                self.by_key.remove(&key);
            }
        }
    }
}

impl ReplyStore for MemoryReplyStore {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        let mut entries = self.entries.lock();
        entries.evict(self.capacity);
        if let Some(entry) = entries.by_key.get(key).filter(|e| e.until > Instant::now()) {
            return Ok(match &entry.reply {
                Some(reply) => ClaimOutcome::Done(reply.clone()),
                None => ClaimOutcome::InProgress,
            });
        }
        let entry = Entry {
            reply: None,
            owner,
            until: deadline::after(lease),
        };
        entries.by_key.insert(key.into(), entry);
        Ok(ClaimOutcome::Granted)
    }

    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError> {
        let mut entries = self.entries.lock();
        let entry = entries.by_key.get_mut(key);
        let Some(entry) = entry.filter(|entry| entry.is_claim_of(owner)) else {
            return Ok(false);
        };
        entry.until = deadline::after(lease);
        Ok(true)
    }

    fn complete(
        &self,
        key: &str,
        owner: u64,
        reply: &[u8],
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let mut entries = self.entries.lock();
        let current = entries.by_key.get(key);
        if current.is_some_and(|entry| !entry.is_claim_of(owner)) {
            return Ok(false);
        }
        let key: Arc<str> = key.into();
        let entry = Entry {
            reply: Some(reply.to_vec()),
            owner,
            until: deadline::after(ttl),
        };
        entries.by_key.insert(Arc::clone(&key), entry);
        entries.by_age.push_back(key);
        entries.evict(self.capacity);
        Ok(true)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        let mut entries = self.entries.lock();
        let entry = entries.by_key.get(key);
        if entry.is_some_and(|entry| entry.is_claim_of(owner)) {
            entries.by_key.remove(key);
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryReplyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReplyStore")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_request_is_claimed_by_one_owner_and_done_once() {
        let store = MemoryReplyStore::new(10);
        let claim = || store.claim("a", 7, LONG).unwrap();
        assert_eq!(claim(), ClaimOutcome::Granted);
        assert_eq!(claim(), ClaimOutcome::InProgress);
        store.release("a", 7).unwrap();
        assert_eq!(claim(), ClaimOutcome::Granted);
        assert!(store.complete("a", 7, b"1", LONG).unwrap());
        assert_eq!(claim(), ClaimOutcome::Done(b"1".to_vec()));
        store.release("a", 7).unwrap();
        let done = ClaimOutcome::Done(b"1".to_vec());
        assert_eq!(claim(), done, "a stored reply stays");
    }

    #[test]
    fn a_late_owner_changes_nothing() {
        let store = MemoryReplyStore::new(10);
        store.claim("a", 1, Duration::ZERO).unwrap();
        assert_eq!(store.claim("a", 2, LONG).unwrap(), ClaimOutcome::Granted);
        assert!(!store.renew("a", 1, LONG).unwrap());
        assert!(!store.complete("a", 1, b"late", LONG).unwrap());
        store.release("a", 1).unwrap();
        assert_eq!(store.claim("a", 3, LONG).unwrap(), ClaimOutcome::InProgress);
        assert!(store.complete("a", 2, b"first", LONG).unwrap());
        assert!(!store.complete("a", 1, b"late", LONG).unwrap());
        let kept = store.claim("a", 3, LONG).unwrap();
        assert_eq!(kept, ClaimOutcome::Done(b"first".to_vec()));
    }

    #[test]
    fn a_renewed_lease_does_not_end() {
        let store = MemoryReplyStore::new(10);
        store.claim("a", 1, Duration::ZERO).unwrap();
        assert!(store.renew("a", 1, LONG).unwrap());
        assert_eq!(store.claim("a", 2, LONG).unwrap(), ClaimOutcome::InProgress);
    }

    #[test]
    fn leases_and_replies_expire_and_the_oldest_reply_is_evicted_first() {
        let store = MemoryReplyStore::new(2);
        let claim = |key| store.claim(key, 7, LONG).unwrap();
        store.claim("dead", 6, Duration::ZERO).unwrap();
        assert_eq!(
            claim("dead"),
            ClaimOutcome::Granted,
            "the first lease is over"
        );
        for key in ["a", "b", "c"] {
            assert_eq!(claim(key), ClaimOutcome::Granted);
            store.complete(key, 7, b"", LONG).unwrap();
        }
        assert_eq!(claim("a"), ClaimOutcome::Granted, "forgotten");
        assert_eq!(claim("b"), ClaimOutcome::Done(vec![]));
        assert_eq!(claim("dead"), ClaimOutcome::InProgress, "never forgotten");
        assert_eq!(claim("short"), ClaimOutcome::Granted);
        store.complete("short", 7, b"", Duration::ZERO).unwrap();
        assert_eq!(claim("short"), ClaimOutcome::Granted);
        assert!(store.entries.lock().by_age.len() <= 3);
    }
}
