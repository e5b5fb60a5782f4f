use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::cache::{Entry, Times};
use super::snapshot::{Clock, Snapshot};
use super::{Instance, ServiceRegistry};
use crate::deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::running::Running;

/// How many dead instances are removed at a time.
const MOST_REMOVED: usize = 100;

/// How long the end may wait for the thread, which may wait for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

const LOST: &str = "it has lost its data; its instances will register again";

/// The thread that asks the store, so that nobody else is held up by it.
pub(super) struct Refresher {
    store: Arc<dyn ServiceRegistry>,
    times: Times,
    thread: Mutex<Option<(Sender<Round>, Running)>>,
}

/// One round of asking. There is at most one of each service in the queue.
struct Round {
    entry: Arc<Entry>,
    number: u64,
}

impl Refresher {
    pub(super) fn new(store: Arc<dyn ServiceRegistry>, times: Times) -> Self {
        Self {
            store,
            times,
            thread: Mutex::new(None),
        }
    }

    /// Has a round run. Never blocks; starts the thread if it is the first.
    pub(super) fn ask(&self, entry: &Arc<Entry>, number: u64) {
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

    fn start(&self) -> std::io::Result<(Sender<Round>, Running)> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let (rounds, inbox) = unbounded();
        let (store, times) = (Arc::clone(&self.store), self.times);
        let run = move || run(&*store, times, &inbox);
        let thread = Running::start(format!("coney-lookup-{number}"), run)?;
        Ok((rounds, thread))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        if let Some((rounds, thread)) = self.thread.get_mut().take() {
            drop(rounds);
            let _ = thread.join(deadline::after(JOIN_TIMEOUT));
        }
    }
}

fn run(store: &dyn ServiceRegistry, times: Times, rounds: &Receiver<Round>) {
    for Round { entry, number } in rounds {
        entry.begin(number);
        let before = entry.current();
        let before = before.as_deref();
        let was_stale = before.is_some_and(|before| before.stale.is_some());
        let service = &entry.service;
        let loaded = AssertUnwindSafe(|| load(store, times, service, before));
        let loaded = catch_unwind(loaded).unwrap_or_else(|_| {
            let fault = format!("the registry's store panicked over {service}");
            Err(Error::new(ErrorKind::Registry, fault))
        });
        let (now, failed) = match loaded {
            Ok(now) => (Some(now), None),
            Err(error) => {
                let because: Arc<str> = error.to_string().into();
                let stale = before.map(|before| before.gone_stale(because.clone(), before.lost_at));
                (stale, Some(because))
            }
        };
        // Once for each change, not for each try.
        let stale = now.as_ref().map(|now| now.stale.clone());
        match stale {
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
    }
}

fn load(
    store: &dyn ServiceRegistry,
    times: Times,
    service: &str,
    before: Option<&Snapshot>,
) -> Result<Snapshot> {
    let found = store.instances(service)?;
    let clock = Clock::now();
    if let Some(before) = before.filter(|_| found.is_empty())
        && let Some(lost_at) = lost_at(store, times, service, before, clock.at)?
    {
        return Ok(before.gone_stale(LOST.into(), Some(lost_at)));
    }
    bury(store, times, &found, clock);
    Ok(Snapshot::new(found, clock, times.dead_after, before))
}

/// Since when the store seems to have lost a service all of whose instances are gone:
/// none has said goodbye. It is believed after two beats, in which they would have
/// registered again.
fn lost_at(
    store: &dyn ServiceRegistry,
    times: Times,
    service: &str,
    before: &Snapshot,
    now: Instant,
) -> Result<Option<Instant>> {
    let lost_at = before.lost_at.unwrap_or(now);
    let is_known = before.stale.is_some() || before.first_death.is_some_and(|at| at > now);
    if before.living.is_empty() || !is_known || now > lost_at + times.dead_after / 2 {
        return Ok(None);
    }
    let ids = before.living.iter().map(|one| one.instance().id());
    let ids: Vec<&str> = ids.collect();
    let left = store.was_deregistered(service, &ids)?;
    Ok((!left).then_some(lost_at))
}

/// Removes what is dead: whoever notices does it.
fn bury(store: &dyn ServiceRegistry, times: Times, found: &[Instance], clock: Clock) {
    let dead = found
        .iter()
        .filter(|one| !clock.is_alive(one, times.dead_after));
    for instance in dead.take(MOST_REMOVED) {
        let (service, id) = (instance.service(), instance.id());
        match store.remove_dead(instance) {
            Ok(true) => log::info!(
                target: "coney::registry",
                "the instance {id:?} of {service} is dead, and removed"
            ),
            Ok(false) => {}
            Err(error) => {
                log::warn!(target: "coney::registry", "{service}: a dead instance stays: {error}");
                return;
            }
        }
    }
}
