//! Circuit breakers: what opens them, what they refuse, and how they close.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use coney::resilience::{
    Breaker, BreakerChange, BreakerHandle, BreakerState, Refusal, Resilience, Retry,
};
use coney::{Broker, CallOptions, Error, ErrorKind, ServiceClient};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::scripted_service::{
    Act, ScriptedService, WAYS, all_ended, begin, resilient, work,
};
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    timeouts_open_it_and_calls_are_refused_at_once,
    panics_open_it_after_exactly_the_least_number_of_calls,
    errors_of_handlers_never_open_it,
    it_closes_after_probes_that_go_well,
    a_failed_probe_opens_it_again,
    the_listener_runs_on_the_callback_thread_in_order,
    it_is_held_open_and_closed_by_the_program,
    each_service_has_its_own,
    probes_that_are_dropped_give_their_places_back,
    probes_that_are_not_waited_for_end_with_their_deadlines,
    callbacks_and_polls_end_probes,
    a_refusal_ends_the_retries,
    a_slow_service_opens_it,
);

const MS: Duration = Duration::from_millis(1);

/// Returns a breaker that opens after five calls, and stays open for the test.
fn sensitive() -> Breaker {
    Breaker::new()
        .minimum_calls(5)
        .window(PATIENCE * 10)
        .open_for(PATIENCE * 10, PATIENCE * 10)
}

/// Returns a breaker that opens after five calls, for a moment, and has one probe at a time.
fn brief() -> Breaker {
    sensitive().open_for(30 * MS, 30 * MS).probes(1)
}

fn guarded(broker: &Broker, breaker: Breaker) -> ServiceClient {
    resilient(broker, Resilience::none().breaker(breaker))
}

fn breaker(client: &ServiceClient, service: &ScriptedService) -> BreakerHandle {
    client.breaker(&service.name).expect("there is a breaker")
}

/// Makes calls fail until the breaker opens, and returns their number.
fn break_it(client: &ServiceClient, service: &ScriptedService) -> usize {
    service.always(Act::Panic);
    let is_failed = |_: &usize| {
        let error = work(client, &service.name).unwrap_err();
        error.refused_by() != Some(Refusal::Breaker)
    };
    let failed = (0..1_000).take_while(is_failed).count();
    assert!(failed < 1_000, "the breaker does not open");
    service.runs();
    failed
}

fn is_refused(error: &Error) -> bool {
    assert!(error.is_unavailable());
    error.kind() == ErrorKind::Rejected && error.refused_by() == Some(Refusal::Breaker)
}

/// Calls until the breaker lets a call through that goes well.
fn recover(client: &ServiceClient, service: &ScriptedService) {
    service.always(Act::Double);
    eventually("a call is answered", || {
        let result = work(client, &service.name);
        result.is_ok_and(|double| double == 42)
    });
}

fn timeouts_open_it_and_calls_are_refused_at_once(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Wait);
    let client = guarded(broker, sensitive());
    let breaker = breaker(&client, &service);
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(breaker.retry_after(), None);
    let hurry = CallOptions::new().timeout(40 * MS);
    let mut timeouts = 0;
    eventually("the breaker is open", || {
        let (_, call) = WAYS[timeouts % WAYS.len()];
        timeouts += 1;
        let error = call(&client, &service.name, &hurry).unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        breaker.state() == BreakerState::Open
    });
    assert!(timeouts >= 5);
    for (way, call) in WAYS {
        let begin = Instant::now();
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert!(begin.elapsed() < PATIENCE / 2, "{way}");
        assert!(is_refused(&error), "{way}: {error}");
        let after = error.retry_after().unwrap();
        assert!(
            PATIENCE < after && after <= 10 * PATIENCE,
            "{way}: {after:?}"
        );
        assert!(error.to_string().contains("circuit breaker"), "{error}");
        all_ended(&client);
    }
    assert!(breaker.retry_after() > Some(PATIENCE));
    assert!(service.runs().len() <= timeouts, "a refused call was sent");
}

fn panics_open_it_after_exactly_the_least_number_of_calls(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = guarded(broker, sensitive());
    assert_eq!(break_it(&client, &service), 5);
    // Half of ten.
    let client = guarded(broker, sensitive());
    service.follow(&[]);
    for _ in 0..4 {
        work(&client, &service.name).unwrap();
    }
    assert_eq!(break_it(&client, &service), 4);
}

fn errors_of_handlers_never_open_it(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = guarded(broker, sensitive());
    let breaker = breaker(&client, &service);
    let options = CallOptions::new();
    for (way, call) in WAYS {
        for act in [Act::Fail("not_found"), Act::Fail(""), Act::Busy(MS)] {
            service.always(act);
            for _ in 0..6 {
                let error = call(&client, &service.name, &options).unwrap_err();
                assert_eq!(error.refused_by(), None, "{way}, {act:?}: {error}");
            }
        }
    }
    for _ in 0..30 {
        for (action, payload) in [("play", "21"), ("work", "no number")] {
            let error = client.call::<u64>(&service.name, action, payload);
            assert_eq!(error.unwrap_err().refused_by(), None);
        }
        service.follow(&[]);
        let error = client.call::<String>(&service.name, "work", &21);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Decode);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    // Unless the program says so.
    let breaker = sensitive().failure(|error| error.remote_code() == Some("down"));
    let client = guarded(broker, breaker);
    service.always(Act::Fail("up"));
    (0..5).for_each(|_| drop(work(&client, &service.name).unwrap_err()));
    service.always(Act::Fail("down"));
    let codes = (0..5).map(|_| work(&client, &service.name).unwrap_err());
    assert!(codes.map(|error| error.refused_by()).eq([None; 5]));
    assert!(is_refused(&work(&client, &service.name).unwrap_err()));
}

fn it_closes_after_probes_that_go_well(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = guarded(broker, brief().probes(3));
    let breaker = breaker(&client, &service);
    break_it(&client, &service);
    eventually("it lets calls through", || {
        breaker.state() == BreakerState::HalfOpen
    });
    assert_eq!(breaker.retry_after(), None);
    service.always(Act::Double);
    for _ in 0..3 {
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        work(&client, &service.name).unwrap();
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    // A handler's error is an answer too.
    break_it(&client, &service);
    service.always(Act::Fail("not_found"));
    eventually("it is closed again", || {
        let _ = work(&client, &service.name);
        breaker.state() == BreakerState::Closed
    });
}

fn a_failed_probe_opens_it_again(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let (sent, changes) = unbounded();
    let breaker = brief()
        .open_for(20 * MS, PATIENCE)
        .on_change(move |change| sent.send(change.clone()).unwrap());
    let client = guarded(broker, breaker);
    break_it(&client, &service);
    let mut periods = Vec::new();
    while periods.len() < 4 {
        let _ = work(&client, &service.name);
        let opened = changes.try_iter().filter_map(|it| it.retry_after());
        periods.extend(opened);
    }
    for (n, period) in periods.iter().enumerate() {
        let wanted = (20 * MS * (1 << n)).as_secs_f64();
        let share = period.as_secs_f64() / wanted;
        assert!((0.89..1.11).contains(&share), "{periods:?}");
    }
    recover(&client, &service);
}

/// Returns a listener that sends the changes and the name of its thread.
fn listened(
    broker: &Broker,
    settings: Breaker,
) -> (ServiceClient, Receiver<(BreakerChange, String)>) {
    let (sent, changes) = unbounded();
    let breaker = settings.on_change(move |change| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        let _ = sent.send((change.clone(), name));
        panic!("a panic that the test wants");
    });
    (guarded(broker, breaker), changes)
}

fn the_listener_runs_on_the_callback_thread_in_order(broker: &Broker) {
    use BreakerState::{Closed, HalfOpen, HeldOpen, Open};
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let (client, changes) = listened(broker, brief());
    break_it(&client, &service);
    recover(&client, &service);
    let breaker = breaker(&client, &service);
    breaker.hold_open(PATIENCE);
    breaker.close();
    let mut before = Closed;
    let mut states = Vec::new();
    while states.last() != Some(&(HeldOpen, Closed)) {
        let (change, thread) = changes.recv_timeout(PATIENCE).unwrap();
        assert_eq!(change.service(), service.name);
        assert_eq!(thread, "coney-callback-shop");
        assert_eq!(change.from(), before);
        let refuses = matches!(change.to(), Open | HeldOpen);
        assert_eq!(change.retry_after().is_some(), refuses, "{change:?}");
        before = change.to();
        states.push((change.from(), change.to()));
    }
    assert_eq!(states[..2], [(Closed, Open), (Open, HalfOpen)]);
    assert!(states.contains(&(HalfOpen, Closed)));
    assert_eq!(states[states.len() - 2], (Closed, HeldOpen));
    // A listener may use the client, and the breaker that has called it.
    let (sent, answers) = unbounded();
    let own: Arc<OnceLock<ServiceClient>> = Arc::default();
    let held = Arc::clone(&own);
    let settings = sensitive().on_change(move |change| {
        let client = held.get().unwrap();
        if change.to() == Open {
            client.breaker(change.service()).unwrap().close();
            sent.send(work(client, change.service())).unwrap();
        }
    });
    let client = own.get_or_init(|| guarded(broker, settings));
    service.follow(&[Act::Panic; 5]);
    (0..5).for_each(|_| drop(work(client, &service.name).unwrap_err()));
    assert_eq!(answers.recv_timeout(PATIENCE).unwrap().unwrap(), 42);
}

fn it_is_held_open_and_closed_by_the_program(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = guarded(broker, brief());
    let breaker = breaker(&client, &service);
    breaker.hold_open(PATIENCE);
    assert_eq!(breaker.state(), BreakerState::HeldOpen);
    for (way, call) in WAYS {
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert!(is_refused(&error), "{way}: {error}");
        assert!(error.retry_after() <= Some(PATIENCE), "{way}");
    }
    breaker.close();
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(work(&client, &service.name).unwrap(), 42);
    // The outcomes before are forgotten.
    service.follow(&[Act::Panic; 4]);
    (0..4).for_each(|_| drop(work(&client, &service.name).unwrap_err()));
    breaker.close();
    assert_eq!(break_it(&client, &service), 5);
    breaker.hold_open(20 * MS);
    recover(&client, &service);
    assert_eq!(breaker.state(), BreakerState::Closed);
    let unguarded = resilient(broker, Resilience::none());
    assert!(unguarded.breaker(&service.name).is_none());
}

fn each_service_has_its_own(broker: &Broker) {
    let [broken, fine] = [0; 2].map(|_| ScriptedService::start(broker, &unique("work"), &[]));
    let client = guarded(broker, sensitive());
    break_it(&client, &broken);
    for _ in 0..10 {
        assert_eq!(work(&client, &fine.name).unwrap(), 42);
    }
    assert_eq!(breaker(&client, &fine).state(), BreakerState::Closed);
    // And so has each client.
    broken.always(Act::Double);
    assert!(is_refused(&work(&client, &broken.name).unwrap_err()));
    let other = guarded(broker, sensitive());
    assert_eq!(work(&other, &broken.name).unwrap(), 42);
    let exempt = ServiceClient::builder(broker, "shop")
        .resilience(Resilience::new())
        .resilience_for(&broken.name, Resilience::none())
        .build()
        .unwrap();
    assert!(exempt.breaker(&broken.name).is_none());
    assert!(exempt.breaker(&fine.name).is_some());
}

/// Opens the breaker, and waits until it lets one probe through.
fn half_open(client: &ServiceClient, service: &ScriptedService) {
    break_it(client, service);
    let breaker = breaker(client, service);
    eventually("it lets a probe through", || {
        breaker.state() == BreakerState::HalfOpen
    });
    service.always(Act::Wait);
}

fn probes_that_are_dropped_give_their_places_back(broker: &Broker) {
    let mut service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = guarded(broker, brief());
    half_open(&client, &service);
    for _ in 0..20 {
        let probe = begin(&client, &service.name, &CallOptions::new()).unwrap();
        let refused = begin(&client, &service.name, &CallOptions::new());
        assert!(is_refused(&refused.unwrap_err()), "one probe at a time");
        drop(probe);
        assert_eq!(client.in_flight(), 0);
    }
    service.open();
    recover(&client, &service);
    assert_eq!(breaker(&client, &service).state(), BreakerState::Closed);
}

fn probes_that_are_not_waited_for_end_with_their_deadlines(broker: &Broker) {
    let mut service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = guarded(broker, brief());
    half_open(&client, &service);
    let hurry = CallOptions::new().timeout(100 * MS);
    let forgotten = begin(&client, &service.name, &hurry).unwrap();
    let refused = work(&client, &service.name);
    let is_early = refused.is_err_and(|error| is_refused(&error));
    assert!(is_early || breaker(&client, &service).state() == BreakerState::HalfOpen);
    service.open();
    recover(&client, &service);
    assert_eq!(breaker(&client, &service).state(), BreakerState::Closed);
    // Its late outcome does not count.
    drop(forgotten);
    assert_eq!(breaker(&client, &service).state(), BreakerState::Closed);
}

fn callbacks_and_polls_end_probes(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    for (way, call) in WAYS {
        let client = guarded(broker, brief());
        break_it(&client, &service);
        service.always(Act::Double);
        eventually(way, || {
            call(&client, &service.name, &CallOptions::new()).is_ok()
        });
        assert_eq!(breaker(&client, &service).state(), BreakerState::Closed);
    }
}

fn a_refusal_ends_the_retries(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let retry = Retry::new().attempts(9).delays(MS, MS).on_code("down");
    let breaker = sensitive().failure(|error| error.remote_code() == Some("down"));
    for (way, call) in WAYS {
        let policies = Resilience::none()
            .retry(retry.clone())
            .breaker(breaker.clone());
        let client = resilient(broker, policies);
        service.always(Act::Fail("down"));
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert!(is_refused(&error), "{way}: {error}");
        assert!(!error.is_safe_to_retry(), "the attempts before have run");
        assert_eq!((error.attempts(), service.runs().len()), (5, 5), "{way}");
    }
}

fn a_slow_service_opens_it(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let slow = |than| guarded(broker, sensitive().slow(than, 1.0));
    let client = slow(Duration::from_nanos(1));
    let answers = || work(&client, &service.name).unwrap();
    assert_eq!([0; 5].map(|_| answers()), [42; 5]);
    assert!(is_refused(&work(&client, &service.name).unwrap_err()));
    let client = slow(PATIENCE);
    let answers = || work(&client, &service.name).unwrap();
    assert_eq!([0; 20].map(|_| answers()), [42; 20]);
}
