//! The cache in front of a store: who may answer from it, who waits, who asks.

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

/// How many services are remembered at most; beyond it those go first that nobody
/// has asked for lately.
const MOST_SERVICES: usize = 10_000;

/// What is younger than this is not doubted.
const DOUBT_AFTER: Duration = Duration::from_secs(1);

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

    /// From what is known if that is good enough; else waits for the store.
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
            // One that has failed stops nobody: it is asked again meanwhile.
            None => match entry.failure() {
                Some(because) => {
                    if let Some(round) = entry.want(false) {
                        self.refresher.ask(&entry, round);
                    }
                    return Err(entry.unknown(&because));
                }
                None => None,
            },
        };
        match self.ask(&entry, entry.outdated.load(Ordering::Relaxed), deadline) {
            Ok(lookup) => Ok(lookup),
            Err(because) => match old {
                // From now on nobody waits: it is old, and everybody is told so.
                Some(old) => Ok(Lookup::new(&entry.service, &entry.age(&old, because))),
                None => Err(entry.unknown(&because)),
            },
        }
    }

    /// Asks the store, whatever is known.
    pub(super) fn refresh(&self, service: &str, deadline: Option<Instant>) -> Result<Lookup> {
        let entry = self.entry(service);
        self.ask(&entry, true, deadline)
            .map_err(|because| entry.unknown(&because))
    }

    /// What is known, whatever its age.
    pub(super) fn known(&self, service: &str) -> Option<Lookup> {
        let entries = self.entries.read();
        let entry = entries.get(service)?;
        let snapshot = entry.current()?;
        Some(Lookup::new(&entry.service, &snapshot))
    }

    /// Somebody had to find out that what is known is not so. Once a second is enough.
    pub(super) fn invalidate(&self, service: &str) {
        if let Some(entry) = self.entries.read().get(service)
            && let Some(snapshot) = entry.current()
            && snapshot.stale.is_none()
            && snapshot.loaded_at.elapsed() > DOUBT_AFTER
        {
            entry.outdated.store(true, Ordering::Relaxed);
        }
    }

    /// Something has changed that the next look-up must see.
    pub(super) fn nudge(&self, service: &str) {
        if let Some(entry) = self.entries.read().get(service) {
            entry.outdated.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for a round of asking, a new one if it must be.
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
