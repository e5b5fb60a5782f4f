//! Stores of the program's own that fail and panic: each is the failure of one operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coney::registry::{
    HeartbeatResult, MemoryRegistryStore, RegistrationState, RegistryStore, StoredInstances,
};
use coney::{Error, ErrorKind, Instance, Registry, Result};

use crate::support::{eventually, unique};

/// A store whose next operations panic, and the ones after those fail.
struct Faulty {
    store: MemoryRegistryStore,
    panics: AtomicU32,
    failures: AtomicU32,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryRegistryStore::new(),
            panics: AtomicU32::new(0),
            failures: AtomicU32::new(0),
        })
    }

    fn break_next(&self, panics: u32, failures: u32) {
        self.failures.store(failures, Ordering::SeqCst);
        self.panics.store(panics, Ordering::SeqCst);
    }

    fn check(&self) -> Result<()> {
        let takes = |count: &AtomicU32| {
            let less = |left: u32| left.checked_sub(1);
            let taken = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
            taken.is_ok()
        };
        assert!(!takes(&self.panics), "on purpose");
        if takes(&self.failures) {
            let cause = std::io::Error::other("the disk is full");
            return Err(Error::registry("cannot write the instances", cause));
        }
        Ok(())
    }
}

impl RegistryStore for Faulty {
    fn register(&self, instance: &Instance) -> Result<()> {
        self.check()?;
        self.store.register(instance)
    }
    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        self.check()?;
        self.store.deregister(service, id)
    }
    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
        self.check()?;
        self.store.heartbeat(instances)
    }
    fn instances(&self, service: &str) -> Result<StoredInstances> {
        self.store.instances(service)
    }
    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        self.store.remove_dead(instance)
    }
    fn services(&self) -> Result<Vec<String>> {
        self.store.services()
    }
    fn heartbeat_ttl(&self) -> Duration {
        self.store.heartbeat_ttl()
    }
}

#[test]
fn a_registration_is_retried_whether_its_store_fails_or_panics() {
    for (panics, failures) in [(1, 0), (0, 1), (2, 2)] {
        let (store, service) = (Faulty::new(), unique("web"));
        let registry = Registry::builder(Arc::clone(&store)).build().unwrap();
        store.break_next(panics, failures);
        let one = registry.register(&service, Instance::new().with_id("1"));
        let one = one.unwrap();
        eventually("it is registered", || {
            one.state() == RegistrationState::Registered
        });
        assert_eq!(store.instances(&service).unwrap().instances.len(), 1);
    }
}

#[test]
fn panicking_heartbeats_are_shown_and_end() {
    let (store, service) = (Faulty::new(), unique("web"));
    let registry = Registry::builder(Arc::clone(&store))
        .heartbeat_interval(Duration::from_millis(20))
        .build()
        .unwrap();
    let one = registry.register(&service, Instance::new().with_id("1"));
    let one = one.unwrap();
    eventually("it is registered", || {
        one.state() == RegistrationState::Registered
    });
    store.break_next(u32::MAX, 0);
    eventually("the panic is shown", || match one.state() {
        RegistrationState::Pending(cause) => cause.contains("panicked in heartbeat: on purpose"),
        _ => false,
    });
    store.break_next(0, 0);
    eventually("the heartbeats go on", || {
        one.state() == RegistrationState::Registered
    });
}

#[test]
fn an_error_of_ones_own_keeps_its_cause() {
    let store = Faulty::new();
    store.break_next(0, 1);
    let error = store.register(&Instance::new().with_id("1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    let source = std::error::Error::source(&error).expect("a cause");
    assert_eq!(source.to_string(), "the disk is full");
}
