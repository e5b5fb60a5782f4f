use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::HandlerError;
use crate::deadline;

/// What a [`ReplyStore`] fails with: any error.
pub type StoreError = Box<dyn StdError + Send + Sync>;

/// Remembers which requests have been answered, and how, so that a repeated one
/// is not run again. Called by worker threads; may block for as long as it takes
/// to ask a database.
///
/// [`MemoryReplyStore`] serves one process. To share one between the servers of a
/// service, implement this over what they share; each operation must be atomic.
pub trait ReplyStore: Send + Sync {
    /// Takes the right to handle the request `key`, for at most `lease`, unless
    /// somebody has it or it has been handled. `owner` is a number of the one who
    /// asks, of this time only.
    ///
    /// # Errors
    ///
    /// Any; the request is not handled then, but fails.
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<Claim, StoreError>;

    /// The request has been handled: keeps its reply for `ttl`.
    ///
    /// # Errors
    ///
    /// Any; it is logged, and the request may be run again if it is repeated.
    fn complete(&self, key: &str, reply: &[u8], ttl: Duration) -> Result<(), StoreError>;

    /// The request has failed: it may be claimed again, unless `owner`'s lease has
    /// run out and it has been.
    ///
    /// # Errors
    ///
    /// Any; it is logged, and the claim ends with its lease.
    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError>;
}

/// What [`ReplyStore::claim`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody had it: handle the request.
    Granted,
    /// Somebody is handling the request.
    InProgress,
    /// The request was handled; its reply.
    Done(Vec<u8>),
}

/// A [`ReplyStore`] in this process, for at most so many requests: beyond that
/// the oldest replies are forgotten.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use coney::{Broker, MemoryReplyStore, ServiceServer};
///
/// let store = Arc::new(MemoryReplyStore::new(100_000));
/// let server = ServiceServer::builder(&Broker::memory(), "payments")
///     .handler("charge", |cents: u64| Ok::<_, String>(cents))
///     .deduplicate(store, Duration::from_secs(600))
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct MemoryReplyStore {
    entries: Mutex<Entries>,
    capacity: usize,
}

/// A general cache would do, but for its eviction: it must never pick a request
/// in progress, nor a young reply before an old one.
#[derive(Default)]
struct Entries {
    by_key: HashMap<Arc<str>, Entry>,
    /// The replies, in the order they were kept.
    by_age: VecDeque<Arc<str>>,
}

struct Entry {
    /// `None` while the request is being handled.
    reply: Option<Vec<u8>>,
    owner: u64,
    until: Instant,
}

impl MemoryReplyStore {
    /// A store that keeps at most `replies`.
    pub fn new(replies: usize) -> Self {
        Self {
            entries: Mutex::default(),
            capacity: replies,
        }
    }
}

impl Entries {
    /// Forgets replies that are too old, or too many.
    fn forget_old(&mut self, capacity: usize) {
        let now = Instant::now();
        while let Some(oldest) = self.by_age.front() {
            let too_old = self
                .by_key
                .get(oldest)
                .is_none_or(|entry| entry.until <= now);
            if !too_old && self.by_age.len() <= capacity {
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
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<Claim, StoreError> {
        let mut entries = self.entries.lock();
        entries.forget_old(self.capacity);
        if let Some(entry) = entries.by_key.get(key).filter(|e| e.until > Instant::now()) {
            return Ok(match &entry.reply {
                Some(reply) => Claim::Done(reply.clone()),
                None => Claim::InProgress,
            });
        }
        let entry = Entry {
            reply: None,
            owner,
            until: deadline::after(lease),
        };
        entries.by_key.insert(key.into(), entry);
        Ok(Claim::Granted)
    }

    fn complete(&self, key: &str, reply: &[u8], ttl: Duration) -> Result<(), StoreError> {
        let key: Arc<str> = key.into();
        let entry = Entry {
            reply: Some(reply.to_vec()),
            owner: 0, // nobody's any more
            until: deadline::after(ttl),
        };
        let mut entries = self.entries.lock();
        let before = entries.by_key.insert(Arc::clone(&key), entry);
        if before.is_none_or(|entry| entry.reply.is_none()) {
            entries.by_age.push_back(key);
        }
        entries.forget_old(self.capacity);
        Ok(())
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        let mut entries = self.entries.lock();
        let entry = entries.by_key.get(key);
        if entry.is_some_and(|entry| entry.reply.is_none() && entry.owner == owner) {
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

/// The use of a store for one queue.
pub(crate) struct Deduplication {
    /// What the keys begin with: a service, or a subscription.
    pub(crate) scope: String,
    pub(crate) store: Arc<dyn ReplyStore>,
    pub(crate) ttl: Duration,
    pub(crate) lease: Duration,
}

/// May a request be run?
pub(super) enum Admission<'a> {
    Run(Claimed<'a>),
    Repeated(Vec<u8>),
    InProgress,
    /// The store does not say.
    Unknown(HandlerError),
}

/// The right to run a request, given back when dropped.
pub(super) struct Claimed<'a> {
    by: &'a Deduplication,
    key: String,
    owner: u64,
    completed: bool,
}

impl Deduplication {
    pub(super) fn admit(&self, message_id: &str) -> Admission<'_> {
        let key = format!("{}/{message_id}", self.scope);
        let owner = fastrand::u64(1..);
        match self.store.claim(&key, owner, self.lease) {
            Ok(Claim::Granted) => Admission::Run(Claimed {
                by: self,
                key,
                owner,
                completed: false,
            }),
            Ok(Claim::Done(reply)) => Admission::Repeated(reply),
            Ok(Claim::InProgress) => Admission::InProgress,
            Err(error) => {
                let scope = &self.scope;
                log::error!(target: "coney::worker", "{scope}: the reply store: {error}");
                let fault = "whether the request is a repeated one cannot be told now";
                Admission::Unknown(HandlerError::new(fault).with_code("deduplication_failed"))
            }
        }
    }
}

impl Claimed<'_> {
    /// The request has been handled; this is its answer.
    pub(super) fn complete(mut self, reply: &[u8]) {
        self.completed = true;
        let Deduplication {
            scope, store, ttl, ..
        } = self.by;
        if let Err(error) = store.complete(&self.key, reply, *ttl) {
            log::error!(target: "coney::worker", "{scope}: the reply store: {error}");
        }
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if !self.completed
            && let Err(error) = self.by.store.release(&self.key, self.owner)
        {
            let scope = &self.by.scope;
            log::error!(target: "coney::worker", "{scope}: the reply store: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_at_a_time_and_once() {
        let store = MemoryReplyStore::new(10);
        let claim = || store.claim("a", 7, LONG).unwrap();
        assert_eq!(claim(), Claim::Granted);
        assert_eq!(claim(), Claim::InProgress);
        store.release("a", 7).unwrap();
        assert_eq!(claim(), Claim::Granted);
        store.complete("a", b"1", LONG).unwrap();
        assert_eq!(claim(), Claim::Done(b"1".to_vec()));
        store.release("a", 7).unwrap();
        assert_eq!(
            claim(),
            Claim::Done(b"1".to_vec()),
            "what is done stays done"
        );
    }

    #[test]
    fn leases_and_replies_end_and_the_oldest_goes_first() {
        let store = MemoryReplyStore::new(2);
        let claim = |key| store.claim(key, 7, LONG).unwrap();
        assert_eq!(
            store.claim("dead", 6, Duration::ZERO).unwrap(),
            Claim::Granted
        );
        assert_eq!(claim("dead"), Claim::Granted, "the first lease is over");
        store.release("dead", 6).unwrap();
        assert_eq!(claim("dead"), Claim::InProgress, "and its owner has no say");
        for key in ["a", "b", "c"] {
            assert_eq!(claim(key), Claim::Granted);
            store.complete(key, b"", LONG).unwrap();
        }
        assert_eq!(claim("a"), Claim::Granted, "forgotten");
        assert_eq!(claim("b"), Claim::Done(vec![]));
        assert_eq!(claim("dead"), Claim::InProgress, "never forgotten");
        store.complete("short", b"", Duration::ZERO).unwrap();
        assert_eq!(claim("short"), Claim::Granted);
        assert!(store.entries.lock().by_age.len() <= 3);
    }
}
