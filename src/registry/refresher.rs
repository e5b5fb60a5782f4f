use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::cached_service::{CachedService, Times};
use super::clock::Clock;
use super::liveness::{self, Before, Ghost, Life};
use super::snapshot::Snapshot;
use super::{Candidate, Instance, RegistryStore, StoredInstances};
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// How many dead instances are removed at a time.
const MOST_REMOVED: usize = 100;

/// How long the end may wait for the thread, which may wait for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

const LOST: &str = "it was away, or has lost its data; its instances will be heard of again";

/// The thread that asks the store, so that nobody else is held up by it.
pub(super) struct Refresher {
    store: Arc<dyn RegistryStore>,
    times: Times,
    thread: Mutex<Option<(Sender<Round>, NamedThread)>>,
}

/// One round of asking. There is at most one of each service in the queue.
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

    /// Has a round run. Never blocks; starts the thread if it is the first.
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
                Err(_) => "the registry's thread has died".to_owned(),
            },
            Err(error) => format!("no thread for the registry: {error}"),
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

struct RefreshLoop {
    store: Arc<dyn RegistryStore>,
    times: Times,
}

/// The instances of a service, by what is to be thought of each.
#[derive(Default)]
struct Freshness {
    living: Vec<Arc<Candidate>>,
    dead: Vec<Instance>,
    ghosts: HashMap<String, Ghost>,
    /// Those that were alive, and are not among the living.
    missing: Vec<Arc<Candidate>>,
}

impl RefreshLoop {
    fn run(self, rounds: &Receiver<Round>) {
        for Round { entry, number } in rounds {
            entry.begin(number);
            let before = entry.current();
            let dead = self.round(&entry, number, before.as_deref());
            // Nobody waits for this.
            self.remove(&dead);
        }
    }

    /// Asks the store about one service. Returns whom it found dead.
    fn round(
        &self,
        entry: &CachedService,
        number: u64,
        before: Option<&Snapshot>,
    ) -> Vec<Instance> {
        let service = &entry.service;
        let loaded = || self.load(service, before);
        let loaded = catch(loaded).unwrap_or_else(|_| {
            let fault = format!("the registry's store panicked over {service}");
            Err(Error::new(ErrorKind::Registry, fault))
        });
        let (now, dead, failed) = match loaded {
            Ok((now, dead)) => (Some(now), dead, None),
            Err(error) => {
                let because: Arc<str> = error.to_string().into();
                let stale = before.map(|before| before.gone_stale(Arc::clone(&because)));
                (stale, Vec::new(), Some(because))
            }
        };
        // Once for each change, not for each try.
        let was_stale = before.is_some_and(|before| before.stale.is_some());
        match now.as_ref().map(|now| &now.stale) {
            Some(Some(because)) if !was_stale => log::warn!(
                target: "coney::registry",
                "what is known of {service} is getting old: {because}"
            ),
            Some(None) if was_stale => {
                log::info!(target: "coney::registry", "the instances of {service} are known again");
            }
            _ => {}
        }
        entry.end(number, now, failed);
        dead
    }

    /// What is known of a service now, and who is dead and to be removed.
    fn load(&self, service: &str, before: Option<&Snapshot>) -> Result<(Snapshot, Vec<Instance>)> {
        let StoredInstances {
            instances,
            generation,
            now_millis,
        } = self.store.instances(service)?;
        let clock = Clock::now(now_millis);
        let Freshness {
            mut living,
            dead,
            ghosts,
            missing,
        } = self.judge(instances, before, &clock);
        let snapshot = |living, stale| {
            Snapshot::new(living, clock.at, stale, generation).with_ghosts(ghosts.clone())
        };
        let removable = || {
            let removable = dead.iter().filter(|one| {
                let since = ghosts.get(one.id()).map(|ghost| ghost.since);
                let for_long = |since| clock.at.saturating_duration_since(since);
                // Of ours the age is certain; another's clock may be wrong.
                one.is_ours() || since.map(for_long) >= Some(self.times.heartbeat_ttl)
            });
            removable.cloned().collect::<Vec<_>>()
        };
        let Some(before) = before.filter(|_| !missing.is_empty()) else {
            return Ok((snapshot(living, None), removable()));
        };
        // Some seem to have died: or does the store let none be heard of?
        let died = |one: &Arc<Candidate>| dead.iter().any(|it| it.id() == one.instance().id());
        if missing.iter().any(died) {
            self.store.check_writes()?;
        }
        // It was away, or has lost what it knew. Then the missing get the time of two beats
        // to be heard of. Else those do, until they would be dead, that are gone without a
        // tombstone: deleted or evicted, or removed by a program that took them for dead.
        let in_trouble = before.stale.is_some() || before.generation != generation;
        let is_lost =
            |one: &&Arc<Candidate>| in_trouble || (one.instance().is_ours() && !died(one));
        let lost: Vec<&Arc<Candidate>> = missing.iter().filter(is_lost).collect();
        if lost.is_empty() {
            return Ok((snapshot(living, None), removable()));
        }
        let ids: Vec<&str> = lost.iter().map(|one| one.instance().id()).collect();
        let left = self.store.was_deregistered(service, &ids)?;
        let doubtful = lost.into_iter().zip(left).filter(|(_, left)| !left);
        let kept = doubtful.filter_map(|(one, _)| match in_trouble {
            true => one.kept(clock.at, self.times.heartbeat_ttl / 2),
            false => one.kept_until_death(clock.at),
        });
        let here = living.len();
        living.extend(kept);
        let stale = (living.len() > here).then(|| Arc::from(LOST));
        let dead = if in_trouble { Vec::new() } else { removable() };
        Ok((snapshot(living, stale), dead))
    }

    /// Tells the living from the dead, and which of the living are not there any more.
    fn judge(
        &self,
        instances: Vec<Instance>,
        before: Option<&Snapshot>,
        clock: &Clock,
    ) -> Freshness {
        let mut judged = Freshness::default();
        for instance in instances {
            let known = before.and_then(|before| before.find(instance.id()));
            let ghost = before.and_then(|before| before.ghosts.get(instance.id()));
            let was = match (known, ghost) {
                (Some(known), _) => Before::Alive(known),
                (None, Some(ghost)) => Before::Dead(*ghost),
                (None, None) => Before::Unknown,
            };
            match liveness::judge(&instance, was, clock, self.times.heartbeat_ttl) {
                Life::Alive { dies_at } => {
                    let known = known.map(Arc::as_ref);
                    judged
                        .living
                        .push(Arc::new(Candidate::new(instance, dies_at, known)));
                }
                Life::Dead(ghost) => {
                    judged.ghosts.insert(instance.id().to_owned(), ghost);
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

    /// Removes what is dead.
    fn remove(&self, dead: &[Instance]) {
        for instance in dead.iter().take(MOST_REMOVED) {
            let (service, id) = (instance.service(), instance.id());
            let remove = || self.store.remove_dead(instance);
            match catch(remove) {
                Ok(Ok(true)) => log::info!(
                    target: "coney::registry",
                    "the instance {id:?} of {service} is dead, and removed"
                ),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    log::warn!(
                        target: "coney::registry", "{service}: a dead instance stays: {error}"
                    );
                    return;
                }
                Err(_) => return,
            }
        }
    }
}
