//! The trait of a registry's store, and the results of its methods.

use std::sync::Arc;
use std::time::Duration;

use super::Instance;
use super::clock::Clock;
use crate::error::Result;

/// A store of the instances of services: the part of a [`Registry`](super::Registry) that
/// other processes share.
///
/// Implement it to keep a registry elsewhere than in memory or in Redis. Methods return their
/// results in types that are made by constructors and may get more fields and variants; errors are
/// made by [`Error::registry`](crate::Error::registry).
///
/// A registry calls its store on two threads of its own, so that no caller waits for it
/// longer than [`lookup_timeout`](super::RegistryBuilder::lookup_timeout): `coney-heartbeat-N` for
/// heartbeats and `coney-lookup-N` for look-ups.
///
/// | caller | methods |
/// | --- | --- |
/// | heartbeat thread | `register`, `deregister`, `heartbeat` |
/// | look-up thread | `instances`, `was_deregistered`, `check_writes`, `remove_dead` |
/// | caller of [`Registry::services`](super::Registry::services) | `services` |
/// | any thread | `heartbeat_ttl` |
///
/// The methods may block, but not for long: a call that blocks delays the heartbeats, or the
/// look-ups, of all services. Give every request to a server a timeout. A panic is
/// caught and counts as the failure of that operation.
#[doc(alias = "ServiceRegistry")]
pub trait RegistryStore: Send + Sync {
    /// Writes an instance, replacing one with the same id, and forgets that this id was
    /// deregistered.
    ///
    /// Called by the heartbeat thread, once for a registration, and again until it succeeds
    /// or after a heartbeat returned [`HeartbeatResult::Lost`]. May block.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the store does not
    /// do it.
    fn register(&self, instance: &Instance) -> Result<()>;

    /// Removes an instance for good: later heartbeats do not bring it back. Succeeds if there
    /// is no such instance.
    ///
    /// Called by the heartbeat thread, and after a failure again about every second until the
    /// instance would count as dead, at most 300 s. May block.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn deregister(&self, service: &str, id: &str) -> Result<()>;

    /// Renews the heartbeats of any number of instances, at best in one round trip, and
    /// returns a result for each, in the same order.
    ///
    /// Changes their [`last_heartbeat`](Instance::last_heartbeat) and their health and nothing
    /// else, as another program may have written the rest
    /// ([`Instance::renew_from`]). Does not create instances.
    ///
    /// Called by the heartbeat thread, once per
    /// [`heartbeat_interval`](super::RegistryBuilder::heartbeat_interval), and sooner after a
    /// failure or a change of health. May block.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>>;

    /// Returns the instances of a service, live or dead. Leaves out entries that cannot be
    /// read.
    ///
    /// Called by the look-up thread, for one service at a time. May block: the callers whose
    /// cached result is too old wait for it.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn instances(&self, service: &str) -> Result<StoredInstances>;

    /// Removes a dead instance unless its heartbeat has been renewed since it was read.
    /// Returns true if the instance is gone.
    ///
    /// Called by the look-up thread, after the callers have their results. May block.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn remove_dead(&self, instance: &Instance) -> Result<bool>;

    /// Returns for each of these missing instances, in the same order, whether it was
    /// deregistered. The others were lost, and stay in look-ups until they would count as
    /// dead.
    ///
    /// The default implementation returns true for all: right for a store that loses nothing.
    /// Called by the look-up thread. May block.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        let _ = service;
        Ok(vec![true; ids.len()])
    }

    /// Checks that the store accepts writes: in a store that does not, live instances look
    /// dead. Called by the look-up thread when an instance seems to have died. May block.
    ///
    /// The default implementation succeeds.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does, if writes are not accepted.
    fn check_writes(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the names of the services that have instances, sorted.
    ///
    /// Called by [`Registry::services`](super::Registry::services) on its caller's thread.
    /// May block.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn services(&self) -> Result<Vec<String>>;

    /// Returns the greatest age of the last heartbeat of a live instance. It must not change.
    ///
    /// Called by any thread. Must not block.
    fn heartbeat_ttl(&self) -> Duration;

    /// Returns a random live and healthy instance, read from the store itself.
    ///
    /// A registry never calls it: it is for programs that use a store without one.
    /// [`Registry::pick`](super::Registry::pick) is a thousand times faster. Blocks as
    /// [`instances`](RegistryStore::instances) does.
    ///
    /// # Errors
    ///
    /// Fails as [`register`](RegistryStore::register) does.
    fn healthy_instance(&self, service: &str) -> Result<Option<Instance>> {
        let StoredInstances {
            mut instances,
            now_millis,
            ..
        } = self.instances(service)?;
        let now = Clock::now(now_millis);
        instances.retain(|one| one.is_healthy() && now.is_young(one, self.heartbeat_ttl()));
        if instances.is_empty() {
            return Ok(None);
        }
        Ok(Some(
            instances.swap_remove(fastrand::usize(..instances.len())),
        ))
    }
}

impl<S: RegistryStore + ?Sized> RegistryStore for Arc<S> {
    fn register(&self, instance: &Instance) -> Result<()> {
        (**self).register(instance)
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        (**self).deregister(service, id)
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
        (**self).heartbeat(instances)
    }

    fn instances(&self, service: &str) -> Result<StoredInstances> {
        (**self).instances(service)
    }

    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        (**self).remove_dead(instance)
    }

    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        (**self).was_deregistered(service, ids)
    }

    fn check_writes(&self) -> Result<()> {
        (**self).check_writes()
    }

    fn services(&self) -> Result<Vec<String>> {
        (**self).services()
    }

    fn heartbeat_ttl(&self) -> Duration {
        (**self).heartbeat_ttl()
    }

    fn healthy_instance(&self, service: &str) -> Result<Option<Instance>> {
        (**self).healthy_instance(service)
    }
}

/// The result of [`RegistryStore::instances`].
///
/// ```
/// use coney::registry::StoredInstances;
///
/// let found = StoredInstances::new(Vec::new())
///     .with_generation(7)
///     .with_clock(1_795_422_612_000);
/// assert_eq!(found.generation, 7);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct StoredInstances {
    /// The instances, in any order.
    pub instances: Vec<Instance>,
    /// A number that changes when the store loses its data; 0 for a store that loses nothing.
    pub generation: u64,
    /// The time by the store's clock in Unix milliseconds, if heartbeats are written by that
    /// clock; otherwise ages are judged by this process's clock.
    pub now_millis: Option<u64>,
}

impl StoredInstances {
    /// Creates the result of a store that has no clock and loses nothing.
    pub fn new(instances: Vec<Instance>) -> Self {
        Self {
            instances,
            ..Self::default()
        }
    }

    /// Sets the number that changes when the store loses its data. Defaults to 0.
    pub fn with_generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// Sets the time by the store's clock, in Unix milliseconds. By default the store has no
    /// clock.
    pub fn with_clock(mut self, now_millis: u64) -> Self {
        self.now_millis = Some(now_millis);
        self
    }
}

/// The outcome of one instance's heartbeat.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatResult {
    /// The heartbeat was renewed.
    Renewed,
    /// The store has no such instance, and no record that it was deregistered: it was lost, or
    /// removed as dead, and is registered again.
    Lost,
    /// The instance was deregistered.
    Deregistered,
}
