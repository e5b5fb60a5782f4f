//! Counters of a cache.

use std::sync::atomic::{AtomicU64, Ordering};

/// The numbers of a cache since it was created. From
/// [`ResponseCache::stats`](super::ResponseCache::stats).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// The number of calls that got a fresh response, or a remembered error.
    pub hits: u64,
    /// The number of calls that got a stale response: while it was refreshed, or instead of an error,
    /// in which case the call is a miss too.
    pub stale: u64,
    /// The number of calls that found no response, and called.
    pub misses: u64,
    /// The number of calls that waited for another call's response and got it, or its error.
    pub shared: u64,
    /// The number of responses that were removed to make room or replaced, or were too large to be
    /// stored.
    pub evicted: u64,
    /// The size of the stored responses with their keys, in bytes.
    pub bytes: u64,
    /// The number of stored responses.
    pub entries: usize,
}

/// A counter that threads increase.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of the callers.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: Counter,
    pub(super) stale: Counter,
    pub(super) misses: Counter,
    pub(super) shared: Counter,
}
