//! Single flight: of all callers that need the same response, one calls and the others wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::flight::{Flight, Turn};
use super::sync::{Condvar, Mutex, MutexGuard};

/// The requests on their way, by what they ask for.
///
/// Lock order: the table, then a flight. A waiter holds the lock of its flight only.
pub(super) struct Flights<K, S, T> {
    table: Mutex<Table<K, S, T>>,
}

type Table<K, S, T> = HashMap<K, Arc<Waited<S, T>>>;

/// A flight with its lock.
struct Waited<S, T> {
    flight: Mutex<Flight<S, T>>,
    /// Notified when the flight has landed or is handed over.
    changed: Condvar,
}

/// The result of joining a flight.
pub(super) enum Joined<K: Eq + Hash, S, T: Clone> {
    /// The caller leads.
    Lead(Lead<K, S, T>),
    /// The outcome of the leader's request.
    Shared(T),
    /// The deadline has passed.
    TooLate,
}

/// The lead of a flight. Dropped without an outcome, it goes to one of the waiters.
#[must_use = "dropping the lead hands it over"]
pub(super) struct Lead<K: Eq + Hash, S, T: Clone> {
    flights: Arc<Flights<K, S, T>>,
    key: K,
    waited: Arc<Waited<S, T>>,
    has_ended: bool,
}

impl<K: Eq + Hash + Clone, S, T: Clone> Flights<K, S, T> {
    pub(super) fn new() -> Self {
        Self {
            table: Mutex::new(HashMap::new()),
        }
    }

    /// Joins the flight for `key`, or leads one if there is none whose outcome can serve a caller
    /// that comes now: if what its leader has seen `is_current`. Blocks until that flight has an
    /// outcome or is handed to this caller, at most until `deadline`.
    pub(super) fn join(
        self: &Arc<Self>,
        key: K,
        deadline: Instant,
        is_current: impl FnOnce(&S) -> bool,
    ) -> Joined<K, S, T> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waited) = table.get(&key).map(Arc::clone) {
            let mut flight = waited.lock();
            if flight.may_serve(is_current) {
                let seat = flight.enter(deadline);
                drop(table);
                loop {
                    let now = Instant::now();
                    match flight.turn(seat, now) {
                        Turn::Wait => flight = waited.wait(flight, seat.deadline, now),
                        Turn::Lead => break,
                        Turn::Share(outcome) => return Joined::Shared(outcome),
                        Turn::TooLate => return Joined::TooLate,
                    }
                }
                drop(flight);
                return Joined::Lead(self.lead_of(key, waited));
            }
        }
        Joined::Lead(self.begin(&mut table, key))
    }

    /// Leads a flight for `key`, unless one is on its way that can serve. Never blocks.
    pub(super) fn lead(
        self: &Arc<Self>,
        key: K,
        is_current: impl FnOnce(&S) -> bool,
    ) -> Option<Lead<K, S, T>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let is_under_way = table
            .get(&key)
            .is_some_and(|waited| waited.lock().may_serve(is_current));
        (!is_under_way).then(|| self.begin(&mut table, key))
    }

    /// Returns the number of callers that wait for `key`.
    #[cfg(test)]
    pub(super) fn waiting(&self, key: &K) -> usize {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(key).map_or(0, |waited| waited.lock().waiting())
    }

    /// Begins a flight. One that is replaced goes on for those that wait for it.
    fn begin(self: &Arc<Self>, table: &mut Table<K, S, T>, key: K) -> Lead<K, S, T> {
        let waited = Arc::new(Waited {
            flight: Mutex::new(Flight::led(Instant::now())),
            changed: Condvar::new(),
        });
        table.insert(key.clone(), Arc::clone(&waited));
        self.lead_of(key, waited)
    }

    fn lead_of(self: &Arc<Self>, key: K, waited: Arc<Waited<S, T>>) -> Lead<K, S, T> {
        Lead {
            flights: Arc::clone(self),
            key,
            waited,
            has_ended: false,
        }
    }
}

impl<S, T> Waited<S, T> {
    fn lock(&self) -> MutexGuard<'_, Flight<S, T>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        flight: MutexGuard<'a, Flight<S, T>>,
        deadline: Instant,
        now: Instant,
    ) -> MutexGuard<'a, Flight<S, T>> {
        let left = deadline.saturating_duration_since(now);
        let waited = self.changed.wait_timeout(flight, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<K: Eq + Hash, S, T: Clone> Lead<K, S, T> {
    /// Sets what the leader has seen before it sends the request.
    pub(super) fn set_stamp(&self, stamp: S) {
        self.waited.lock().set_stamp(stamp);
    }

    /// Ends the flight with an outcome for all that wait.
    pub(super) fn land(mut self, outcome: T) {
        self.end(|flight| {
            flight.land(outcome);
            false
        });
    }

    /// Ends the leader's part with a fault of its own: a waiter that has time left calls next, and
    /// if there is none, all get the outcome.
    pub(super) fn give_up(mut self, outcome: T) {
        self.end(|flight| flight.give_up(outcome, Instant::now()));
    }

    /// Ends the leader's part; `step` returns true if the flight goes on.
    fn end(&mut self, step: impl FnOnce(&mut Flight<S, T>) -> bool) {
        self.has_ended = true;
        // Under both locks, so that no caller joins a flight that has ended.
        let mut table = self
            .flights
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let goes_on = step(&mut self.waited.lock());
        let is_own = |other: &Arc<Waited<S, T>>| Arc::ptr_eq(other, &self.waited);
        if !goes_on && table.get(&self.key).is_some_and(is_own) {
            table.remove(&self.key);
        }
        drop(table);
        self.waited.changed.notify_all();
    }
}

impl<K: Eq + Hash, S, T: Clone> Drop for Lead<K, S, T> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(|flight| flight.abandon(Instant::now()));
        }
    }
}
