//! `fallback`: answers that stand in for a service that is unavailable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coney::client::{LayeredCall, Origin, ServiceClientBuilder};
use coney::resilience::{RateLimit, Resilience};
use coney::{Broker, CallOptions, Error, Registry, ServiceClient};
use serde_json::json;

use crate::client_layers::builder;
use crate::support::retrying::quick;
use crate::support::scripted_service::{Act, ScriptedService, WAYS, all_ended, work};
use crate::support::timing::in_time;
use crate::support::{PATIENCE, on_both, unique};

on_both!(
    a_fallback_answers_for_services_that_are_unavailable_and_no_others,
    refusals_of_policies_have_the_fallback,
    lost_and_closed_clients_have_the_fallback,
    a_fallback_sees_the_request_and_the_last_error,
    a_fallback_that_gives_no_answer_leaves_the_error,
    the_origin_of_an_answer_is_known,
    a_fallback_comes_after_all_attempts_and_within_the_deadline,
    a_fallback_is_that_of_its_action,
);

const MS: Duration = Duration::from_millis(1);

/// Adds a fallback that answers 7.
fn seven(builder: ServiceClientBuilder, service: &str) -> ServiceClient {
    let builder = builder.fallback(service, "work", |_: &u64, error: &Error| {
        assert!(error.is_unavailable(), "{error}");
        Some(7)
    });
    builder.build().unwrap()
}

/// Checks that each way of calling gives 7 if the error is of an unavailable service, and else the
/// error.
fn check(client: &ServiceClient, service: &str, options: &CallOptions, error: &Error) {
    for (way, call) in WAYS {
        match call(client, service, options) {
            Ok(7) if error.is_unavailable() => {}
            Err(same) if !error.is_unavailable() && same.kind() == error.kind() => {}
            result => panic!("{way}: {result:?} for {error}"),
        }
        all_ended(client);
    }
}

fn a_fallback_answers_for_services_that_are_unavailable_and_no_others(broker: &Broker) {
    let mut service = ScriptedService::start(broker, &unique("work"), &[]);
    let plain = builder(broker).build().unwrap();
    let client = seven(builder(broker), &service.name);
    let options = CallOptions::new();
    for (act, is_unavailable) in [
        (Act::Busy(MS), true),
        (Act::Panic, true),
        (Act::Fail("not_found"), false),
        (Act::Fail("bad_request"), false),
        (Act::Fail("busy_downstream"), false),
        (Act::Fail(""), false),
    ] {
        service.always(act);
        let error = work(&plain, &service.name).unwrap_err();
        assert_eq!(error.is_unavailable(), is_unavailable, "{act:?}: {error}");
        check(&client, &service.name, &options, &error);
    }
    service.always(Act::Wait);
    let hurry = CallOptions::new().timeout(60 * MS);
    let error = WAYS[0].1(&plain, &service.name, &hurry).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    check(&client, &service.name, &hurry, &error);
    service.open();
    // An answer that the caller cannot read is one.
    service.always(Act::Double);
    client
        .call::<String>(&service.name, "work", &21)
        .unwrap_err();
    // A request that cannot be sent, or is not understood, is not at fault of the service.
    let no_json = std::collections::HashMap::from([((1, 2), 3)]);
    client
        .call::<u64>(&service.name, "work", &no_json)
        .unwrap_err();
    client
        .call::<u64>(&service.name, "work", "text")
        .unwrap_err();
    client.call::<u64>(&service.name, "play", &21).unwrap_err();

    let absent = unique("absent");
    let error = work(&plain, &absent).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    check(&seven(builder(broker), &absent), &absent, &options, &error);
    let registry = Registry::memory();
    let finder = || builder(broker).registry(&registry);
    let error = work(&finder().build().unwrap(), &absent).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    check(&seven(finder(), &absent), &absent, &options, &error);
}

fn refusals_of_policies_have_the_fallback(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let (name, options) = (&*service.name, CallOptions::new());
    let check = |client: &ServiceClient| {
        for (way, call) in WAYS {
            assert_eq!(call(client, name, &options).unwrap(), 7, "{way}");
        }
    };
    let client = seven(builder(broker).resilience(Resilience::new()), name);
    client.breaker(name).unwrap().hold_open(PATIENCE);
    check(&client);
    let rate = Resilience::none().rate(RateLimit::every(10 * PATIENCE));
    let client = seven(builder(broker).resilience(rate), name);
    assert_eq!(work(&client, name).unwrap(), 42);
    check(&client);
    let full = builder(broker).resilience(Resilience::none().max_in_flight(1));
    let client = seven(full, name);
    service.always(Act::Wait);
    let pending = client.call_async::<u64>(name, "work", &21).unwrap();
    check(&client);
    drop(pending);
    // The refusal of a layer is the program's own, round the call or the attempt.
    let refuse = |_: &mut coney::client::OutgoingCall<'_>, _: coney::client::NextCall<'_>| {
        LayeredCall::refused("no")
    };
    for builder in [
        builder(broker).attempt_layer(refuse),
        builder(broker).layer(refuse),
    ] {
        let client = seven(builder, name);
        for (_, call) in WAYS {
            call(&client, name, &options).unwrap_err();
        }
    }
}

fn lost_and_closed_clients_have_the_fallback(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = seven(builder(broker), &service.name);
    service.always(Act::Wait);
    let pending = client
        .call_async::<u64>(&service.name, "work", &21)
        .unwrap();
    service.runs.recv_timeout(PATIENCE).unwrap();
    client.close();
    assert_eq!(pending.wait().unwrap(), 7);
    for (way, call) in WAYS {
        let reply = call(&client, &service.name, &CallOptions::new());
        assert_eq!(reply.unwrap(), 7, "{way}");
    }
}

fn a_fallback_sees_the_request_and_the_last_error(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(MS));
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let client = builder(broker)
        .resilience(Resilience::none().retry(quick()))
        .fallback(&service.name, "work", move |request: &u64, error| {
            count.fetch_add(1, Ordering::SeqCst);
            Some(request * 1_000 + u64::from(error.attempts()))
        })
        .build()
        .unwrap();
    for (n, (way, call)) in WAYS.into_iter().enumerate() {
        let reply = call(&client, &service.name, &CallOptions::new());
        assert_eq!(reply.unwrap(), 21_003, "{way}");
        assert_eq!(runs.load(Ordering::SeqCst) as usize, n + 1, "once: {way}");
    }
}

fn a_fallback_that_gives_no_answer_leaves_the_error(broker: &Broker) {
    let absent = unique("absent");
    let builder = || builder(broker);
    let no_json = std::collections::HashMap::from([((1, 2), 3)]);
    for builder in [
        builder().fallback(&absent, "work", |_: &u64, _| None::<u64>),
        builder().fallback(&absent, "work", |_: &u64, _| -> Option<u64> {
            panic!("a panic that the test wants")
        }),
        builder().fallback(&absent, "work", |_: &String, _| Some(7)),
        builder().fallback(&absent, "work", move |_: &u64, _| Some(no_json.clone())),
    ] {
        let client = builder.build().unwrap();
        for (way, call) in WAYS {
            let error = call(&client, &absent, &CallOptions::new()).unwrap_err();
            assert_eq!(error.kind(), coney::ErrorKind::NoRoute, "{way}: {error}");
            all_ended(&client);
        }
    }
}

fn the_origin_of_an_answer_is_known(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = builder(broker).resilience(Resilience::none().retry(quick()));
    let client = seven(client, &service.name);
    let answer = |acts: &[Act]| {
        service.follow(acts);
        let options = CallOptions::new();
        let answer = client.call_detailed::<u64>(&service.name, "work", &21, &options);
        let answer = answer.unwrap();
        (*answer, answer.origin(), answer.attempts())
    };
    assert_eq!(answer(&[]), (42, Origin::Service, 1));
    assert_eq!(answer(&[Act::Busy(MS)]), (42, Origin::Service, 2));
    assert_eq!(answer(&[Act::Busy(MS); 3]), (7, Origin::Fallback, 3));
    assert_eq!(answer(&[Act::Panic]), (7, Origin::Fallback, 1));
}

fn a_fallback_comes_after_all_attempts_and_within_the_deadline(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(MS));
    let retry = quick().attempts(u32::MAX);
    let client = builder(broker).resilience(Resilience::none().retry(retry));
    let client = seven(client, &service.name);
    let options = CallOptions::new().timeout(200 * MS);
    for (way, call) in WAYS {
        let reply = in_time(200 * MS, way, || call(&client, &service.name, &options));
        assert_eq!(reply.unwrap(), 7, "{way}");
    }
}

fn a_fallback_is_that_of_its_action(broker: &Broker) {
    let [one, two] = ["one", "two"].map(unique);
    let client = builder(broker)
        .fallback(&one, "work", |_: &u64, _| Some(1))
        .fallback(&one, "play", |_: &u64, _| Some(json!({"played": true})))
        .fallback(&one, "work", |_: &u64, _| Some(2))
        .build()
        .unwrap();
    assert_eq!(work(&client, &one).unwrap(), 2, "the last one");
    let played: serde_json::Value = client.call(&one, "play", &1).unwrap();
    assert_eq!(played, json!({"played": true}));
    work(&client, &two).unwrap_err();
    client.call::<u64>(&one, "rest", &1).unwrap_err();
    // Batches and commands have none.
    let mut batch = client.batch(&one);
    batch.add::<u64>("work", &1);
    batch.call().into_results::<u64>().remove(0).unwrap_err();
    client.send(&one, "work", &1).unwrap_err();
}
