//! The ends of calls through layers: when they run, and what becomes of calls that layers drop or
//! panic in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use coney::client::{LayeredCall, NextCall, OutgoingCall};
use coney::resilience::{Refusal, Resilience};
use coney::{Broker, CallOptions, ErrorKind};
use crossbeam_channel::unbounded;
use parking_lot::Mutex;

use crate::client_layers::builder;
use crate::support::scripted_service::{ScriptedService, WAYS, all_ended, begin};
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    the_result_is_passed_through_when_it_is_waited_for,
    the_result_of_a_callback_is_passed_through_on_its_thread,
    a_layer_may_drop_the_call_that_runs,
    a_layer_cannot_send_the_request_of_another_call,
    a_panic_in_a_layer_is_an_error_and_gives_its_place_back,
);

fn the_result_is_passed_through_when_it_is_waited_for(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let ends = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ends);
    let client = builder(broker)
        .layer(move |call, next| {
            let count = Arc::clone(&count);
            next.run(call).map(move |result| {
                count.fetch_add(1, Ordering::SeqCst);
                result
            })
        })
        .build()
        .unwrap();
    let options = CallOptions::new();
    let pending = begin(&client, &service.name, &options).unwrap();
    eventually("its reply", || client.in_flight() == 0);
    assert_eq!(ends.load(Ordering::SeqCst), 0);
    assert_eq!(pending.wait().unwrap(), 42);
    assert_eq!(ends.load(Ordering::SeqCst), 1);
    drop(begin(&client, &service.name, &options).unwrap());
    assert_eq!(ends.load(Ordering::SeqCst), 1, "it was dropped");
    let mut late = begin(&client, &service.name, &options).unwrap();
    assert_eq!(late.wait_timeout(PATIENCE).unwrap().unwrap(), 42);
    drop(late);
    assert_eq!(ends.load(Ordering::SeqCst), 2);
}

fn the_result_of_a_callback_is_passed_through_on_its_thread(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let (sent, threads) = unbounded();
    let client = builder(broker)
        .layer(move |call, next| {
            let sent = sent.clone();
            next.run(call).map(move |result| {
                let name = thread::current().name().map(str::to_owned);
                sent.send(name).unwrap();
                result
            })
        })
        .build()
        .unwrap();
    let (_, then) = WAYS[5];
    assert_eq!(
        then(&client, &service.name, &CallOptions::new()).unwrap(),
        42
    );
    let name = threads.recv_timeout(PATIENCE).unwrap();
    assert_eq!(name.as_deref(), Some("coney-callback-shop"));
}

fn a_layer_may_drop_the_call_that_runs(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let dropping = |call: &mut OutgoingCall<'_>, next: NextCall<'_>| {
        drop(next.run(call));
        LayeredCall::refused("dropped")
    };
    for builder in [
        builder(broker).layer(dropping),
        builder(broker).attempt_layer(dropping),
    ] {
        let policies = Resilience::new().max_in_flight(1);
        let client = builder.resilience(policies).build().unwrap();
        for _ in 0..3 {
            for (way, call) in WAYS {
                let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
                assert_eq!(error.refused_by(), Some(Refusal::Layer), "{way}: {error}");
                assert_eq!(client.in_flight(), 0, "{way}");
            }
        }
    }
}

fn a_layer_cannot_send_the_request_of_another_call(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let kept = Mutex::new(None);
    let client = builder(broker)
        .layer(move |call, next| {
            let other = kept.lock().take();
            other.unwrap_or_else(|| {
                *kept.lock() = Some(next.run(call));
                LayeredCall::refused("kept")
            })
        })
        .build()
        .unwrap();
    let options = CallOptions::new();
    begin(&client, &service.name, &options).unwrap_err();
    let error = begin(&client, &service.name, &options).and_then(|pending| pending.wait());
    let error = error.unwrap_err();
    assert_ne!(
        error.kind(),
        ErrorKind::Remote,
        "something was sent: {error}"
    );
    assert_eq!(client.in_flight(), 0);
    service.server.drain(PATIENCE).unwrap();
    assert!(service.runs().len() <= 1, "that of the first call");
}

fn a_panic_in_a_layer_is_an_error_and_gives_its_place_back(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let panics = |when: &'static str| {
        move |call: &mut OutgoingCall<'_>, next: NextCall<'_>| -> LayeredCall {
            let is_meant = call.header("panic") == Some(when);
            assert!(!is_meant || when != "before", "a panic that the test wants");
            let call = next.run(call);
            assert!(!is_meant || when != "after", "a panic that the test wants");
            call.map(move |result| {
                assert!(
                    !is_meant || when != "at the end",
                    "a panic that the test wants"
                );
                result
            })
        }
    };
    for when in ["before", "after", "at the end"] {
        let limited = || builder(broker).resilience(Resilience::new().max_in_flight(1));
        for client in [
            limited().layer(panics(when)),
            limited().attempt_layer(panics(when)),
        ] {
            let client = client.build().unwrap();
            let options = CallOptions::new().header("panic", when);
            for (way, call) in WAYS {
                let error = call(&client, &service.name, &options).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Misuse, "{way}, {when}: {error}");
                assert!(error.to_string().contains("layer"), "{error}");
                all_ended(&client);
                let answer = call(&client, &service.name, &CallOptions::new());
                assert_eq!(answer.unwrap(), 42, "{way} after a panic {when}");
            }
        }
    }
}
