//! The duties of a store of instances.

use std::sync::Arc;
use std::time::Duration;

use super::Instance;
use super::clock::Clock;
use crate::error::Result;

/// The duties of a store of instances.
///
/// Called by a [`Registry`](super::Registry)'s two threads, and by callers of [`Registry::services`](super::Registry::services); a call
/// may block for as long as the store's timeout says, and no longer.
pub trait RegistryStore: Send + Sync {
    /// Writes an instance, over one with the same id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the store does not do it.
    fn register(&self, instance: &Instance) -> Result<()>;

    /// Removes an instance for good: its heartbeats do not bring it back. One that
    /// is not there is no error.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
    fn deregister(&self, service: &str, id: &str) -> Result<()>;

    /// Renews the heartbeats of instances, at best in one round trip however many
    /// there are, and says for each, in order, what came of it. Changes their
    /// [`last_heartbeat`](Instance::last_heartbeat) and their health and nothing
    /// else, as another program may have written the rest. Creates nothing.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>>;

    /// The instances of a service, dead ones too. What cannot be read
    /// is left out.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
    fn instances(&self, service: &str) -> Result<StoredInstances>;

    /// Removes an instance that has died, unless it has been heard of since. True if
    /// it is gone.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
    fn remove_dead(&self, instance: &Instance) -> Result<bool>;

    /// Which of these instances, which are not there any more, were deregistered; in order.
    /// The others were lost, and are kept until they would be dead. By default all of them
    /// were: right for a store that loses nothing.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        let _ = service;
        Ok(vec![true; ids.len()])
    }

    /// Whether the store takes what is written: one that does not makes the living look
    /// dead. Asked when an instance seems to have died. Default: yes.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register), if it does not.
    fn check_writes(&self) -> Result<()> {
        Ok(())
    }

    /// The services that have instances, in order.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
    fn services(&self) -> Result<Vec<String>>;

    /// The greatest age of the last heartbeat of a living instance.
    fn heartbeat_ttl(&self) -> Duration;

    /// One of the living and healthy instances at random, asked for at the store
    /// itself. [`Registry::pick`](super::Registry::pick) is a thousand times faster.
    ///
    /// # Errors
    ///
    /// As [`register`](RegistryStore::register).
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

/// What [`RegistryStore::instances`] finds.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct StoredInstances {
    /// The instances, in any order.
    pub instances: Vec<Instance>,
    /// A number that is another once the store has lost what it knew; 0 for a store that
    /// loses nothing.
    pub generation: u64,
    /// The time by the store's clock, in Unix milliseconds, if it has one that heartbeats are
    /// written by.
    pub now_millis: Option<u64>,
}

impl StoredInstances {
    /// Instances of a store that has no clock and is never emptied.
    pub fn new(instances: Vec<Instance>) -> Self {
        Self {
            instances,
            ..Self::default()
        }
    }
}

/// The outcome of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatResult {
    /// The instance is there.
    Renewed,
    /// The store has lost it, or took it for dead: it is to be registered again.
    Lost,
    /// It has been deregistered.
    Deregistered,
}
