use super::registration_state::RegistrationStatus;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::cache::Cache;
use super::{HeartbeatResult, Instance, RegistrationState, RegistryStore};
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// After a beat that failed, the next comes sooner.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// For how long deregistering is tried at most.
const LONGEST_TRIED: Duration = Duration::from_secs(300);

/// How long the end may wait for the thread, which may wait for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

/// What is asked of the thread that beats. It alone writes what was registered here,
/// so that a beat never comes after a goodbye.
pub(super) enum HeartbeatCommand {
    Register {
        number: u64,
        member: RegisteredInstance,
        done: Sender<()>,
    },
    Health {
        number: u64,
    },
    Deregister {
        number: u64,
        done: Sender<Result<()>>,
    },
}

/// An instance that is beaten for.
pub(super) struct RegisteredInstance {
    instance: Instance,
    status: Arc<RegistrationStatus>,
    /// The store has it, as far as is known.
    written: bool,
    /// Others should look again when the store has what is new.
    is_news: bool,
}

impl RegisteredInstance {
    pub(super) fn new(instance: Instance, status: Arc<RegistrationStatus>) -> Self {
        Self {
            instance,
            status,
            written: false,
            is_news: false,
        }
    }

    fn write(&mut self, store: &dyn RegistryStore) -> Result<()> {
        self.instance = self.instance.clone().beaten();
        let result = store.register(&self.instance);
        self.written = result.is_ok();
        *self.status.state.lock() = match &result {
            Ok(()) => RegistrationState::Registered,
            Err(error) => RegistrationState::Pending(error.to_string()),
        };
        result
    }
}

/// A registry's beating thread, started with the first registration.
pub(super) struct HeartbeatThread {
    store: Arc<dyn RegistryStore>,
    every: Duration,
    /// Told of what has changed, once the store has it.
    cache: Arc<Cache>,
    thread: Option<(Sender<HeartbeatCommand>, NamedThread)>,
}

impl HeartbeatThread {
    pub(super) fn new(store: Arc<dyn RegistryStore>, every: Duration, cache: Arc<Cache>) -> Self {
        Self {
            store,
            every,
            cache,
            thread: None,
        }
    }

    /// The way to the thread. What is in it is bounded by the registrations: each has
    /// at most three orders under way.
    pub(super) fn thread(&mut self) -> Result<Sender<HeartbeatCommand>> {
        if let Some((orders, _)) = &self.thread {
            return Ok(orders.clone());
        }
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let (orders, inbox) = unbounded();
        let beating = HeartbeatLoop {
            store: Arc::clone(&self.store),
            every: self.every,
            cache: Arc::clone(&self.cache),
            members: BTreeMap::new(),
            next: Instant::now(),
            next_write: None,
            leaving: Vec::new(),
            failing: false,
        };
        let thread =
            NamedThread::spawn(format!("coney-beat-{number}"), move || beating.run(&inbox));
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::InvalidConfig, "cannot start a thread that beats")
                .with_source(error)
        })?;
        self.thread = Some((orders.clone(), thread));
        Ok(orders)
    }
}

impl Drop for HeartbeatThread {
    fn drop(&mut self) {
        if let Some((orders, thread)) = self.thread.take() {
            drop(orders);
            let _ = thread.join_deadline(deadline::after(JOIN_TIMEOUT));
        }
    }
}

struct HeartbeatLoop {
    store: Arc<dyn RegistryStore>,
    every: Duration,
    cache: Arc<Cache>,
    /// By the numbers of their registrations.
    members: BTreeMap<u64, RegisteredInstance>,
    next: Instant,
    /// The moment when those are tried again that the store does not have, or has still.
    next_write: Option<Instant>,
    /// Those that are to be deregistered still, by service and id, and until when it is
    /// tried: then they count as dead anyhow.
    leaving: Vec<(String, String, Instant)>,
    failing: bool,
}

impl HeartbeatLoop {
    /// Ends when the registry and all registrations are gone.
    fn run(mut self, inbox: &Receiver<HeartbeatCommand>) {
        loop {
            let order = if self.members.is_empty() && self.leaving.is_empty() {
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else if self.next_act() <= Instant::now() {
                Err(RecvTimeoutError::Timeout) // whatever else there is to do
            } else {
                inbox.recv_deadline(self.next_act())
            };
            let order = match order {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // The store may be the user's.
            let act = || match order {
                Some(order) => self.carry_out(order),
                None if self.next <= Instant::now() => self.beat(),
                None => self.write_missing(),
            };
            if catch(act).is_err() {
                log::error!(target: "coney::registry", "the registry's store panicked");
                self.next = self.soon();
            }
        }
    }

    fn next_act(&self) -> Instant {
        self.next_write.map_or(self.next, |at| at.min(self.next))
    }

    fn carry_out(&mut self, order: HeartbeatCommand) {
        match order {
            HeartbeatCommand::Register {
                number,
                mut member,
                done,
            } => {
                if self.members.is_empty() {
                    self.next = self.next_beat();
                }
                let service = member.instance.service().to_owned();
                // It is here again.
                let id = member.instance.id();
                self.leaving
                    .retain(|(other, gone, _)| *other != service || gone != id);
                let result = member.write(&*self.store);
                self.members.insert(number, member);
                self.cache.nudge(&service);
                if let Err(error) = result {
                    log::warn!(target: "coney::registry", "it is tried again: {error}");
                    self.next_write = Some(self.soon());
                }
                let _ = done.try_send(());
            }
            HeartbeatCommand::Health { number } => {
                if let Some(member) = self.members.get_mut(&number) {
                    member.status.has_changed.store(false, Ordering::SeqCst);
                    let lost = member.status.lost.lock().clone();
                    let fault = lost.or_else(|| member.status.fault.lock().clone());
                    member.instance.set_health(fault.as_deref());
                    member.is_news = true;
                    self.next = Instant::now();
                }
            }
            HeartbeatCommand::Deregister { number, done } => {
                let result = match self.members.remove(&number) {
                    Some(member) => {
                        *member.status.state.lock() = RegistrationState::Deregistered;
                        let RegisteredInstance { instance, .. } = &member;
                        let result = self.store.deregister(instance.service(), instance.id());
                        self.cache.nudge(instance.service());
                        if result.is_err() {
                            let until =
                                Instant::now() + self.store.heartbeat_ttl().min(LONGEST_TRIED);
                            let (service, id) = (instance.service(), instance.id());
                            self.leaving
                                .push((service.to_owned(), id.to_owned(), until));
                            self.next_write = Some(self.soon());
                        }
                        result
                    }
                    None => Ok(()),
                };
                let _ = done.try_send(result);
            }
        }
    }

    /// Says that everybody is still there, in one go.
    fn beat(&mut self) {
        self.next = self.next_beat();
        let written = self.members.iter_mut().filter(|(_, member)| member.written);
        let (numbers, instances): (Vec<u64>, Vec<Instance>) = written
            .map(|(&number, member)| {
                member.instance = member.instance.clone().beaten();
                (number, member.instance.clone())
            })
            .unzip();
        if instances.is_empty() {
            return self.write_missing();
        }
        match self.store.heartbeat(&instances) {
            Ok(beats) => {
                if std::mem::take(&mut self.failing) {
                    log::info!(target: "coney::registry", "instances are heard of again");
                }
                for (number, beat) in numbers.into_iter().zip(beats) {
                    self.beaten(number, beat);
                }
                self.write_missing();
            }
            Err(error) => {
                // Once, and not for each try.
                if !std::mem::replace(&mut self.failing, true) {
                    log::warn!(target: "coney::registry", "instances cannot be heard of: {error}");
                }
                for number in numbers {
                    if let Some(member) = self.members.get(&number) {
                        let pending = RegistrationState::Pending(error.to_string());
                        *member.status.state.lock() = pending;
                    }
                }
                self.next = self.soon();
            }
        }
    }

    /// Writes those that the store does not have yet, or not any more. One that it does
    /// not take is in nobody's way; a store that takes its time is not asked for ever.
    fn write_missing(&mut self) {
        self.next_write = None;
        self.deregister_leaving();
        let give_up = Instant::now() + RETRY_AFTER;
        let soon = self.soon();
        for member in self.members.values_mut().filter(|member| !member.written) {
            if Instant::now() >= give_up || member.write(&*self.store).is_err() {
                self.next_write = Some(soon);
            } else {
                self.cache.nudge(member.instance.service());
            }
        }
    }

    /// Deregisters those for which it has failed before.
    fn deregister_leaving(&mut self) {
        let now = Instant::now();
        let store = &self.store;
        self.leaving
            .retain(|(service, id, until)| now < *until && store.deregister(service, id).is_err());
        if !self.leaving.is_empty() {
            self.next_write = Some(self.soon());
        }
    }

    fn beaten(&mut self, number: u64, beat: HeartbeatResult) {
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        let (service, id) = (member.instance.service(), member.instance.id());
        match beat {
            HeartbeatResult::Renewed => {
                *member.status.state.lock() = RegistrationState::Registered;
                if std::mem::take(&mut member.is_news) {
                    self.cache.nudge(member.instance.service());
                }
            }
            HeartbeatResult::Lost => {
                log::info!(
                    target: "coney::registry",
                    "the registry has lost the instance {id:?} of {service}; it is registered again"
                );
                member.written = false;
            }
            HeartbeatResult::Deregistered => {
                log::warn!(
                    target: "coney::registry",
                    "the instance {id:?} of {service} was deregistered by another program"
                );
                *member.status.state.lock() = RegistrationState::Deregistered;
                self.members.remove(&number);
            }
        }
    }

    fn soon(&self) -> Instant {
        Instant::now() + RETRY_AFTER.min(self.every)
    }

    fn next_beat(&self) -> Instant {
        Instant::now() + self.every.mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}
