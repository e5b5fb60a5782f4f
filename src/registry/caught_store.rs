//! A store whose panics are errors.

use std::sync::Arc;
use std::time::Duration;

use super::{HeartbeatResult, Instance, RegistryStore, StoredInstances};
use crate::base::catch::catch;
use crate::error::{Error, ErrorKind, Result};

/// A store of the program's own, between the registry and its panics: each is the failure of
/// one operation.
pub(super) struct CaughtStore<S>(pub(super) S);

impl<S: RegistryStore> CaughtStore<S> {
    fn run<T>(&self, operation: &str, run: impl FnOnce(&S) -> Result<T>) -> Result<T> {
        catch(|| run(&self.0)).unwrap_or_else(|panic| {
            let fault = format!("the registry's store panicked in {operation}: {panic}");
            Err(Error::new(ErrorKind::Registry, fault))
        })
    }
}

impl<S: RegistryStore> RegistryStore for CaughtStore<S> {
    fn register(&self, instance: &Instance) -> Result<()> {
        self.run("register", |store| store.register(instance))
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        self.run("deregister", |store| store.deregister(service, id))
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
        self.run("heartbeat", |store| store.heartbeat(instances))
    }

    fn instances(&self, service: &str) -> Result<StoredInstances> {
        self.run("instances", |store| store.instances(service))
    }

    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        self.run("remove_dead", |store| store.remove_dead(instance))
    }

    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        self.run("was_deregistered", |store| {
            store.was_deregistered(service, ids)
        })
    }

    fn check_writes(&self) -> Result<()> {
        self.run("check_writes", RegistryStore::check_writes)
    }

    fn services(&self) -> Result<Vec<String>> {
        self.run("services", RegistryStore::services)
    }

    fn heartbeat_ttl(&self) -> Duration {
        self.0.heartbeat_ttl()
    }
}

/// Wraps a store so that its panics are errors.
pub(super) fn caught(store: impl RegistryStore + 'static) -> Arc<dyn RegistryStore> {
    Arc::new(CaughtStore(store))
}
