//! The cache in front of a store: results that are good enough, and waiting for better ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::RegistryStore;
use super::cached_service::{CachedService, Freshness, LONGEST, Times};
use super::lookup::Lookup;
use super::refresher::Refresher;
use crate::base::deadline;
use crate::error::Result;

/// The most services in the cache; beyond that, services that were not looked up lately are
/// removed first.
const MOST_SERVICES: usize = 10_000;

/// The least age at which a result can be invalidated.
const INVALIDATE_AFTER: Duration = Duration::from_secs(1);

/// The cached result of every service that was looked up.
pub(super) struct Cache {
    times: Times,
    entries: RwLock<HashMap<Arc<str>, Arc<CachedService>>>,
    refresher: Refresher,
}

impl Cache {
    pub(super) fn new(
        store: Arc<dyn RegistryStore>,
        cache_ttl: Duration,
        lookup_timeout: Duration,
    ) -> Self {
        let times = Times {
            cache_ttl,
            lookup_timeout,
            heartbeat_ttl: store.heartbeat_ttl().min(LONGEST),
        };
        Self {
            times,
            entries: RwLock::default(),
            refresher: Refresher::new(store, times),
        }
    }

    /// Returns the cached result if it is good enough; otherwise blocks for the store.
    pub(super) fn lookup(&self, service: &str, deadline: Option<Instant>) -> Result<Lookup> {
        let entry = self.entry(service);
        let old = match entry.judge(self.times) {
            Some(Freshness::Fresh(snapshot)) => return Ok(Lookup::new(&entry.service, &snapshot)),
            Some(Freshness::Aging(snapshot)) => {
                if let Some(round) = entry.want(false) {
                    self.refresher.ask(&entry, round);
                }
                return Ok(Lookup::new(&entry.service, &snapshot));
            }
            Some(Freshness::Old(snapshot)) => Some(snapshot),
            // After a failure callers do not wait: the store is asked again meanwhile.
            None => match entry.failure() {
                Some(reason) => {
                    if let Some(round) = entry.want(false) {
                        self.refresher.ask(&entry, round);
                    }
                    return Err(entry.unknown(&reason));
                }
                None => None,
            },
        };
        match self.ask(&entry, entry.outdated.load(Ordering::Relaxed), deadline) {
            Ok(lookup) => Ok(lookup),
            Err(reason) => match old {
                // Later callers do not wait for the store either: they get the stale result.
                Some(old) => Ok(Lookup::new(&entry.service, &entry.mark_stale(&old, reason))),
                None => Err(entry.unknown(&reason)),
            },
        }
    }

    /// Asks the store, whatever is in the cache.
    pub(super) fn refresh(&self, service: &str, deadline: Option<Instant>) -> Result<Lookup> {
        let entry = self.entry(service);
        self.ask(&entry, true, deadline)
            .map_err(|reason| entry.unknown(&reason))
    }

    /// Returns the cached result, whatever its age.
    pub(super) fn known(&self, service: &str) -> Option<Lookup> {
        let entries = self.entries.read();
        let entry = entries.get(service)?;
        let snapshot = entry.current()?;
        Some(Lookup::new(&entry.service, &snapshot))
    }

    /// Marks a cached result as outdated after a call found that it is wrong. A result younger
    /// than a second, or a stale one, stays.
    pub(super) fn invalidate(&self, service: &str) {
        if let Some(entry) = self.entries.read().get(service)
            && let Some(snapshot) = entry.current()
            && snapshot.stale.is_none()
            && snapshot.loaded_at.elapsed() > INVALIDATE_AFTER
        {
            entry.outdated.store(true, Ordering::Relaxed);
        }
    }

    /// Marks a cached result as outdated, so that the next look-up asks the store.
    pub(super) fn mark_outdated(&self, service: &str) {
        if let Some(entry) = self.entries.read().get(service) {
            entry.outdated.store(true, Ordering::Relaxed);
        }
    }

    /// Blocks for a refresh round; `anew` wants one that has not begun yet.
    fn ask(
        &self,
        entry: &Arc<CachedService>,
        anew: bool,
        deadline: Option<Instant>,
    ) -> Result<Lookup, Arc<str>> {
        let longest = deadline::after(self.times.lookup_timeout);
        let deadline = deadline.map_or(longest, |deadline| deadline.min(longest));
        if let Some(round) = entry.want(anew) {
            self.refresher.ask(entry, round);
        }
        entry.wait(deadline, self.times.lookup_timeout)?;
        let nothing = || Arc::from("the registry has not answered");
        let snapshot = entry.current().ok_or_else(nothing)?;
        Ok(Lookup::new(&entry.service, &snapshot))
    }

    fn entry(&self, service: &str) -> Arc<CachedService> {
        if let Some(entry) = self.entries.read().get(service) {
            return Arc::clone(entry);
        }
        let mut entries = self.entries.write();
        if entries.len() >= MOST_SERVICES {
            let now = Instant::now();
            entries.retain(|_, entry| entry.is_used(now, self.times.cache_ttl));
        }
        if entries.len() >= MOST_SERVICES {
            entries.clear();
        }
        let service: Arc<str> = service.into();
        let entry = entries.entry(Arc::clone(&service));
        Arc::clone(entry.or_insert_with(|| Arc::new(CachedService::new(service))))
    }
}
