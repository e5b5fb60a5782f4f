//! What is known of a service, how good it is, and who waits for better.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::snapshot::Snapshot;
use crate::error::{Error, ErrorKind};

/// Longer times than anybody means, and short enough to be added to a moment.
pub(super) const LONGEST: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How long after a failure the store is not asked again.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// What the cache goes by.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) cache_ttl: Duration,
    pub(super) lookup_timeout: Duration,
    pub(super) heartbeat_ttl: Duration,
}

/// What is known of a service, and of asking for it.
pub(super) struct CachedService {
    pub(super) service: Arc<str>,
    current: RwLock<Option<Arc<Snapshot>>>,
    /// What is known is out of date, whatever its age.
    pub(super) outdated: AtomicBool,
    rounds: Mutex<RefreshRounds>,
    answered: Condvar,
}

/// Rounds of asking the store, numbered. One at a time, however many threads want one.
#[derive(Default)]
struct RefreshRounds {
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
pub(super) enum Freshness {
    Fresh(Arc<Snapshot>),
    /// Good enough to answer from while the store is asked.
    Aging(Arc<Snapshot>),
    /// Not good enough unless the store does not answer.
    Old(Arc<Snapshot>),
}

impl Times {
    /// When what was loaded should be asked for again, though it still is good: at
    /// half its time, and a beat before the first of the living would count as dead.
    /// Not at once again, however, where one has really died.
    /// Soon where there is nobody, who may come.
    fn refresh_at(&self, snapshot: &Snapshot) -> Instant {
        let beat = self.heartbeat_ttl / 4;
        let soonest = snapshot.loaded_at + beat / 5;
        let half = snapshot.loaded_at + self.cache_ttl / 2;
        if snapshot.ready.is_empty() {
            return soonest.min(half);
        }
        let death = snapshot.first_death.and_then(|at| at.checked_sub(beat));
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
            answered: Condvar::new(),
        }
    }

    pub(super) fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.read().clone()
    }

    pub(super) fn judge(&self, times: Times) -> Option<Freshness> {
        let snapshot = self.current()?;
        let now = Instant::now();
        let age = now.saturating_duration_since(snapshot.loaded_at);
        if self.outdated.load(Ordering::Relaxed) {
            return Some(Freshness::Old(snapshot));
        }
        if snapshot.stale.is_some() {
            // In the aftermath of a loss it is new, and not asked for all the time.
            return Some(match age < times.heartbeat_ttl / 20 {
                true => Freshness::Fresh(snapshot),
                false => Freshness::Aging(snapshot),
            });
        }
        // One that counts as dead by now may have been heard of since.
        if age >= times.cache_ttl || snapshot.first_death.is_some_and(|at| at <= now) {
            return Some(Freshness::Old(snapshot));
        }
        Some(match now >= times.refresh_at(&snapshot) {
            true => Freshness::Aging(snapshot),
            false => Freshness::Fresh(snapshot),
        })
    }

    /// Puts a round into the queue, unless one is under way that will do: `anew` wants
    /// one that has not begun. A round that fails is not followed by another at once.
    pub(super) fn want(&self, anew: bool) -> Option<u64> {
        let mut rounds = self.rounds.lock();
        let waits = rounds.wanted > rounds.begun;
        let runs = rounds.begun > rounds.done;
        if waits || (runs && !anew) {
            return None;
        }
        let lately = |(at, _): &(Instant, _)| at.elapsed() < RETRY_AFTER;
        if !anew && rounds.failed.as_ref().is_some_and(lately) {
            return None;
        }
        rounds.wanted = rounds.begun + 1;
        Some(rounds.wanted)
    }

    /// What the last round failed of, or was given up for.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        let rounds = self.rounds.lock();
        let failed = rounds
            .failed
            .as_ref()
            .map(|(_, because)| Arc::clone(because));
        let given_up = rounds.given_up.filter(|&round| round > rounds.done);
        failed.or_else(|| given_up.map(|_| Arc::from("the registry does not answer")))
    }

    /// What was known, and is out of date.
    pub(super) fn age(&self, old: &Arc<Snapshot>, because: Arc<str>) -> Arc<Snapshot> {
        let stale = Arc::new(old.gone_stale(because));
        let mut current = self.current.write();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, old)) {
            *current = Some(Arc::clone(&stale));
            self.outdated.store(false, Ordering::Relaxed);
        }
        stale
    }

    /// Waits until every round that is wanted now has ended; an error says of what the
    /// last one failed.
    pub(super) fn wait(&self, deadline: Instant, timeout: Duration) -> Result<(), Arc<str>> {
        let mut rounds = self.rounds.lock();
        let round = rounds.wanted;
        while rounds.done < round {
            let timed_out = self.answered.wait_until(&mut rounds, deadline).timed_out();
            if timed_out && rounds.done < round {
                rounds.given_up = Some(round);
                return Err(format!("the registry did not answer within {timeout:?}").into());
            }
        }
        match &rounds.failed {
            Some((_, because)) => Err(Arc::clone(because)),
            None => Ok(()),
        }
    }

    /// For the refresher: a round begins.
    pub(super) fn begin(&self, round: u64) {
        self.rounds.lock().begun = round;
        self.outdated.store(false, Ordering::Relaxed);
    }

    /// For the refresher: it has ended, with what is known now.
    pub(super) fn end(&self, round: u64, now: Option<Snapshot>, failed: Option<Arc<str>>) {
        if let Some(now) = now {
            *self.current.write() = Some(Arc::new(now));
        }
        let mut rounds = self.rounds.lock();
        rounds.done = round;
        rounds.failed = failed.map(|because| (Instant::now(), because));
        self.answered.notify_all();
    }

    /// Has it been asked for lately? What is asked for is refreshed at half its time.
    pub(super) fn is_used(&self, now: Instant, cache_ttl: Duration) -> bool {
        let age = |snapshot: Arc<Snapshot>| now.saturating_duration_since(snapshot.loaded_at);
        self.current().map(age).is_some_and(|age| age < cache_ttl)
    }

    pub(super) fn unknown(&self, because: &str) -> Error {
        Error::new(
            ErrorKind::Registry,
            format!("the instances of {} are not known: {because}", self.service),
        )
    }
}
