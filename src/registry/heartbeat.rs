//! The thread of a registry that registers instances and renews their heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::cache::Cache;
use super::registration_state::RegistrationStatus;
use super::{HeartbeatResult, Instance, RegistrationState, RegistryStore};
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// The time after which a failed write is retried, unless the interval is shorter.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The longest time for which a failed deregistration is retried.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(300);

/// The time for which dropping the registry waits for the thread, which may wait for the store.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

/// A command to the heartbeat thread. Only this thread writes the instances registered here, so
/// that no heartbeat follows a deregistration.
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

/// An instance that is registered here.
pub(super) struct RegisteredInstance {
    instance: Instance,
    status: Arc<RegistrationStatus>,
    /// True if the store has it, as far as it is known.
    written: bool,
    /// True if the cached result is outdated once the store has the next heartbeat.
    has_new_health: bool,
}

impl RegisteredInstance {
    pub(super) fn new(instance: Instance, status: Arc<RegistrationStatus>) -> Self {
        Self {
            instance,
            status,
            written: false,
            has_new_health: false,
        }
    }

    /// Registers it at the store, and records the result as its state.
    fn write(&mut self, store: &dyn RegistryStore) -> Result<()> {
        self.instance = self.instance.clone().with_heartbeat_now();
        let result = store.register(&self.instance);
        self.written = result.is_ok();
        *self.status.state.lock() = match &result {
            Ok(()) => RegistrationState::Registered,
            Err(error) => RegistrationState::Pending(error.to_string()),
        };
        result
    }
}

/// The heartbeat thread of a registry, started with the first registration.
pub(super) struct HeartbeatThread {
    store: Arc<dyn RegistryStore>,
    interval: Duration,
    /// The cache, in which results become outdated once the store has a change.
    cache: Arc<Cache>,
    thread: Option<(Sender<HeartbeatCommand>, NamedThread)>,
}

impl HeartbeatThread {
    pub(super) fn new(
        store: Arc<dyn RegistryStore>,
        interval: Duration,
        cache: Arc<Cache>,
    ) -> Self {
        Self {
            store,
            interval,
            cache,
            thread: None,
        }
    }

    /// Returns the sender of commands; starts the thread if it is the first. The channel is
    /// bounded by the registrations: each has at most three commands in it.
    pub(super) fn commands(&mut self) -> Result<Sender<HeartbeatCommand>> {
        if let Some((commands, _)) = &self.thread {
            return Ok(commands.clone());
        }
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let (commands, receiver) = unbounded();
        let heartbeats = HeartbeatLoop {
            store: Arc::clone(&self.store),
            interval: self.interval,
            cache: Arc::clone(&self.cache),
            members: BTreeMap::new(),
            next: Instant::now(),
            next_write: None,
            undone: Vec::new(),
            failing: false,
        };
        let thread = NamedThread::spawn(format!("coney-heartbeat-{number}"), move || {
            heartbeats.run(&receiver)
        });
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Io, "cannot start the heartbeat thread").with_source(error)
        })?;
        self.thread = Some((commands.clone(), thread));
        Ok(commands)
    }
}

impl Drop for HeartbeatThread {
    fn drop(&mut self) {
        if let Some((commands, thread)) = self.thread.take() {
            drop(commands);
            let _ = thread.join_deadline(deadline::after(JOIN_TIMEOUT));
        }
    }
}

/// The loop of the heartbeat thread.
struct HeartbeatLoop {
    store: Arc<dyn RegistryStore>,
    interval: Duration,
    cache: Arc<Cache>,
    /// The instances, by the numbers of their registrations.
    members: BTreeMap<u64, RegisteredInstance>,
    /// The moment of the next heartbeat.
    next: Instant,
    /// The moment at which failed registrations and deregistrations are retried.
    next_write: Option<Instant>,
    /// The failed deregistrations, by service and id, and the moment until which they are
    /// retried: by then the instances count as dead.
    undone: Vec<(String, String, Instant)>,
    /// True if the last heartbeat failed.
    failing: bool,
}

impl HeartbeatLoop {
    /// Runs until the registry and all registrations are dropped.
    fn run(mut self, commands: &Receiver<HeartbeatCommand>) {
        loop {
            let command = if self.members.is_empty() && self.undone.is_empty() {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else if self.next_act() <= Instant::now() {
                Err(RecvTimeoutError::Timeout) // before any command: heartbeats are on time
            } else {
                commands.recv_deadline(self.next_act())
            };
            let command = match command {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // The logger may panic; the store's panics are errors already.
            let act = || match command {
                Some(command) => self.carry_out(command),
                None if self.next <= Instant::now() => self.beat(),
                None => self.write_missing(),
            };
            if catch(act).is_err() {
                // Not here: a logger that panics must not end this thread.
                log_relay::log(
                    log::Level::Error,
                    "coney::registry",
                    format_args!("the heartbeat thread panicked and goes on"),
                );
                self.next = self.soon();
            }
        }
    }

    fn next_act(&self) -> Instant {
        self.next_write.map_or(self.next, |at| at.min(self.next))
    }

    fn carry_out(&mut self, command: HeartbeatCommand) {
        match command {
            HeartbeatCommand::Register {
                number,
                mut member,
                done,
            } => {
                if self.members.is_empty() {
                    self.next = self.next_beat();
                }
                let service = member.instance.service().to_owned();
                // A failed deregistration must not remove an instance that is back.
                let id = member.instance.id().to_owned();
                self.undone
                    .retain(|(other, gone, _)| *other != service || *gone != id);
                let result = member.write(&*self.store);
                self.members.insert(number, member);
                self.cache.mark_outdated(&service);
                if let Err(error) = result {
                    log::warn!(
                        target: "coney::registry",
                        "the instance {id:?} of {service} is not registered yet; retrying: {error}"
                    );
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
                    member.has_new_health = true;
                    self.next = Instant::now();
                }
            }
            HeartbeatCommand::Deregister { number, done } => {
                let result = match self.members.remove(&number) {
                    Some(member) => {
                        *member.status.state.lock() = RegistrationState::Deregistered;
                        let RegisteredInstance { instance, .. } = &member;
                        let result = self.store.deregister(instance.service(), instance.id());
                        self.cache.mark_outdated(instance.service());
                        if result.is_err() {
                            let longest = self.store.heartbeat_ttl().min(DEREGISTER_TIMEOUT);
                            let until = Instant::now() + longest;
                            let (service, id) = (instance.service(), instance.id());
                            self.undone.push((service.to_owned(), id.to_owned(), until));
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

    /// Renews the heartbeats of all instances that the store has, in one call.
    fn beat(&mut self) {
        self.next = self.next_beat();
        let written = self.members.iter_mut().filter(|(_, member)| member.written);
        let (numbers, instances): (Vec<u64>, Vec<Instance>) = written
            .map(|(&number, member)| {
                member.instance = member.instance.clone().with_heartbeat_now();
                (number, member.instance.clone())
            })
            .unzip();
        if instances.is_empty() {
            return self.write_missing();
        }
        match self.store.heartbeat(&instances) {
            Ok(results) => {
                if std::mem::take(&mut self.failing) {
                    log::info!(target: "coney::registry", "heartbeats are renewed again");
                }
                for (number, result) in numbers.into_iter().zip(results) {
                    self.apply(number, result);
                }
                self.write_missing();
            }
            Err(error) => {
                // One line for an outage, not for each attempt.
                if !std::mem::replace(&mut self.failing, true) {
                    log::warn!(target: "coney::registry", "heartbeats fail; retrying: {error}");
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

    /// Registers the instances that the store does not have, or has lost. One that is refused
    /// does not keep the others from being registered; a slow store is used for a second or so.
    fn write_missing(&mut self) {
        self.next_write = None;
        self.retry_deregistrations();
        let give_up = Instant::now() + RETRY_AFTER;
        let soon = self.soon();
        for member in self.members.values_mut().filter(|member| !member.written) {
            if Instant::now() >= give_up || member.write(&*self.store).is_err() {
                self.next_write = Some(soon);
            } else {
                self.cache.mark_outdated(member.instance.service());
            }
        }
    }

    /// Deregisters the instances for which that has failed before.
    fn retry_deregistrations(&mut self) {
        let now = Instant::now();
        let store = &self.store;
        self.undone
            .retain(|(service, id, until)| now < *until && store.deregister(service, id).is_err());
        if !self.undone.is_empty() {
            self.next_write = Some(self.soon());
        }
    }

    /// Applies the result of an instance's heartbeat.
    fn apply(&mut self, number: u64, result: HeartbeatResult) {
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        let (service, id) = (member.instance.service(), member.instance.id());
        match result {
            HeartbeatResult::Renewed => {
                *member.status.state.lock() = RegistrationState::Registered;
                if std::mem::take(&mut member.has_new_health) {
                    self.cache.mark_outdated(member.instance.service());
                }
            }
            HeartbeatResult::Lost => {
                log::info!(
                    target: "coney::registry",
                    "the instance {id:?} of {service} is not in the registry; registering it again"
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

    /// Returns the moment of the next retry.
    fn soon(&self) -> Instant {
        Instant::now() + RETRY_AFTER.min(self.interval)
    }

    /// Returns the moment of the next heartbeat: after the interval, give or take a tenth.
    fn next_beat(&self) -> Instant {
        Instant::now() + self.interval.mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}
