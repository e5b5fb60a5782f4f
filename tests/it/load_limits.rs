//! Limits of a client's load: calls in flight, rate, throttle, and ejected instances.

use std::time::{Duration, Instant};

use coney::balance::RoundRobin;
use coney::registry::{MemoryRegistryStore, RegistryStore};
use coney::resilience::{Ejection, RateLimit, Refusal, Resilience, Retry, Throttle};
use coney::{Broker, CallOptions, ErrorKind, Instance, Registry, ServiceClient};

use crate::support::instance_echo::finder;
use crate::support::scripted_service::{
    Act, ScriptedService, WAYS, all_ended, begin, resilient, work,
};
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    calls_in_flight_are_limited_for_each_service,
    a_rate_limit_spreads_calls,
    a_call_that_has_no_turn_in_time_is_refused_at_once,
    an_attempt_may_wait_longer_for_its_turn_than_for_its_reply,
    asynchronous_calls_wait_for_their_turn_when_they_are_waited_for,
    a_busy_service_gets_fewer_calls,
    an_instance_that_panics_is_not_picked,
    an_instance_that_hangs_is_not_picked,
    an_instance_that_works_again_is_picked_again,
    the_only_instance_is_never_ejected,
    failures_over_the_shared_queue_eject_no_instance,
);

const MS: Duration = Duration::from_millis(1);

fn calls_in_flight_are_limited_for_each_service(broker: &Broker) {
    let [mut slow, fine] = [0; 2].map(|_| ScriptedService::start(broker, &unique("work"), &[]));
    slow.always(Act::Wait);
    let client = resilient(broker, Resilience::none().max_in_flight(2));
    let options = CallOptions::new();
    let first = begin(&client, &slow.name, &options).unwrap();
    let mut second = begin(&client, &slow.name, &options).unwrap();
    for (way, call) in WAYS {
        let error = call(&client, &slow.name, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected, "{way}: {error}");
        assert_eq!(error.refused_by(), Some(Refusal::InFlight), "{way}");
        assert_eq!(error.retry_after(), None, "{way}");
        assert!(error.is_safe_to_retry() && error.is_unavailable());
        assert_eq!(call(&client, &fine.name, &options).unwrap(), 42, "{way}");
    }
    assert!(second.wait_timeout(MS).is_none());
    drop(first);
    let third = begin(&client, &slow.name, &options).unwrap();
    assert!(begin(&client, &slow.name, &options).is_err());
    slow.open();
    assert_eq!(second.wait().unwrap(), 42);
    assert_eq!(third.wait().unwrap(), 42);
    for (way, call) in WAYS {
        for _ in 0..3 {
            assert_eq!(call(&client, &slow.name, &options).unwrap(), 42, "{way}");
        }
    }
    all_ended(&client);
}

fn a_rate_limit_spreads_calls(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let limit = RateLimit::per_second(50).burst(2);
    for (way, call) in WAYS {
        let client = resilient(broker, Resilience::none().rate(limit.clone()));
        let begin = Instant::now();
        for _ in 0..7 {
            let reply = call(&client, &service.name, &CallOptions::new());
            assert_eq!(reply.unwrap(), 42, "{way}");
        }
        // Two at once, and then one each 20 ms.
        assert!(begin.elapsed() >= 100 * MS, "{way}: {:?}", begin.elapsed());
        all_ended(&client);
    }
}

fn a_call_that_has_no_turn_in_time_is_refused_at_once(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let limit = RateLimit::every(10 * PATIENCE);
    for (way, call) in WAYS {
        let policies = Resilience::none().rate(limit.clone()).retry(Retry::new());
        let client = resilient(broker, policies);
        let options = CallOptions::new();
        assert_eq!(call(&client, &service.name, &options).unwrap(), 42, "{way}");
        let begin = Instant::now();
        let error = call(&client, &service.name, &options).unwrap_err();
        assert!(begin.elapsed() < PATIENCE / 2, "{way}");
        assert_eq!(
            error.refused_by(),
            Some(Refusal::RateLimit),
            "{way}: {error}"
        );
        assert!(error.retry_after() > Some(8 * PATIENCE), "{way}: {error:?}");
        assert_eq!(error.attempts(), 0, "{way}");
        assert_eq!(service.runs().len(), 1, "{way}");
    }
}

fn an_attempt_may_wait_longer_for_its_turn_than_for_its_reply(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let policies = Resilience::none()
        .rate(RateLimit::every(700 * MS))
        .retry(Retry::new().per_attempt(500 * MS));
    let client = resilient(broker, policies);
    let options = CallOptions::new().idempotent(true);
    for _ in 0..3 {
        let reply: coney::Result<u64> = client.call_with(&service.name, "work", &21, &options);
        assert_eq!(reply.unwrap(), 42);
    }
}

fn asynchronous_calls_wait_for_their_turn_when_they_are_waited_for(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let rate = RateLimit::every(PATIENCE / 4);
    let client = resilient(broker, Resilience::none().rate(rate));
    let start = Instant::now();
    let first = begin(&client, &service.name, &CallOptions::new()).unwrap();
    let mut second = begin(&client, &service.name, &CallOptions::new()).unwrap();
    assert!(second.try_wait().is_none());
    assert_eq!(first.wait().unwrap(), 42);
    assert!(second.wait_timeout(MS).is_none());
    assert!(start.elapsed() < PATIENCE / 4, "starting does not block");
    drop(second);
    assert_eq!(client.in_flight(), 0);
    assert_eq!(service.runs().len(), 1);
}

fn a_busy_service_gets_fewer_calls(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(MS));
    let throttle = Throttle::new().window(4_000 * MS);
    let client = resilient(broker, Resilience::none().throttle(throttle));
    let error = || work(&client, &service.name).unwrap_err();
    // Too few to judge by.
    let first: Vec<_> = (0..20).map(|_| error().refused_by()).collect();
    assert_eq!(first, [None; 20]);
    eventually("most calls are refused", || {
        let errors: Vec<_> = (0..200).map(|_| error()).collect();
        let refused = errors.iter().filter(|error| match error.refused_by() {
            Some(Refusal::Throttle) => true,
            refusal => {
                assert_eq!((refusal, error.kind()), (None, ErrorKind::Busy));
                false
            }
        });
        refused.count() > 100
    });
    service.always(Act::Double);
    eventually("all calls are answered again", || {
        let calls = (0..50).map(|_| work(&client, &service.name));
        calls.filter(Result::is_ok).count() == 50
    });
}

/// Three instances of a service, and a client that calls them in turn.
fn three(broker: &Broker, ejection: Ejection) -> (ServiceClient, [ScriptedService; 3]) {
    let (registry, name) = (Registry::memory(), unique("work"));
    let services = ["a", "b", "c"].map(|id| instance(broker, &registry, &name, id));
    (balanced(broker, &registry, ejection), services)
}

fn instance(broker: &Broker, registry: &Registry, name: &str, id: &str) -> ScriptedService {
    ScriptedService::start_with(broker, name, &[], |builder| {
        let instance = Instance::new().with_id(id);
        builder.registry(registry).instance(instance)
    })
}

fn balanced(broker: &Broker, registry: &Registry, ejection: Ejection) -> ServiceClient {
    finder(broker, registry)
        .balancer(RoundRobin::new())
        .resilience(Resilience::none().ejection(ejection.ignore_slow()))
        .build()
        .unwrap()
}

fn ejected(client: &ServiceClient, name: &str) -> Vec<String> {
    let ejected = client.ejected(name).into_iter();
    ejected.map(|(id, _)| id).collect()
}

fn an_instance_that_panics_is_not_picked(broker: &Broker) {
    let ejection = Ejection::new().eject_for(10 * PATIENCE, 10 * PATIENCE);
    let (client, services) = three(broker, ejection);
    let name = &services[0].name;
    services[1].always(Act::Panic);
    let options = CallOptions::new();
    // Errors of handlers count as answers.
    services[2].always(Act::Fail("not_found"));
    let calls = WAYS.iter().cycle().take(60);
    let results = calls.map(|(_, call)| call(&client, name, &options));
    let panics = results.filter(|result| {
        let code = result.as_ref().err().and_then(coney::Error::remote_code);
        code == Some("panic")
    });
    assert_eq!(panics.count(), 5);
    let left = client.ejected(name);
    assert_eq!(left.len(), 1);
    assert!(left[0].0 == "b" && left[0].1 > 8 * PATIENCE, "{left:?}");
    let runs = services.each_ref().map(|service| service.runs().len());
    assert_eq!((runs.iter().sum::<usize>(), runs[1]), (60, 5), "{runs:?}");
    assert!(runs[0] >= 20 && runs[2] >= 20, "{runs:?}");
    // At most half of them are ejected: one of three.
    services[2].always(Act::Panic);
    for _ in 0..20 {
        let _ = work(&client, name);
    }
    let ejected = ejected(&client, name);
    assert!(
        ejected.len() <= 1 && !ejected.contains(&"a".to_owned()),
        "{ejected:?}"
    );
}

fn an_instance_that_hangs_is_not_picked(broker: &Broker) {
    let ejection = Ejection::new()
        .eject_for(10 * PATIENCE, 10 * PATIENCE)
        .in_a_row(3);
    let (client, services) = three(broker, ejection);
    let name = &services[0].name;
    services[0].always(Act::Wait);
    let hurry = CallOptions::new().timeout(1_000 * MS);
    eventually("it is ejected", || {
        let (_, call) = WAYS[fastrand::usize(..WAYS.len())];
        if let Err(error) = call(&client, name, &hurry) {
            assert!(error.is_unavailable(), "{error}");
        }
        !client.ejected(name).is_empty()
    });
    assert_eq!(ejected(&client, name), ["a"]);
    for _ in 0..20 {
        assert_eq!(work(&client, name).unwrap(), 42);
    }
}

fn an_instance_that_works_again_is_picked_again(broker: &Broker) {
    let ejection = Ejection::new().eject_for(20 * MS, 20 * MS).in_a_row(1);
    let (client, services) = three(broker, ejection);
    let name = &services[0].name;
    services[2].follow(&[Act::Panic; 3]);
    eventually("it is ejected", || {
        let _ = work(&client, name);
        !client.ejected(name).is_empty()
    });
    eventually("it is picked again", || {
        let _ = work(&client, name);
        client.ejected(name).is_empty()
    });
    services[2].runs();
    for _ in 0..9 {
        assert_eq!(work(&client, name).unwrap(), 42);
    }
    assert_eq!(services[2].runs().len(), 3);
}

fn the_only_instance_is_never_ejected(broker: &Broker) {
    let (registry, name) = (Registry::memory(), unique("work"));
    let service = instance(broker, &registry, &name, "only");
    let client = balanced(broker, &registry, Ejection::new().in_a_row(1).at_most(1.0));
    service.always(Act::Panic);
    for _ in 0..30 {
        let error = work(&client, &name).unwrap_err();
        assert_eq!(error.remote_code(), Some("panic"), "{error}");
        assert_eq!(client.ejected(&name), []);
    }
    assert_eq!(service.runs().len(), 30);
}

fn failures_over_the_shared_queue_eject_no_instance(broker: &Broker) {
    let name = unique("work");
    let store = MemoryRegistryStore::new();
    let registry = Registry::builder(store.clone()).build().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    // Peers without queues of their own.
    for id in ["x", "y", "z"] {
        let json = format!(r#"{{"last_heartbeat":{now}}}"#);
        store
            .register(&Instance::from_json(&name, id, &json).unwrap())
            .unwrap();
    }
    let service = ScriptedService::start(broker, &name, &[]);
    let client = balanced(broker, &registry, Ejection::new().in_a_row(1));
    service.always(Act::Wait);
    let hurry = CallOptions::new().timeout(100 * MS);
    for call in [WAYS[0].1, WAYS[2].1, WAYS[4].1, WAYS[5].1] {
        let error = call(&client, &name, &hurry).unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert_eq!(client.ejected(&name), []);
    }
    service.always(Act::Panic);
    for _ in 0..9 {
        let error = work(&client, &name).unwrap_err();
        assert_eq!(error.remote_code(), Some("panic"), "{error}");
        assert_eq!(client.ejected(&name), []);
    }
}
