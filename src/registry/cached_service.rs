//! The cached result of one service, its freshness, and the refresh rounds that renew it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::snapshot::Snapshot;
use crate::error::{Error, ErrorKind};

/// The longest time that an option sets, a year: it can still be added to an `Instant`.
pub(super) const LONGEST: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The time after a failed round in which the store is not asked again.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// The times by which the cache judges results.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) cache_ttl: Duration,
    pub(super) lookup_timeout: Duration,
    pub(super) heartbeat_ttl: Duration,
}

/// The cached result of one service, and its refresh rounds.
pub(super) struct CachedService {
    pub(super) service: Arc<str>,
    current: RwLock<Option<Arc<Snapshot>>>,
    /// True if the result is outdated, whatever its age.
    pub(super) outdated: AtomicBool,
    rounds: Mutex<RefreshRounds>,
    /// Notified at the end of each round.
    ended: Condvar,
}

/// The numbered refresh rounds of a service. One runs at a time, for any number of threads.
#[derive(Default)]
struct RefreshRounds {
    /// The last round that was asked for.
    wanted: u64,
    /// The last round that has begun.
    begun: u64,
    /// The last round that has ended.
    done: u64,
    /// The time and the reason, if that round failed.
    failed: Option<(Instant, Arc<str>)>,
    /// The round for which a caller has waited in vain: later callers do not wait for it.
    timed_out: Option<u64>,
}

/// A cached result, judged by its age.
pub(super) enum Freshness {
    /// A result that needs no refresh.
    Fresh(Arc<Snapshot>),
    /// A result that is good enough while the store is asked.
    Aging(Arc<Snapshot>),
    /// A result that is used only if the store does not answer.
    Old(Arc<Snapshot>),
}

impl Times {
    /// Returns when a result is refreshed that is still good: after half of its time, or a
    /// heartbeat before the first live instance would count as dead, but not at once again if
    /// that one is really dead. A service without instances is refreshed soon, as some may
    /// come.
    fn refresh_at(&self, snapshot: &Snapshot) -> Instant {
        let interval = self.heartbeat_ttl / 4;
        let soonest = snapshot.loaded_at + interval / 5;
        let half = snapshot.loaded_at + self.cache_ttl / 2;
        if snapshot.ready.is_empty() {
            return soonest.min(half);
        }
        let death = snapshot.first_death.and_then(|at| at.checked_sub(interval));
        let early = death.map_or(half, |death| death.min(half));
        early.max(soonest)
    }
}

impl CachedService {
    pub(super) fn new(service: Arc<str>) -> Self {
        Self {
            service,
            current: RwLock::new(None),
            outdated: AtomicBool::new(false),
            rounds: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    pub(super) fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.read().clone()
    }

    /// Returns the cached result with its freshness, if there is one.
    pub(super) fn judge(&self, times: Times) -> Option<Freshness> {
        let snapshot = self.current()?;
        let now = Instant::now();
        let age = now.saturating_duration_since(snapshot.loaded_at);
        if self.outdated.load(Ordering::Relaxed) {
            return Some(Freshness::Old(snapshot));
        }
        if snapshot.stale.is_some() {
            // A new result that is stale after a loss is not refreshed with every look-up.
            return Some(match age < times.heartbeat_ttl / 20 {
                true => Freshness::Fresh(snapshot),
                false => Freshness::Aging(snapshot),
            });
        }
        // The store may have a newer heartbeat of an instance that counts as dead by now.
        if age >= times.cache_ttl || snapshot.first_death.is_some_and(|at| at <= now) {
            return Some(Freshness::Old(snapshot));
        }
        Some(match now >= times.refresh_at(&snapshot) {
            true => Freshness::Aging(snapshot),
            false => Freshness::Fresh(snapshot),
        })
    }

    /// Asks for a round and returns its number, unless one is under way that suffices; `anew`
    /// wants one that has not begun. After a failed round there is none for a while, unless
    /// `anew`.
    pub(super) fn want(&self, anew: bool) -> Option<u64> {
        let mut rounds = self.rounds.lock();
        let waits = rounds.wanted > rounds.begun;
        let runs = rounds.begun > rounds.done;
        if waits || (runs && !anew) {
            return None;
        }
        let recent = |(at, _): &(Instant, _)| at.elapsed() < RETRY_AFTER;
        if !anew && rounds.failed.as_ref().is_some_and(recent) {
            return None;
        }
        rounds.wanted = rounds.begun + 1;
        Some(rounds.wanted)
    }

    /// Returns why the last round failed, or that it timed out.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        let rounds = self.rounds.lock();
        let failed = rounds.failed.as_ref().map(|(_, reason)| Arc::clone(reason));
        let timed_out = rounds.timed_out.filter(|&round| round > rounds.done);
        failed.or_else(|| timed_out.map(|_| Arc::from("the registry does not answer")))
    }

    /// Replaces a result with its stale copy, unless it was refreshed meanwhile, and returns
    /// the copy.
    pub(super) fn mark_stale(&self, old: &Arc<Snapshot>, reason: Arc<str>) -> Arc<Snapshot> {
        let stale = Arc::new(old.to_stale(reason));
        let mut current = self.current.write();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, old)) {
            *current = Some(Arc::clone(&stale));
            self.outdated.store(false, Ordering::Relaxed);
        }
        stale
    }

    /// Blocks until every round that was asked for has ended. The error is the reason for which
    /// the last one failed.
    pub(super) fn wait(&self, deadline: Instant, timeout: Duration) -> Result<(), Arc<str>> {
        let mut rounds = self.rounds.lock();
        let round = rounds.wanted;
        while rounds.done < round {
            let timed_out = self.ended.wait_until(&mut rounds, deadline).timed_out();
            if timed_out && rounds.done < round {
                rounds.timed_out = Some(round);
                return Err(format!("the registry did not answer within {timeout:?}").into());
            }
        }
        match &rounds.failed {
            Some((_, reason)) => Err(Arc::clone(reason)),
            None => Ok(()),
        }
    }

    /// Records that a round begins. Called by the refresher.
    pub(super) fn begin(&self, round: u64) {
        self.rounds.lock().begun = round;
        self.outdated.store(false, Ordering::Relaxed);
    }

    /// Records the end and the result of a round. Called by the refresher.
    pub(super) fn end(&self, round: u64, now: Option<Snapshot>, failed: Option<Arc<str>>) {
        if let Some(now) = now {
            *self.current.write() = Some(Arc::new(now));
        }
        let mut rounds = self.rounds.lock();
        rounds.done = round;
        rounds.failed = failed.map(|reason| (Instant::now(), reason));
        self.ended.notify_all();
    }

    /// Returns true if the service was looked up lately: its result is then refreshed after half
    /// of its time, and stays younger than its whole time.
    pub(super) fn is_used(&self, now: Instant, cache_ttl: Duration) -> bool {
        let age = |snapshot: Arc<Snapshot>| now.saturating_duration_since(snapshot.loaded_at);
        self.current().map(age).is_some_and(|age| age < cache_ttl)
    }

    /// Returns the error of a look-up that found no result.
    pub(super) fn unknown(&self, reason: &str) -> Error {
        Error::new(
            ErrorKind::Registry,
            format!("the instances of {} are not known: {reason}", self.service),
        )
    }
}
