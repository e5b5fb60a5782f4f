//! Servers that register and clients that look them up, over both brokers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::balance::{ConsistentHash, LowestLatency, Random, RoundRobin};
use coney::registry::{MemoryRegistryStore, RegistryStore};
use coney::{
    Broker, CallOptions, ErrorKind, Instance, Phase, Registry, ServiceClient, ServiceServer,
};
use crossbeam_channel::{bounded, unbounded};

use crate::support::instance_echo::{answering_instance, finder, server};
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_server_registers_what_it_knows_and_leaves_first,
    a_call_without_an_instance_fails_at_once,
    an_empty_look_up_is_cached_briefly,
    no_addressed_call_is_lost_in_a_shutdown,
    calls_are_addressed_to_one_instance,
    a_balanced_call_skips_a_dead_instance,
    an_asynchronous_call_skips_a_dead_instance,
    a_key_goes_to_the_same_instance,
    a_slow_instance_gets_fewer_calls,
    peers_without_a_queue_of_their_own_are_called_through_the_services,
    unstarted_requests_go_to_other_instances,
);

const MS: Duration = Duration::from_millis(1);

fn a_server_registers_what_it_knows_and_leaves_first(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let (begun, begins) = unbounded();
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let server = ServiceServer::builder(broker, &service)
        .registry(&registry)
        .instance(
            Instance::new()
                .with_version("1.2.3")
                .with_metadata("zone", &"eu"),
        )
        .respond("b", |(): ()| ())
        .respond("a", move |(): ()| {
            begun.send(()).unwrap();
            let _ = gate.recv();
        })
        .start()
        .unwrap();
    let found = registry.lookup(&service).unwrap();
    let found = found.iter().next().unwrap();
    assert_eq!(server.instance_id(), Some(found.id()));
    assert_eq!(found.actions(), ["a", "b"]);
    assert_eq!(found.version(), Some("1.2.3"));
    assert_eq!(found.metadata::<u32>("pid"), Some(std::process::id()));
    assert_eq!(found.metadata::<String>("zone").as_deref(), Some("eu"));
    assert!(found.metadata::<String>("coney").is_some());
    assert!(found.host().is_some_and(|host| !host.is_empty()));
    // It is gone from the registry while a handler still runs.
    let pending = client(broker).call_async::<()>(&service, "a", &()).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    thread::scope(|scope| {
        let stopping = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("it is gone", || {
            registry.lookup(&service).unwrap().is_empty()
        });
        assert!(!stopping.is_finished(), "the handler still runs");
        drop(release);
        stopping.join().unwrap().unwrap();
    });
    pending.wait().unwrap();
}

fn a_call_without_an_instance_fails_at_once(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let strict = finder(broker, &registry).build().unwrap();
    let start = Instant::now();
    let error = strict.call::<()>(&service, "who", &0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoInstance);
    assert!(
        error.is_safe_to_retry() && error.to_string().contains("who"),
        "{error}"
    );
    assert!(start.elapsed() < PATIENCE / 2);
    let running = server(broker, &service, &registry, "1").start().unwrap();
    assert_eq!(answering_instance(&strict, &service), "1");
    running.shutdown(PATIENCE).unwrap();
    let error = strict.call::<()>(&service, "who", &0).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::NoInstance,
        "its queue is there, and no consumer"
    );
    // A command waits for an instance, and so does a call if it may.
    strict.send(&service, "who", &0).unwrap();
    let lenient = finder(broker, &registry)
        .require_instance(false)
        .build()
        .unwrap();
    let hurry = CallOptions::new().timeout(1_000 * MS);
    let error = lenient
        .call_with::<()>(&service, "who", &0, &hurry)
        .unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Reply), "{error}");
    let error = ServiceClient::builder(broker, "finder")
        .balancer(Random)
        .build();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

/// Returns two registries with one store, as two processes have them.
fn two_registries() -> [Registry; 2] {
    let store = MemoryRegistryStore::new();
    [(); 2].map(|()| Registry::builder(store.clone()).build().unwrap())
}

fn an_empty_look_up_is_cached_briefly(broker: &Broker) {
    let ([here, there], service) = (two_registries(), unique("who"));
    let strict = finder(broker, &here).build().unwrap();
    let error = strict.call::<()>(&service, "who", &0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoInstance);
    let _server = server(broker, &service, &there, "1").start().unwrap();
    eventually("it is looked up again", || {
        let answer = strict.call::<String>(&service, "who", &0);
        answer.is_ok_and(|id| id == "1")
    });
}

fn no_addressed_call_is_lost_in_a_shutdown(broker: &Broker) {
    let ([here, there], service) = (two_registries(), unique("who"));
    let _stays = server(broker, &service, &there, "stays").start().unwrap();
    let client = finder(broker, &here)
        .balancer(RoundRobin::new())
        .build()
        .unwrap();
    for _ in 0..5 {
        let goes = server(broker, &service, &there, "goes")
            .workers(2)
            .prefetch(4)
            .start()
            .unwrap();
        here.refresh(&service).unwrap();
        let is_over = AtomicBool::new(false);
        let (of_goes, of_stays) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::SeqCst) {
                        let answer = client.call::<String>(&service, "who", &2);
                        match &*answer.expect("it is answered") {
                            "goes" => &of_goes,
                            _ => &of_stays,
                        }
                        .fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            eventually("both are busy", || of_goes.load(Ordering::SeqCst) > 20);
            goes.shutdown(PATIENCE).unwrap();
            let wanted = of_stays.load(Ordering::SeqCst) + 20;
            eventually("the other answers alone", || {
                of_stays.load(Ordering::SeqCst) > wanted
            });
            is_over.store(true, Ordering::SeqCst);
        });
    }
}

fn calls_are_addressed_to_one_instance(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let servers =
        ["1", "2", "3"].map(|id| server(broker, &service, &registry, id).start().unwrap());
    let client = client(broker);
    for id in ["2", "1", "3", "1"] {
        let options = CallOptions::new().instance(id);
        let answer: String = client.call_with(&service, "who", &0, &options).unwrap();
        assert_eq!(answer, id);
    }
    let [_, second, _] = &servers;
    second.shutdown(PATIENCE).unwrap();
    let options = CallOptions::new().instance("2");
    let error = client
        .call_with::<String>(&service, "who", &0, &options)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(
        error
            .to_string()
            .contains(&format!("service.{service}.instance.2")),
        "{error}"
    );
}

/// Returns a registry that still has an instance without a process, as after `kill -9`.
fn with_a_ghost(service: &str) -> (MemoryRegistryStore, Registry) {
    let store = MemoryRegistryStore::new();
    let registry = Registry::builder(store.clone()).build().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let json = format!(r#"{{"last_heartbeat":{now},"capabilities":["own_queue"]}}"#);
    store
        .register(&Instance::from_json(service, "ghost", &json).unwrap())
        .unwrap();
    (store, registry)
}

fn a_balanced_call_skips_a_dead_instance(broker: &Broker) {
    let service = unique("who");
    let (_store, registry) = with_a_ghost(&service);
    let _server = server(broker, &service, &registry, "real").start().unwrap();
    let client = finder(broker, &registry)
        .balancer(RoundRobin::new())
        .build()
        .unwrap();
    for _ in 0..10 {
        assert_eq!(answering_instance(&client, &service), "real");
    }
    assert_eq!(client.in_flight(), 0);
    assert_eq!(client.unclaimed_replies(), 0);
}

fn an_asynchronous_call_skips_a_dead_instance(broker: &Broker) {
    let service = unique("who");
    let (_store, registry) = with_a_ghost(&service);
    let _server = server(broker, &service, &registry, "real").start().unwrap();
    let client = finder(broker, &registry)
        .balancer(RoundRobin::new())
        .build()
        .unwrap();
    let calls: Vec<_> = (0..20)
        .map(|_| client.call_async::<String>(&service, "who", &0).unwrap())
        .collect();
    for call in calls {
        assert_eq!(call.wait().unwrap(), "real");
    }
    let (sent, answers) = unbounded();
    client
        .call_async::<String>(&service, "who", &0)
        .unwrap()
        .then(move |answer| sent.send(answer).unwrap())
        .unwrap();
    assert_eq!(answers.recv_timeout(PATIENCE).unwrap().unwrap(), "real");
}

fn a_key_goes_to_the_same_instance(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let _servers =
        ["1", "2", "3"].map(|id| server(broker, &service, &registry, id).start().unwrap());
    let client = finder(broker, &registry)
        .balancer(ConsistentHash)
        .build()
        .unwrap();
    let mut places: HashMap<u32, String> = HashMap::new();
    for n in 0..90 {
        let key = n % 30;
        let options = CallOptions::new().balance_key(format!("user-{key}"));
        let answer: String = client.call_with(&service, "who", &0, &options).unwrap();
        let before = places.entry(key).or_insert_with(|| answer.clone());
        assert_eq!(*before, answer);
    }
    let used: std::collections::HashSet<&String> = places.values().collect();
    assert_eq!(used.len(), 3);
}

fn a_slow_instance_gets_fewer_calls(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let _fast = ["1", "2"].map(|id| server(broker, &service, &registry, id).start().unwrap());
    let (release, gate) = bounded::<()>(0);
    let late = |id: &'static str, by: Duration| {
        let gate = gate.clone();
        ServiceServer::builder(broker, &service)
            .registry(&registry)
            .instance(Instance::new().with_id(id))
            .respond("who", move |_: u64| {
                let _ = gate.recv_timeout(by);
                id
            })
            .start()
            .unwrap()
    };
    // Far slower than any other is on a busy machine.
    let _slow = late("slow", 1_000 * MS);
    let client = finder(broker, &registry)
        .balancer(LowestLatency)
        .build()
        .unwrap();
    let answers: Vec<String> = (0..60)
        .map(|_| answering_instance(&client, &service))
        .collect();
    let slow = answers.iter().filter(|answer| *answer == "slow").count();
    assert!(slow <= 3, "{slow} of 60 calls went to the slow one");
    // One that does not answer at all is as slow as the timeout of its callers.
    let hung = late("hung", PATIENCE);
    let hurry = CallOptions::new().timeout(2_000 * MS);
    let failed = (0..40)
        .filter(|_| {
            client
                .call_with::<String>(&service, "who", &0, &hurry)
                .is_err()
        })
        .count();
    assert!(
        (1..=3).contains(&failed),
        "{failed} of 40 calls went to the one that hangs"
    );
    drop(release);
    hung.shutdown(PATIENCE).unwrap();
}

fn peers_without_a_queue_of_their_own_are_called_through_the_services(broker: &Broker) {
    let service = unique("who");
    let store = MemoryRegistryStore::new();
    let registry = Registry::builder(store.clone()).build().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let json = format!(r#"{{"last_heartbeat":{now},"host":"10.0.0.5"}}"#);
    store
        .register(&Instance::from_json(&service, "php", &json).unwrap())
        .unwrap();
    // The peer does not use the registry.
    let _peer = ServiceServer::builder(broker, &service)
        .respond("who", |_: u64| "peer")
        .start()
        .unwrap();
    let client = finder(broker, &registry).balancer(Random).build().unwrap();
    assert_eq!(answering_instance(&client, &service), "peer");
}

fn unstarted_requests_go_to_other_instances(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("who"));
    let (began, begins) = unbounded();
    let (release, gate) = bounded::<()>(0);
    let first = ServiceServer::builder(broker, &service)
        .registry(&registry)
        .instance(Instance::new().with_id("1"))
        .workers(1)
        .prefetch(2)
        .respond("who", move |_: u64| {
            began.send(()).unwrap();
            let _ = gate.recv();
            "1"
        })
        .start()
        .unwrap();
    let _second = server(broker, &service, &registry, "2").start().unwrap();
    let client = client(broker);
    let options = CallOptions::new().instance("1");
    // One runs, two are fetched, and the rest wait in the instance's own queue.
    let calls: Vec<_> = (0..10)
        .map(|_| {
            client
                .call_async_with::<String>(&service, "who", &0, &options)
                .unwrap()
        })
        .collect();
    begins.recv_timeout(PATIENCE).unwrap();
    let answers: Vec<String> = thread::scope(|scope| {
        let stopping = scope.spawn(|| first.shutdown(PATIENCE));
        let mut calls = calls.into_iter();
        let running = calls.next().unwrap();
        let mut answers: Vec<String> = calls.map(|call| call.wait().unwrap()).collect();
        drop(release);
        answers.insert(0, running.wait().unwrap());
        stopping.join().unwrap().unwrap();
        answers
    });
    assert_eq!(answers[0], "1");
    assert!(answers[1..].iter().all(|id| id == "2"), "{answers:?}");
}
