//! The parts of a cache that its actions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::entries::Entries;
use super::flights::{Flights, Joined, Lead};
use super::invalidation::EventJob;
use super::job_thread::JobThread;
use super::key::Key;
use super::stats::{CacheStats, Counters};
use super::tags::{Stamp, TagVersions};
use crate::client::CachedAnswer;
use crate::error::Error;

/// The largest number of entries that wait to be refreshed; at the bound a stale entry stays as it is,
/// and a later call adds it again.
const MAX_REFRESHES: usize = 1_024;

/// The outcome of a request for all callers that wait for it.
#[derive(Clone)]
pub(super) enum Outcome {
    Answer(CachedAnswer),
    Error(Arc<Error>),
}

/// The lead of a request that callers wait for.
pub(super) type OutcomeLead = Lead<Key, Stamp, Outcome>;

/// The result of joining the request of other callers.
pub(super) type JoinedOutcome = Joined<Key, Stamp, Outcome>;

/// The state of a cache.
pub(super) struct Core {
    pub(super) entries: Entries,
    pub(super) tags: TagVersions,
    pub(super) flights: Arc<Flights<Key, Stamp, Outcome>>,
    pub(super) counters: Counters,
    /// The thread that refreshes stale entries.
    pub(super) refresher: JobThread<Box<dyn FnOnce() + Send>>,
    /// The thread that decodes events: apart from the other, whose calls may block.
    pub(super) events: JobThread<EventJob>,
    last_action: AtomicU64,
}

impl Core {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self {
            entries: Entries::new(max_bytes),
            tags: TagVersions::new(),
            flights: Arc::new(Flights::new()),
            counters: Counters::default(),
            refresher: JobThread::new("coney-cache", Some(MAX_REFRESHES)),
            events: JobThread::new("coney-invalidate", None),
            last_action: AtomicU64::new(0),
        }
    }

    /// Returns the number of a new action. Responses are not shared between clients: each may call on
    /// another broker.
    pub(super) fn next_action(&self) -> u64 {
        self.last_action.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.counters.hits.get(),
            stale: self.counters.stale.get(),
            misses: self.counters.misses.get(),
            shared: self.counters.shared.get(),
            evicted: self.entries.evicted(),
            bytes: self.entries.bytes(),
            entries: self.entries.len(),
        }
    }
}
