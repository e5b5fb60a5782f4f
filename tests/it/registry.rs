//! Registration, heartbeats and look-ups, on every store: the same tests run on memory and on
//! Redis.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coney::balance::Random;
use coney::registry::{
    HeartbeatResult, Lookup, MemoryRegistryStore, RegistrationState, RegistryStore,
};
use coney::{ErrorKind, Instance, Registry};

use crate::support::timing::{SLACK, stall_since};
use crate::support::{PATIENCE, eventually, unique};

/// Each test gets a function that opens a store. All that one test opens are the same store, as
/// several processes have it.
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[test] fn $name() {
                let services = super::MemoryRegistryStore::new();
                super::$name(&|heartbeat_ttl| ::std::sync::Arc::new(services.clone().with_heartbeat_ttl(heartbeat_ttl)));
            })+
        }
        #[cfg(feature = "redis")]
        mod redis {
            $(#[test] fn $name() {
                super::$name(&|heartbeat_ttl| {
                    let redis = coney::redis::Redis::new(&crate::support::redis_url()).unwrap();
                    let store = redis.registry_store().with_heartbeat_ttl(heartbeat_ttl);
                    ::std::sync::Arc::new(store)
                });
            })+
        }
    };
}

pub(crate) use on_both_stores;

pub(crate) type Open<'a> = &'a dyn Fn(Duration) -> Arc<dyn RegistryStore>;

on_both_stores!(
    what_is_registered_is_found_until_it_is_dropped,
    everything_an_instance_says_arrives,
    one_that_stops_beating_is_dead_and_then_removed,
    beats_keep_it_alive_and_only_change_the_beat,
    a_heartbeat_brings_none_back,
    a_deregistration_by_another_counts,
    one_taken_for_dead_comes_back_with_its_next_beat,
    the_unwell_are_left_out,
    services_are_listed,
    names_are_checked,
);

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn registry(open: Open<'_>) -> Registry {
    Registry::builder(open(MINUTE)).build().unwrap()
}

pub(crate) fn ids(lookup: &Lookup) -> Vec<&str> {
    lookup.iter().map(Instance::id).collect()
}

/// Returns an instance as a peer writes it, with a heartbeat from `seconds_ago`.
pub(crate) fn beaten(service: &str, id: &str, seconds_ago: u64) -> Instance {
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let json = format!(
        r#"{{"last_heartbeat":{},"zone":"eu","coney":"0.1.0"}}"#,
        now - seconds_ago
    );
    Instance::from_json(service, id, &json).unwrap()
}

fn what_is_registered_is_found_until_it_is_dropped(open: Open<'_>) {
    let (here, there) = (registry(open), registry(open));
    let service = unique("web");
    assert!(here.lookup(&service).unwrap().is_empty());
    let error = here.pick(&service, &Random).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoInstance);
    assert!(
        error.is_safe_to_retry() && error.to_string().contains(&service),
        "{error}"
    );
    let one = here
        .register(&service, Instance::new().with_id("1"))
        .unwrap();
    assert_eq!(one.state(), RegistrationState::Registered);
    // At once where it was registered, and elsewhere on the next asking.
    assert_eq!(ids(&here.lookup(&service).unwrap()), ["1"]);
    assert_eq!(ids(&there.lookup(&service).unwrap()), ["1"]);
    let two = there
        .register(&service, Instance::new().with_id("2"))
        .unwrap();
    assert_eq!(ids(&here.refresh(&service).unwrap()), ["1", "2"]);
    drop(one);
    assert_eq!(ids(&here.lookup(&service).unwrap()), ["2"]);
    assert_eq!(ids(&there.refresh(&service).unwrap()), ["2"]);
    two.deregister(PATIENCE).unwrap();
    two.deregister(PATIENCE).unwrap();
    assert_eq!(two.state(), RegistrationState::Deregistered);
    assert!(here.refresh(&service).unwrap().is_empty());
    assert!(!here.lookup(&service).unwrap().is_stale());
}

fn everything_an_instance_says_arrives(open: Open<'_>) {
    let (here, there) = (registry(open), registry(open));
    let service = unique("web");
    let instance = Instance::new()
        .with_host("张三.example")
        .with_port(8080)
        .with_version("1.2.3")
        .with_weight(7)
        .with_actions(["get", "put"])
        .with_metadata("zone", &"eu-1");
    let _registration = here.register(&service, instance).unwrap();
    let found = there.lookup(&service).unwrap();
    let found = found.iter().next().unwrap();
    assert_eq!(found.service(), service);
    assert_eq!(found.host(), Some("张三.example"));
    assert_eq!((found.port(), found.version()), (Some(8080), Some("1.2.3")));
    assert_eq!((found.weight(), found.actions().len()), (7, 2));
    assert_eq!(found.metadata::<String>("zone").as_deref(), Some("eu-1"));
    assert!(found.registered_at() > 1_700_000_000);
    assert!(found.last_heartbeat() >= found.registered_at());
}

fn one_that_stops_beating_is_dead_and_then_removed(open: Open<'_>) {
    let service = unique("web");
    let store = open(2 * SECOND);
    store.register(&beaten(&service, "dying", 0)).unwrap();
    store.register(&beaten(&service, "dead", 2)).unwrap();
    let start = Instant::now();
    stall_since(start); // the measuring begins with the first call
    let registry = Registry::builder(open(2 * SECOND)).build().unwrap();
    assert_eq!(ids(&registry.lookup(&service).unwrap()), ["dying"]);
    eventually("the reader removes the dead one", || {
        store.instances(&service).unwrap().instances.len() < 2
    });
    while !registry.lookup(&service).unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    let allowed = Duration::from_millis(2_300) + SLACK + stall_since(start);
    assert!(start.elapsed() < allowed, "{:?}", start.elapsed());
    eventually("the store has forgotten it", || {
        registry.refresh(&service).unwrap();
        store.instances(&service).unwrap().instances.is_empty()
    });
    // It is not removed if it has beaten meanwhile.
    store.register(&beaten(&service, "back", 0)).unwrap();
    assert!(!store.remove_dead(&beaten(&service, "back", 2)).unwrap());
    assert_eq!(store.instances(&service).unwrap().instances.len(), 1);
    assert!(store.healthy_instance(&service).unwrap().is_some());
    assert!(store.remove_dead(&beaten(&service, "gone", 2)).unwrap());
}

fn beats_keep_it_alive_and_only_change_the_beat(open: Open<'_>) {
    let service = unique("web");
    let store = open(2 * SECOND);
    let registry = Registry::builder(Arc::clone(&store))
        .heartbeat_interval(Duration::from_millis(300))
        .build()
        .unwrap();
    let registration = registry
        .register(&service, Instance::new().with_port(1))
        .unwrap();
    let first = store.instances(&service).unwrap().instances.remove(0);
    // Another program writes something into it, as an operator would.
    let other = open(2 * SECOND);
    let json = first
        .to_json()
        .replace("\"port\":1", "\"port\":2,\"note\":\"by hand\"");
    other
        .register(&Instance::from_json(&service, registration.id(), &json).unwrap())
        .unwrap();
    let mut last = first.clone();
    eventually(
        "it has beaten for longer than one that does not would live",
        || {
            assert_eq!(registry.lookup(&service).unwrap().iter().len(), 1);
            last = store.instances(&service).unwrap().instances.remove(0);
            last.last_heartbeat() > first.last_heartbeat() + 3
        },
    );
    assert_eq!(last.registered_at(), first.registered_at());
    assert_eq!(last.port(), Some(2), "what another wrote stays");
    assert_eq!(last.metadata::<String>("note").as_deref(), Some("by hand"));
}

fn a_heartbeat_brings_none_back(open: Open<'_>) {
    let service = unique("web");
    let store = open(MINUTE);
    let (here, gone) = (beaten(&service, "here", 5), beaten(&service, "gone", 5));
    let never = beaten(&service, "never", 5);
    store.register(&here).unwrap();
    store.register(&gone).unwrap();
    store.deregister(&service, "gone").unwrap();
    store.deregister(&service, "gone").unwrap();
    let beats = store.heartbeat(&[here, gone.clone(), never]).unwrap();
    assert_eq!(
        beats,
        [
            HeartbeatResult::Renewed,
            HeartbeatResult::Deregistered,
            HeartbeatResult::Lost
        ]
    );
    let other = open(MINUTE);
    assert_eq!(
        other.heartbeat(std::slice::from_ref(&gone)).unwrap(),
        [HeartbeatResult::Deregistered]
    );
    let found = store.instances(&service).unwrap().instances;
    assert_eq!(found.len(), 1, "{found:?}");
    // Registered anew it is there.
    other.register(&gone).unwrap();
    assert_eq!(
        store.heartbeat(&[gone]).unwrap(),
        [HeartbeatResult::Renewed]
    );
}

fn a_deregistration_by_another_counts(open: Open<'_>) {
    let service = unique("web");
    let registry = Registry::builder(open(2 * SECOND))
        .heartbeat_interval(Duration::from_millis(50))
        .build()
        .unwrap();
    let registration = registry.register(&service, Instance::new()).unwrap();
    open(MINUTE)
        .deregister(&service, registration.id())
        .unwrap();
    eventually("it is noticed", || {
        registration.state() == RegistrationState::Deregistered
    });
    // Another instance of the same registry shows that it has beaten since.
    let beating = unique("beating");
    let _other = registry.register(&beating, Instance::new()).unwrap();
    let heartbeat = || {
        let found = registry.refresh(&beating).unwrap();
        found.iter().next().map(Instance::last_heartbeat)
    };
    let first = heartbeat();
    eventually("more beats", || heartbeat() > first);
    assert!(registry.refresh(&service).unwrap().is_empty());
}

fn one_taken_for_dead_comes_back_with_its_next_beat(open: Open<'_>) {
    let service = unique("web");
    let store = open(2 * SECOND);
    let registry = Registry::builder(Arc::clone(&store))
        .heartbeat_interval(Duration::from_millis(100))
        .build()
        .unwrap();
    let registration = registry.register(&service, Instance::new()).unwrap();
    let there = store.instances(&service).unwrap().instances.remove(0);
    // As if it had been suspended: what is there is as old as what is removed.
    store.register(&beaten(&service, there.id(), 1)).unwrap();
    let _ = store.remove_dead(&beaten(&service, there.id(), 1)).unwrap();
    eventually("it is there again", || {
        registry.refresh(&service).unwrap().iter().len() == 1
    });
    assert_eq!(registration.state(), RegistrationState::Registered);
}

fn the_unwell_are_left_out(open: Open<'_>) {
    let (here, there) = (registry(open), registry(open));
    let service = unique("web");
    let one = here
        .register(&service, Instance::new().with_id("1"))
        .unwrap();
    let _two = here
        .register(&service, Instance::new().with_id("2"))
        .unwrap();
    one.set_unhealthy(Some("the disk is full"));
    eventually("it is left out", || {
        ids(&there.refresh(&service).unwrap()) == ["2"]
    });
    let found = there.lookup(&service).unwrap();
    let unwell = found.all().find(|one| !one.is_healthy()).unwrap();
    assert_eq!(unwell.unhealthy_reason(), Some("the disk is full"));
    assert_eq!(there.pick(&service, &Random).unwrap().id(), "2");
    one.set_unhealthy(None);
    eventually("it is there again", || {
        there.refresh(&service).unwrap().iter().len() == 2
    });
}

fn services_are_listed(open: Open<'_>) {
    let registry = registry(open);
    let (one, two) = (unique("a"), unique("b"));
    let registered = [&two, &one].map(|service| registry.register(service, Instance::new()));
    let listed = registry.services().unwrap();
    let at = |name: &String| listed.iter().position(|listed| listed == name);
    assert!(at(&one).unwrap() < at(&two).unwrap());
    drop(registered);
    assert_eq!(
        registry
            .services()
            .unwrap()
            .iter()
            .find(|name| **name == one),
        None
    );
}

fn names_are_checked(open: Open<'_>) {
    let registry = registry(open);
    for (service, id) in [("", "1"), ("web", ""), ("web", &*"x".repeat(65))] {
        let error = registry
            .register(service, Instance::new().with_id(id))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }
    let error = Registry::builder(MemoryRegistryStore::new())
        .heartbeat_interval(MINUTE)
        .build();
    assert!(error.unwrap_err().to_string().contains("half"));
}
