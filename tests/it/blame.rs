//! Blame of services, claims that nothing ran, and places in flight: the cases in which a
//! layer, a deadline or a program that waits late could mislead the policies.

use std::thread;
use std::time::{Duration, Instant};

use coney::client::LayeredCall;
use coney::resilience::{Breaker, BreakerState, Refusal, Resilience, Retry};
use coney::{Broker, CallOptions, ErrorKind, ServiceClient};

use super::support::retrying::retrying;
use super::support::scripted_service::{Act, ScriptedService, WAYS, begin, resilient, work};
use super::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    a_reply_gives_the_place_of_its_request_back,
    deadlines_that_are_cut_short_open_no_breaker,
    what_a_layer_makes_of_a_call_says_nothing_of_the_service,
    a_call_that_a_layer_ends_may_have_run,
    an_error_that_a_layer_makes_of_a_reply_is_not_tried_again,
    an_earlier_attempt_may_have_run,
    busy_replies_hide_no_failures,
    the_last_attempt_has_the_rest_of_the_time,
    closing_ends_calls_that_wait_for_another_attempt,
);

const MS: Duration = Duration::from_millis(1);

fn a_reply_gives_the_place_of_its_request_back(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = resilient(broker, Resilience::none().max_in_flight(2));
    let begin = || begin(&client, &service.name, &CallOptions::new());
    let kept = [begin().unwrap(), begin().unwrap()];
    eventually("both replies", || client.in_flight() == 0);
    assert_eq!(
        work(&client, &service.name).unwrap(),
        42,
        "though neither is taken"
    );
    for pending in kept {
        assert_eq!(pending.wait().unwrap(), 42);
    }
}

fn deadlines_that_are_cut_short_open_no_breaker(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Wait);
    let breaker = Breaker::new().minimum_calls(3);
    let client = resilient(broker, Resilience::none().breaker(breaker));
    for _ in 0..6 {
        let hurried = client.with_deadline(Instant::now() + 20 * MS);
        let error = work(&hurried, &service.name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    let breaker = client.breaker(&service.name).unwrap();
    assert_eq!(breaker.state(), BreakerState::Closed);
    let options = CallOptions::new().timeout(20 * MS);
    for _ in 0..3 {
        let call = client.call_with::<u64>(&service.name, "work", &1, &options);
        assert_eq!(call.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    assert_eq!(
        breaker.state(),
        BreakerState::Open,
        "this is all the time they had"
    );
}

fn what_a_layer_makes_of_a_call_says_nothing_of_the_service(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = ServiceClient::builder(broker, "shop")
        .timeout(PATIENCE)
        .resilience(Resilience::none().breaker(Breaker::new().minimum_calls(2)))
        .fallback(&service.name, "work", |_: &u64, _| Some(7))
        .attempt_layer(|_, _| LayeredCall::refused("not you"))
        .build()
        .unwrap();
    for (way, call) in WAYS {
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert_eq!(error.refused_by(), Some(Refusal::Layer), "{way}: {error}");
        assert!(!error.is_unavailable() && error.is_safe_to_retry(), "{way}");
    }
    let breaker = client.breaker(&service.name).unwrap();
    breaker.hold_open(MS);
    eventually("its end", || breaker.state() == BreakerState::HalfOpen);
    for _ in 0..4 {
        work(&client, &service.name).unwrap_err();
    }
    assert_eq!(
        breaker.state(),
        BreakerState::HalfOpen,
        "no probe has been sent"
    );
    assert!(service.runs().is_empty());
}

fn a_call_that_a_layer_ends_may_have_run(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let builder = || ServiceClient::builder(broker, "shop").timeout(PATIENCE);
    let attempt = builder().attempt_layer(|call, next| {
        let _begun = next.run(call);
        LayeredCall::refused("too much")
    });
    let whole = builder().layer(|call, next| {
        let _begun = next.run(call);
        LayeredCall::refused("too much")
    });
    for client in [attempt, whole] {
        let client = client.build().unwrap();
        for (way, call) in WAYS {
            let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
            assert!(!error.is_safe_to_retry(), "{way}: {error}");
        }
        assert_eq!(client.in_flight(), 0);
    }
}

fn an_error_that_a_layer_makes_of_a_reply_is_not_tried_again(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let other = ServiceClient::new(broker, "audit").unwrap();
    let absent = unique("absent");
    let client = ServiceClient::builder(broker, "shop")
        .timeout(PATIENCE)
        .resilience(Resilience::none().retry(Retry::new().delays(MS, MS)))
        .attempt_layer(move |call, next| {
            let (other, absent) = (other.clone(), absent.clone());
            next.run(call).map(move |result| {
                let reply = result?;
                other.call::<()>(&absent, "note", &1)?;
                Ok(reply)
            })
        })
        .build()
        .unwrap();
    for (way, call) in WAYS {
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRoute, "{way}");
        assert!(!error.is_safe_to_retry(), "{way}");
        assert_eq!(service.runs().len(), 1, "{way}");
    }
}

fn an_earlier_attempt_may_have_run(broker: &Broker) {
    let acts = [Act::Fail("locked"), Act::Busy(Duration::ZERO)];
    let service = ScriptedService::start(broker, &unique("work"), &acts);
    let retry = Retry::new().attempts(2).delays(MS, MS).on_code("locked");
    let error = work(&retrying(broker, retry), &service.name).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Busy, 2));
    assert!(!error.is_safe_to_retry(), "the first attempt has run");
}

fn busy_replies_hide_no_failures(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = resilient(broker, Resilience::none().breaker(Breaker::new()));
    let breaker = client.breaker(&service.name).unwrap();
    service.always(Act::Busy(Duration::ZERO));
    (0..40).for_each(|_| drop(work(&client, &service.name).unwrap_err()));
    assert_eq!(breaker.state(), BreakerState::Closed);
    service.always(Act::Panic);
    (0..20).for_each(|_| drop(work(&client, &service.name).unwrap_err()));
    assert_eq!(breaker.state(), BreakerState::Open);
}

fn the_last_attempt_has_the_rest_of_the_time(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Wait);
    let retry = Retry::new().attempts(2).delays(MS, MS).per_attempt(20 * MS);
    let client = retrying(broker, retry);
    let timeout = 400 * MS;
    let options = CallOptions::new().idempotent(true).timeout(timeout);
    let begun = Instant::now();
    let error = client.call_with::<u64>(&service.name, "work", &21, &options);
    let error = error.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::TimedOut, 2));
    assert!(begun.elapsed() >= timeout, "{error}");
}

fn closing_ends_calls_that_wait_for_another_attempt(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(PATIENCE / 2));
    let client = retrying(broker, Retry::new().delays(MS, MS));
    thread::scope(|scope| {
        let call = scope.spawn(|| work(&client, &service.name).unwrap_err());
        service.runs.recv_timeout(PATIENCE).unwrap();
        eventually("the reply", || client.in_flight() == 0);
        let closed = Instant::now();
        client.close();
        let error = call.join().unwrap();
        assert!(closed.elapsed() < PATIENCE / 4, "{error}");
        assert_eq!(error.kind(), ErrorKind::Closed);
    });
}
