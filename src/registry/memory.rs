//! The store of a registry in memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{HeartbeatResult, Instance, RegistryStore, StoredInstances};
use crate::error::Result;

/// A store of instances in this process, for examples, tests and programs of one process.
///
/// Clones share the instances.
///
/// ```
/// use std::time::Duration;
/// use coney::Registry;
/// use coney::registry::MemoryRegistryStore;
///
/// let store = MemoryRegistryStore::new().with_heartbeat_ttl(Duration::from_secs(2));
/// let registry = Registry::builder(store).build()?;
/// # let _ = registry;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct MemoryRegistryStore {
    services: Arc<Mutex<Services>>,
    heartbeat_ttl: Duration,
}

#[derive(Default)]
struct Services {
    /// The instances of each service that has any, by id.
    instances: BTreeMap<String, HashMap<String, Instance>>,
    /// The deregistered instances, by service and id, and when they were: late heartbeats do not
    /// bring them back.
    deregistered: HashMap<(String, String), Instant>,
}

/// The time for which a deregistration is remembered, as in Redis.
const REMEMBERED: Duration = Duration::from_secs(300);

/// The number of remembered deregistrations from which on old ones are removed.
const MANY_DEREGISTERED: usize = 1_000;

impl Default for MemoryRegistryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryRegistryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self {
            services: Arc::default(),
            heartbeat_ttl: Duration::from_secs(60),
        }
    }

    /// Sets the greatest age of the last heartbeat of a live instance. Defaults to 60 s.
    pub fn with_heartbeat_ttl(mut self, ttl: Duration) -> Self {
        self.heartbeat_ttl = ttl;
        self
    }
}

impl Services {
    fn remove(&mut self, service: &str, id: &str) {
        if let Some(instances) = self.instances.get_mut(service) {
            instances.remove(id);
            if instances.is_empty() {
                self.instances.remove(service);
            }
        }
    }
}

impl RegistryStore for MemoryRegistryStore {
    fn register(&self, instance: &Instance) -> Result<()> {
        let mut services = self.services.lock();
        let (service, id) = (instance.service().to_owned(), instance.id().to_owned());
        services.deregistered.remove(&(service.clone(), id.clone()));
        let instances = services.instances.entry(service).or_default();
        instances.insert(id, instance.clone());
        Ok(())
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        let mut services = self.services.lock();
        services.remove(service, id);
        if services.deregistered.len() >= MANY_DEREGISTERED {
            services
                .deregistered
                .retain(|_, at| at.elapsed() < REMEMBERED);
        }
        let key = (service.to_owned(), id.to_owned());
        services.deregistered.insert(key, Instant::now());
        Ok(())
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
        let mut services = self.services.lock();
        let beat = |newer: &Instance| {
            let known = services.instances.get_mut(newer.service());
            match known.and_then(|known| known.get_mut(newer.id())) {
                Some(known) => {
                    known.renew_from(newer);
                    HeartbeatResult::Renewed
                }
                None => {
                    let key = (newer.service().to_owned(), newer.id().to_owned());
                    match services.deregistered.contains_key(&key) {
                        true => HeartbeatResult::Deregistered,
                        false => HeartbeatResult::Lost,
                    }
                }
            }
        };
        Ok(instances.iter().map(beat).collect())
    }

    fn instances(&self, service: &str) -> Result<StoredInstances> {
        let services = self.services.lock();
        let instances = services.instances.get(service);
        let instances = instances.into_iter().flat_map(HashMap::values);
        Ok(StoredInstances::new(instances.cloned().collect()))
    }

    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        let mut services = self.services.lock();
        let (service, id) = (instance.service(), instance.id());
        let known = services.instances.get(service);
        let known = known.and_then(|known| known.get(id));
        let is_dead = known.is_none_or(|one| one.last_heartbeat == instance.last_heartbeat);
        if is_dead {
            services.remove(service, id);
        }
        Ok(is_dead)
    }

    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        let services = self.services.lock();
        let was_deregistered = |id: &&str| {
            let key = (service.to_owned(), (*id).to_owned());
            services.deregistered.contains_key(&key)
        };
        Ok(ids.iter().map(was_deregistered).collect())
    }

    fn services(&self) -> Result<Vec<String>> {
        Ok(self.services.lock().instances.keys().cloned().collect())
    }

    fn heartbeat_ttl(&self) -> Duration {
        self.heartbeat_ttl
    }
}

impl fmt::Debug for MemoryRegistryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegistryStore")
            .field("heartbeat_ttl", &self.heartbeat_ttl)
            .finish_non_exhaustive()
    }
}
