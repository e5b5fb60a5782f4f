//! The cache in front of a store: who may answer from it, who waits, who asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::ServiceRegistry;
use super::lookup::Lookup;
use super::refresher::Refresher;
use super::snapshot::Snapshot;
use crate::deadline;
use crate::error::{Error, ErrorKind, Result};

/// How many services are remembered at most; beyond it those go first that nobody
/// has asked for lately.
const MOST_SERVICES: usize = 10_000;

/// Longer times than anybody means, and short enough to be added to a moment.
pub(super) const LONGEST: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How long after a failure the store is not asked again.
const RETRY_AFTER: Duration = Duration::from_millis(250);

pub(super) struct Cache {
    times: Times,
    entries: RwLock<HashMap<Arc<str>, Arc<Entry>>>,
    refresher: Refresher,
}

/// What the cache goes by.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) cache_for: Duration,
    pub(super) lookup_timeout: Duration,
    pub(super) dead_after: Duration,
}

/// What is known of a service, and of asking for it.
pub(super) struct Entry {
    pub(super) service: Arc<str>,
    current: RwLock<Option<Arc<Snapshot>>>,
    /// What is known is out of date, whatever its age.
    outdated: AtomicBool,
    asking: Mutex<Asking>,
    answered: Condvar,
}

/// Rounds of asking the store, numbered. One at a time, however many threads want one.
#[derive(Default)]
struct Asking {
    /// The last round that somebody wants.
    wanted: u64,
    /// The last that has begun.
    begun: u64,
    /// The last that has ended.
    done: u64,
    /// When that failed, and of what.
    failed: Option<(Instant, Arc<str>)>,
    /// Which round somebody has waited for long enough: others need not too.
    given_up: Option<u64>,
}

/// What is known, judged by its age.
enum Judged {
    Fresh(Arc<Snapshot>),
    /// Good enough to answer from while the store is asked.
    Aging(Arc<Snapshot>),
    /// Not good enough unless the store does not answer.
    Old(Arc<Snapshot>),
}

impl Cache {
    pub(super) fn new(
        store: Arc<dyn ServiceRegistry>,
        cache_for: Duration,
        lookup_timeout: Duration,
    ) -> Self {
        let times = Times {
            cache_for,
            lookup_timeout,
            dead_after: store.dead_after().min(LONGEST),
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
            Some(Judged::Fresh(snapshot)) => return Ok(Lookup::new(&entry.service, &snapshot)),
            Some(Judged::Aging(snapshot)) => {
                if let Some(round) = entry.want(false) {
                    self.refresher.ask(&entry, round);
                }
                return Ok(Lookup::new(&entry.service, &snapshot));
            }
            Some(Judged::Old(snapshot)) => Some(snapshot),
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

    /// Something has changed that the next look-up must see.
    pub(super) fn nudge(&self, service: &str) {
        if let Some(entry) = self.entries.read().get(service) {
            entry.outdated.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for a round of asking, a new one if it must be.
    fn ask(
        &self,
        entry: &Arc<Entry>,
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

    fn entry(&self, service: &str) -> Arc<Entry> {
        if let Some(entry) = self.entries.read().get(service) {
            return Arc::clone(entry);
        }
        let mut entries = self.entries.write();
        if entries.len() >= MOST_SERVICES {
            let now = Instant::now();
            entries.retain(|_, entry| entry.is_used(now, self.times.cache_for));
        }
        if entries.len() >= MOST_SERVICES {
            entries.clear();
        }
        let service: Arc<str> = service.into();
        let entry = entries.entry(Arc::clone(&service));
        Arc::clone(entry.or_insert_with(|| Arc::new(Entry::new(service))))
    }
}

impl Times {
    /// When what was loaded should be asked for again, though it still is good: at
    /// half its time, and a beat before the first of the living would count as dead.
    /// Not at once again, however, where one has really died.
    /// Soon where there is nobody, who may come.
    fn refresh_at(&self, snapshot: &Snapshot) -> Instant {
        let beat = self.dead_after / 4;
        let soonest = snapshot.loaded_at + beat / 5;
        let half = snapshot.loaded_at + self.cache_for / 2;
        if snapshot.ready.is_empty() {
            return soonest.min(half);
        }
        let death = snapshot.first_death.and_then(|at| at.checked_sub(beat));
        let early = death.map_or(half, |death| death.min(half));
        early.max(soonest)
    }
}

impl Entry {
    fn new(service: Arc<str>) -> Self {
        Self {
            service,
            current: RwLock::new(None),
            outdated: AtomicBool::new(false),
            asking: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    pub(super) fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.read().clone()
    }

    fn judge(&self, times: Times) -> Option<Judged> {
        let snapshot = self.current()?;
        let now = Instant::now();
        let age = now.saturating_duration_since(snapshot.loaded_at);
        if self.outdated.load(Ordering::Relaxed) {
            return Some(Judged::Old(snapshot));
        }
        if snapshot.stale.is_some() {
            return Some(Judged::Aging(snapshot));
        }
        // One that counts as dead by now may have been heard of since.
        if age >= times.cache_for || snapshot.first_death.is_some_and(|at| at <= now) {
            return Some(Judged::Old(snapshot));
        }
        Some(match now >= times.refresh_at(&snapshot) {
            true => Judged::Aging(snapshot),
            false => Judged::Fresh(snapshot),
        })
    }

    /// Puts a round into the queue, unless one is under way that will do: `anew` wants
    /// one that has not begun. A round that fails is not followed by another at once.
    fn want(&self, anew: bool) -> Option<u64> {
        let mut asking = self.asking.lock();
        let waits = asking.wanted > asking.begun;
        let runs = asking.begun > asking.done;
        if waits || (runs && !anew) {
            return None;
        }
        let lately = |(at, _): &(Instant, _)| at.elapsed() < RETRY_AFTER;
        if !anew && asking.failed.as_ref().is_some_and(lately) {
            return None;
        }
        asking.wanted = asking.begun + 1;
        Some(asking.wanted)
    }

    /// What the last round failed of, or was given up for.
    fn failure(&self) -> Option<Arc<str>> {
        let asking = self.asking.lock();
        let failed = asking
            .failed
            .as_ref()
            .map(|(_, because)| Arc::clone(because));
        let given_up = asking.given_up.filter(|&round| round > asking.done);
        failed.or_else(|| given_up.map(|_| Arc::from("the registry does not answer")))
    }

    /// What was known, and is out of date.
    fn age(&self, old: &Arc<Snapshot>, because: Arc<str>) -> Arc<Snapshot> {
        let stale = Arc::new(old.gone_stale(because));
        let mut current = self.current.write();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, old)) {
            *current = Some(Arc::clone(&stale));
        }
        stale
    }

    /// Waits until every round that is wanted now has ended; an error says of what the
    /// last one failed.
    fn wait(&self, deadline: Instant, timeout: Duration) -> Result<(), Arc<str>> {
        let mut asking = self.asking.lock();
        let round = asking.wanted;
        while asking.done < round {
            let timed_out = self.answered.wait_until(&mut asking, deadline).timed_out();
            if timed_out && asking.done < round {
                asking.given_up = Some(round);
                return Err(format!("the registry did not answer within {timeout:?}").into());
            }
        }
        match &asking.failed {
            Some((_, because)) => Err(Arc::clone(because)),
            None => Ok(()),
        }
    }

    /// For the refresher: a round begins.
    pub(super) fn begin(&self, round: u64) {
        self.asking.lock().begun = round;
        self.outdated.store(false, Ordering::Relaxed);
    }

    /// For the refresher: it has ended, with what is known now.
    pub(super) fn end(&self, round: u64, now: Option<Snapshot>, failed: Option<Arc<str>>) {
        if let Some(now) = now {
            *self.current.write() = Some(Arc::new(now));
        }
        let mut asking = self.asking.lock();
        asking.done = round;
        asking.failed = failed.map(|because| (Instant::now(), because));
        self.answered.notify_all();
    }

    /// Has it been asked for lately? What is asked for is refreshed at half its time.
    fn is_used(&self, now: Instant, cache_for: Duration) -> bool {
        let age = |snapshot: Arc<Snapshot>| now.saturating_duration_since(snapshot.loaded_at);
        self.current().map(age).is_some_and(|age| age < cache_for)
    }

    fn unknown(&self, because: &str) -> Error {
        Error::new(
            ErrorKind::Registry,
            format!("the instances of {} are not known: {because}", self.service),
        )
    }
}
