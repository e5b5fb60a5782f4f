//! The thread of a registry that reads the instances of services from the store.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::cached_service::{CachedService, Times};
use super::clock::Clock;
use super::liveness::{self, DeadInstance, Liveness, Previous};
use super::snapshot::Snapshot;
use super::{Candidate, Instance, RegistryStore, StoredInstances};
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::error::Result;

/// The most dead instances that are removed after one round.
const MOST_REMOVED: usize = 100;

/// The time for which dropping the registry waits for the thread, which may wait for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

/// The stale reason while missing instances have time to renew their heartbeats.
const LOST: &str = "the store was unavailable or has lost data; instances that it does not \
                    have may still be live";

/// The look-up thread, which asks the store so that no caller waits longer than its timeout.
pub(super) struct Refresher {
    store: Arc<dyn RegistryStore>,
    times: Times,
    thread: Mutex<Option<(Sender<Round>, NamedThread)>>,
}

/// One refresh round. There is at most one of each service in the queue.
struct Round {
    entry: Arc<CachedService>,
    number: u64,
}

impl Refresher {
    pub(super) fn new(store: Arc<dyn RegistryStore>, times: Times) -> Self {
        Self {
            store,
            times,
            thread: Mutex::new(None),
        }
    }

    /// Queues a round; starts the thread if it is the first. Does not block.
    pub(super) fn ask(&self, entry: &Arc<CachedService>, number: u64) {
        let round = Round {
            entry: Arc::clone(entry),
            number,
        };
        let mut thread = self.thread.lock();
        let started = match &mut *thread {
            Some((rounds, _)) => Ok(rounds),
            none => self.start().map(|started| &mut none.insert(started).0),
        };
        let fault = match started {
            Ok(rounds) => match rounds.send(round) {
                Ok(()) => return,
                Err(_) => "the registry's look-up thread has died".to_owned(),
            },
            Err(error) => format!("cannot start the registry's look-up thread: {error}"),
        };
        entry.begin(number);
        entry.end(number, None, Some(fault.into()));
    }

    fn start(&self) -> std::io::Result<(Sender<Round>, NamedThread)> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let (rounds, rounds_in) = unbounded();
        let refresh = RefreshLoop {
            store: Arc::clone(&self.store),
            times: self.times,
        };
        let thread = NamedThread::spawn(format!("coney-lookup-{number}"), move || {
            refresh.run(&rounds_in)
        })?;
        Ok((rounds, thread))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        if let Some((rounds, thread)) = self.thread.get_mut().take() {
            drop(rounds);
            let _ = thread.join_deadline(deadline::after(JOIN_TIMEOUT));
        }
    }
}

/// The loop of the look-up thread.
struct RefreshLoop {
    store: Arc<dyn RegistryStore>,
    times: Times,
}

/// Logs on another thread: a logger that panics must not end this one.
fn log(level: log::Level, line: fmt::Arguments<'_>) {
    log_relay::log(level, "coney::registry", line);
}

/// The instances of a service, by their liveness.
#[derive(Default)]
struct Judged {
    living: Vec<Arc<Candidate>>,
    dead: Vec<Instance>,
    known_dead: HashMap<String, DeadInstance>,
    /// The instances that were live and are not any more, dead ones among them.
    missing: Vec<Arc<Candidate>>,
}

impl RefreshLoop {
    fn run(self, rounds: &Receiver<Round>) {
        for Round { entry, number } in rounds {
            entry.begin(number);
            let before = entry.current();
            let dead = self.round(&entry, number, before.as_deref());
            // After the end of the round: callers do not wait for this.
            self.remove(&dead);
        }
    }

    /// Runs a round for one service. Returns the dead instances to remove.
    fn round(
        &self,
        entry: &CachedService,
        number: u64,
        before: Option<&Snapshot>,
    ) -> Vec<Instance> {
        let service = &entry.service;
        let (now, dead, failed) = match self.load(service, before) {
            Ok((now, dead)) => (Some(now), dead, None),
            Err(error) => {
                let reason: Arc<str> = error.to_string().into();
                let stale = before.map(|before| before.to_stale(Arc::clone(&reason)));
                (stale, Vec::new(), Some(reason))
            }
        };
        // One line for an outage, not for each round.
        let was_stale = before.is_some_and(|before| before.stale.is_some());
        match now.as_ref().map(|now| &now.stale) {
            Some(Some(reason)) if !was_stale => log(
                log::Level::Warn,
                format_args!("look-ups of {service} are stale: {reason}"),
            ),
            Some(None) if was_stale => log(
                log::Level::Info,
                format_args!("look-ups of {service} are fresh again"),
            ),
            _ => {}
        }
        entry.end(number, now, failed);
        dead
    }

    /// Asks the store about a service. Returns its snapshot and the dead instances to remove.
    fn load(&self, service: &str, before: Option<&Snapshot>) -> Result<(Snapshot, Vec<Instance>)> {
        let StoredInstances {
            instances,
            generation,
            now_millis,
        } = self.store.instances(service)?;
        let clock = Clock::now(now_millis);
        let Judged {
            mut living,
            dead,
            known_dead,
            missing,
        } = self.judge(instances, before, &clock);
        let snapshot = |living, stale| {
            Snapshot::new(living, clock.at, stale, generation).with_known_dead(known_dead.clone())
        };
        let removable = || {
            let removable = dead.iter().filter(|one| {
                let since = known_dead.get(one.id()).map(|dead| dead.since);
                let for_long = |since| clock.at.saturating_duration_since(since);
                // The age of ours is certain; the clock of another library's may be wrong.
                one.is_ours() || since.map(for_long) >= Some(self.times.heartbeat_ttl)
            });
            removable.cloned().collect::<Vec<_>>()
        };
        let Some(before) = before.filter(|_| !missing.is_empty()) else {
            return Ok((snapshot(living, None), removable()));
        };
        // Some seem to have died; or the store refuses to renew heartbeats.
        let died = |one: &Arc<Candidate>| dead.iter().any(|it| it.id() == one.instance().id());
        if missing.iter().any(died) {
            self.store.check_writes()?;
        }
        // After an outage of the store, or a loss of its data, every missing instance is kept
        // for two heartbeats. Otherwise one of ours that has vanished is kept until it would
        // count as dead: it was deleted, evicted, or removed by a program that took it for dead.
        // Instances with a tombstone were deregistered, and are not kept.
        let in_trouble = before.stale.is_some() || before.generation != generation;
        let is_lost =
            |one: &&Arc<Candidate>| in_trouble || (one.instance().is_ours() && !died(one));
        let lost: Vec<&Arc<Candidate>> = missing.iter().filter(is_lost).collect();
        if lost.is_empty() {
            return Ok((snapshot(living, None), removable()));
        }
        let ids: Vec<&str> = lost.iter().map(|one| one.instance().id()).collect();
        let deregistered = self.store.was_deregistered(service, &ids)?;
        let lost = lost.into_iter().zip(deregistered);
        let lost = lost.filter(|(_, was_deregistered)| !was_deregistered);
        let kept = lost.filter_map(|(one, _)| match in_trouble {
            true => one.kept(clock.at, self.times.heartbeat_ttl / 2),
            false => one.kept_until_death(clock.at),
        });
        let here = living.len();
        living.extend(kept);
        let stale = (living.len() > here).then(|| Arc::from(LOST));
        let dead = if in_trouble { Vec::new() } else { removable() };
        Ok((snapshot(living, stale), dead))
    }

    /// Judges the liveness of each instance, and collects the missing ones.
    fn judge(&self, instances: Vec<Instance>, before: Option<&Snapshot>, clock: &Clock) -> Judged {
        let mut judged = Judged::default();
        for instance in instances {
            let known = before.and_then(|before| before.find(instance.id()));
            let dead = before.and_then(|before| before.known_dead.get(instance.id()));
            let was = match (known, dead) {
                (Some(known), _) => Previous::Alive(known),
                (None, Some(dead)) => Previous::Dead(*dead),
                (None, None) => Previous::Unknown,
            };
            match liveness::judge(&instance, was, clock, self.times.heartbeat_ttl) {
                Liveness::Alive { dies_at } => {
                    let known = known.map(Arc::as_ref);
                    judged
                        .living
                        .push(Arc::new(Candidate::new(instance, dies_at, known)));
                }
                Liveness::Dead(dead) => {
                    judged.known_dead.insert(instance.id().to_owned(), dead);
                    judged.dead.push(instance);
                }
            }
        }
        let is_here = |one: &&Arc<Candidate>| {
            let id = one.instance().id();
            judged.living.iter().any(|here| here.instance().id() == id)
        };
        let missing = before.iter().flat_map(|before| &before.living);
        judged.missing = missing.filter(|one| !is_here(one)).cloned().collect();
        judged
    }

    /// Removes dead instances from the store.
    fn remove(&self, dead: &[Instance]) {
        for instance in dead.iter().take(MOST_REMOVED) {
            let (service, id) = (instance.service(), instance.id());
            match self.store.remove_dead(instance) {
                Ok(true) => log(
                    log::Level::Info,
                    format_args!("the instance {id:?} of {service} is dead and was removed"),
                ),
                Ok(false) => {}
                Err(error) => {
                    return log(
                        log::Level::Warn,
                        format_args!(
                            "the instance {id:?} of {service} is dead and cannot be removed: \
                             {error}"
                        ),
                    );
                }
            }
        }
    }
}
