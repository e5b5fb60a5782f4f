//! The stored responses, bounded in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use super::key::{Key, KeyRef};
use super::standing::Ages;
use super::tags::Stamp;
use crate::error::Error;

/// The bytes that an entry takes beside its key and its text: the entry, its places in the table and
/// among those that were evicted lately, and the allocator's own.
const OVERHEAD: usize = 320;

/// The number of parts of the store with locks and bounds of their own. An entry larger than its part
/// is not kept, so there are few.
const SHARDS: usize = 16;

/// The size of an entry from which the number of entries is estimated, in bytes.
const TYPICAL_ENTRY: u64 = 1 << 10;

/// A stored response.
pub(super) struct Entry {
    pub(super) response: Response,
    pub(super) stamp: Stamp,
    pub(super) ages: Ages,
    /// The moment before its request was sent.
    pub(super) since: Instant,
    /// The moment from which it may be refreshed; `None` while that is under way.
    next_refresh: Mutex<Option<Instant>>,
    bytes: u64,
}

/// A response, or a remembered error.
#[derive(Clone, Debug)]
pub(super) enum Response {
    /// The JSON text of the reply's data.
    Text(Arc<str>),
    Error(Arc<Error>),
}

/// The shortest time between two refreshes of an entry: one that does not become fresh must not be
/// refreshed all the time.
pub(super) const REFRESH_PAUSE: Duration = Duration::from_secs(1);

impl Entry {
    pub(super) fn new(
        key: &Key,
        response: Response,
        stamp: Stamp,
        ages: Ages,
        since: Instant,
    ) -> Self {
        let text = match &response {
            Response::Text(text) => text.len(),
            Response::Error(error) => error.to_string().len(),
        };
        Self {
            bytes: (key.bytes() + text + stamp.bytes() + OVERHEAD) as u64,
            response,
            stamp,
            ages,
            since,
            next_refresh: Mutex::new(Some(since + ages.ttl.min(REFRESH_PAUSE))),
        }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Takes the one right to refresh the entry. Returns false if it is taken, or was lately.
    pub(super) fn begin_refresh(&self, now: Instant) -> bool {
        let mut next = self.next_refresh.lock();
        let may_begin = next.is_some_and(|next| next <= now);
        if may_begin {
            *next = None;
        }
        may_begin
    }

    /// Returns the right to refresh, for later.
    pub(super) fn end_refresh(&self, now: Instant) {
        *self.next_refresh.lock() = Some(now + REFRESH_PAUSE);
    }
}

/// The stored responses of all actions of a cache.
pub(super) struct Entries {
    cache: Cache<Key, Arc<Entry>, Bytes, DefaultHashBuilder, Evictions>,
    evicted: Arc<AtomicU64>,
}

impl Entries {
    /// Creates a store of at most `max_bytes`.
    pub(super) fn new(max_bytes: u64) -> Self {
        let evicted = Arc::new(AtomicU64::new(0));
        let count = (max_bytes / TYPICAL_ENTRY).max(1);
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity(usize::try_from(count).unwrap_or(usize::MAX))
            .weight_capacity(max_bytes)
            .build();
        let evictions = Evictions(Arc::clone(&evicted));
        let cache = match options {
            Ok(options) => {
                Cache::with_options(options, Bytes, DefaultHashBuilder::default(), evictions)
            }
            // Only for lack of one of the settings above.
            Err(_) => Cache::with(
                1,
                max_bytes,
                Bytes,
                DefaultHashBuilder::default(),
                evictions,
            ),
        };
        Self { cache, evicted }
    }

    pub(super) fn get(&self, key: KeyRef<'_>) -> Option<Arc<Entry>> {
        self.cache.get(&key)
    }

    /// Stores an entry, unless the present one belongs to a later request.
    pub(super) fn store(&self, key: Key, entry: Entry) {
        let present = self.cache.peek(&key.as_ref());
        if present.is_none_or(|present| present.since <= entry.since) {
            self.cache.insert(key, Arc::new(entry));
        }
    }

    pub(super) fn clear(&self) {
        self.cache.clear();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }

    /// Returns the number of entries that were evicted, or too large to be stored.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

/// The weight of an entry: its bytes.
#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Arc<Entry>> for Bytes {
    fn weight(&self, _key: &Key, entry: &Arc<Entry>) -> u64 {
        entry.bytes
    }
}

/// The counter of evicted entries.
#[derive(Clone)]
struct Evictions(Arc<AtomicU64>);

impl Lifecycle<Key, Arc<Entry>> for Evictions {
    type RequestState = ();

    fn on_evict(&self, _state: &mut (), _key: Key, _entry: Arc<Entry>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AGES: Ages = Ages {
        ttl: Duration::from_secs(60),
        stale_for: Duration::ZERO,
        stale_if_error: Duration::ZERO,
    };

    fn key(payload: &str) -> Key {
        KeyRef {
            action: 1,
            varied: &[],
            payload,
        }
        .to_key()
    }

    fn entry(key: &Key, bytes: usize, since: Instant) -> Entry {
        let text = Response::Text("x".repeat(bytes).into());
        Entry::new(key, text, Stamp::without_tags(), AGES, since)
    }

    fn text(entries: &Entries, key: &Key) -> Option<usize> {
        match &entries.get(key.as_ref())?.response {
            Response::Text(text) => Some(text.len()),
            Response::Error(_) => None,
        }
    }

    #[test]
    fn the_response_of_a_later_request_stays() {
        let entries = Entries::new(1 << 20);
        let (key, now) = (key("k"), Instant::now());
        let later = now + Duration::from_secs(1);
        entries.store(key.clone(), entry(&key, 2, later));
        entries.store(key.clone(), entry(&key, 1, now));
        assert_eq!(text(&entries, &key), Some(2));
        entries.store(key.clone(), entry(&key, 3, later));
        assert_eq!(text(&entries, &key), Some(3));
    }

    #[test]
    fn an_entry_is_refreshed_once_at_a_time_and_not_at_once_again() {
        let now = Instant::now();
        let entry = entry(&key("k"), 1, now);
        assert!(!entry.begin_refresh(now));
        let later = now + REFRESH_PAUSE;
        assert!(entry.begin_refresh(later));
        assert!(
            !entry.begin_refresh(later + REFRESH_PAUSE * 2),
            "it is under way"
        );
        entry.end_refresh(later);
        assert!(!entry.begin_refresh(later));
        assert!(entry.begin_refresh(later + REFRESH_PAUSE));
    }

    #[test]
    fn an_entry_larger_than_its_part_is_not_kept() {
        let entries = Entries::new(1 << 20);
        let (small, large) = (key("small"), key("large"));
        entries.store(small.clone(), entry(&small, 60 << 10, Instant::now()));
        entries.store(large.clone(), entry(&large, 66 << 10, Instant::now()));
        assert_eq!(text(&entries, &small), Some(60 << 10));
        assert_eq!(text(&entries, &large), None);
        assert_eq!(entries.evicted(), 1);
    }

    proptest! {
        #[test]
        fn the_bytes_stay_within_the_bound(
            max_bytes in 1_000..200_000_u64,
            stored in proptest::collection::vec((0..50_u32, 0..20_000_usize), 1..200),
        ) {
            let entries = Entries::new(max_bytes);
            for (number, bytes) in stored {
                let key = key(&number.to_string());
                entries.store(key.clone(), entry(&key, bytes, Instant::now()));
                // Each part's share is rounded up.
                prop_assert!(entries.bytes() <= max_bytes + SHARDS as u64);
                if let Some(found) = text(&entries, &key) {
                    prop_assert_eq!(found, bytes);
                }
            }
            entries.clear();
            prop_assert_eq!((entries.len(), entries.bytes()), (0, 0));
        }
    }
}
