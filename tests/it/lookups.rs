//! Look-ups by many threads, and picks, on every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::balance::{LeastOutstanding, Random, RoundRobin};
use coney::registry::{HeartbeatResult, MemoryRegistryStore, RegistryStore, StoredInstances};
use coney::{Instance, Registry, Result};

use crate::registry::{Open, beaten, ids, on_both_stores, registry};
use crate::support::unique;

on_both_stores!(
    a_hundred_threads_ask_once,
    picks_are_counted_until_they_are_dropped,
);

const MINUTE: Duration = Duration::from_secs(60);

fn a_hundred_threads_ask_once(open: Open<'_>) {
    struct Counting(Arc<dyn RegistryStore>, AtomicUsize);
    impl RegistryStore for Counting {
        fn register(&self, instance: &Instance) -> Result<()> {
            self.0.register(instance)
        }
        fn deregister(&self, service: &str, id: &str) -> Result<()> {
            self.0.deregister(service, id)
        }
        fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
            self.0.heartbeat(instances)
        }
        fn instances(&self, service: &str) -> Result<StoredInstances> {
            self.1.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(200));
            self.0.instances(service)
        }
        fn remove_dead(&self, instance: &Instance) -> Result<bool> {
            self.0.remove_dead(instance)
        }
        fn services(&self) -> Result<Vec<String>> {
            self.0.services()
        }
        fn heartbeat_ttl(&self) -> Duration {
            self.0.heartbeat_ttl()
        }
    }
    let store = Arc::new(Counting(open(MINUTE), AtomicUsize::new(0)));
    let registry = Registry::builder(Arc::clone(&store)).build().unwrap();
    let service = unique("web");
    store.register(&beaten(&service, "1", 0)).unwrap();
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| assert_eq!(ids(&registry.lookup(&service).unwrap()), ["1"]));
        }
    });
    assert_eq!(store.1.load(Ordering::SeqCst), 1);
    for _ in 0..1_000 {
        registry.lookup(&service).unwrap();
    }
    assert_eq!(store.1.load(Ordering::SeqCst), 1, "from the cache");
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| registry.refresh(&service).unwrap());
        }
    });
    let asked = store.1.load(Ordering::SeqCst);
    assert!(
        (2..=4).contains(&asked),
        "{asked} rounds for a hundred refreshes"
    );
}

fn picks_are_counted_until_they_are_dropped(open: Open<'_>) {
    let registry = registry(open);
    let service = unique("web");
    let _one = registry
        .register(&service, Instance::new().with_id("1"))
        .unwrap();
    let _two = registry
        .register(&service, Instance::new().with_id("2"))
        .unwrap();
    let first = registry.pick(&service, &LeastOutstanding).unwrap();
    // A refresh keeps the number of calls under way.
    registry.refresh(&service).unwrap();
    for _ in 0..10 {
        let other = registry.pick(&service, &LeastOutstanding).unwrap();
        assert_ne!(other.id(), first.id());
    }
    // One that could not be reached is passed over, unless there is no other.
    let gone = first.id().to_owned();
    first.failed();
    for _ in 0..10 {
        let other = registry.pick(&service, &RoundRobin::new()).unwrap();
        assert_ne!(other.id(), gone);
    }
    let other = registry.pick(&service, &Random).unwrap();
    other.failed();
    registry.pick(&service, &Random).unwrap().answered();
}
