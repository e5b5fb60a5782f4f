//! Retries: what is sent again, when, and within which budget.

use std::time::Duration;

use coney::balance::RoundRobin;
use coney::client::NextCall;
use coney::resilience::{Resilience, RetryBudget};
use coney::{Broker, CallOptions, ErrorKind, Instance, Registry};
use crossbeam_channel::unbounded;

use crate::support::instance_echo::finder;
use crate::support::proxy::Proxy;
use crate::support::retrying::{attempts, observed, quick, retrying};
use crate::support::scripted_service::{Act, ScriptedService, WAYS, all_ended, work};
use crate::support::{PATIENCE, amqp_url, on_both, steady, unique};

on_both!(
    a_busy_service_is_called_again_with_the_same_message_id,
    the_last_error_has_the_number_of_attempts,
    nothing_that_may_have_run_is_sent_again,
    a_code_that_is_named_is_retried,
    a_call_may_forbid_retries,
    a_service_that_starts_meanwhile_is_called,
    an_instance_that_registers_meanwhile_is_called,
    a_retry_goes_to_another_instance,
    batches_and_commands_are_sent_once,
    a_closed_client_tries_nothing_again,
);

const MS: Duration = Duration::from_millis(1);

fn a_busy_service_is_called_again_with_the_same_message_id(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = retrying(broker, quick());
    let own = CallOptions::new().message_id("own");
    for (way, call) in WAYS {
        for options in [&CallOptions::new(), &own] {
            service.follow(&[Act::Busy(MS), Act::Busy(MS)]);
            assert_eq!(call(&client, &service.name, options).unwrap(), 42, "{way}");
            let runs = service.runs();
            assert_eq!(attempts(&runs), [1, 2, 3], "{way}");
            let ids = runs.iter().map(|run| &run.message_id);
            assert!(ids.eq([&runs[0].message_id; 3]), "{way}: {runs:?}");
            let is_own = std::ptr::eq(options, &own);
            assert_eq!(runs[0].message_id == "own", is_own, "{way}");
        }
        all_ended(&client);
    }
    service.follow(&[Act::Busy(MS)]);
    let options = CallOptions::new();
    let answer = client.call_detailed::<u64>(&service.name, "work", &21, &options);
    let answer = answer.unwrap();
    assert_eq!((*answer, answer.attempts()), (42, 2));
}

fn the_last_error_has_the_number_of_attempts(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(MS));
    let client = retrying(broker, quick().attempts(4));
    for (way, call) in WAYS {
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{way}: {error}");
        assert_eq!(error.attempts(), 4, "{way}");
        assert_eq!(attempts(&service.runs()), [1, 2, 3, 4], "{way}");
        all_ended(&client);
    }
    let once = retrying(broker, quick().attempts(1));
    assert_eq!(work(&once, &service.name).unwrap_err().attempts(), 1);
    assert_eq!(service.runs().len(), 1);
}

fn nothing_that_may_have_run_is_sent_again(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = retrying(broker, quick());
    for (way, call) in WAYS {
        for idempotent in [false, true] {
            let options = CallOptions::new().idempotent(idempotent);
            for (act, code) in [(Act::Panic, "panic"), (Act::Fail("not_found"), "not_found")] {
                service.follow(&[act]);
                let error = call(&client, &service.name, &options).unwrap_err();
                assert_eq!(error.remote_code(), Some(code), "{way}: {error}");
                assert_eq!(error.attempts(), 1, "{way}: {code}");
                assert_eq!(service.runs().len(), 1, "{way}: {code}");
            }
        }
        all_ended(&client);
    }
    let (name, options) = (&*service.name, CallOptions::new());
    for (action, payload, wanted) in [
        ("work", "no number", (ErrorKind::Remote, 1)),
        ("play", "21", (ErrorKind::UnknownAction, 1)),
        ("", "21", (ErrorKind::InvalidConfig, 0)),
    ] {
        let error = client.call_with::<u64>(name, action, payload, &options);
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.attempts()), wanted, "{error}");
    }
    assert!(service.runs().is_empty());
}

#[test]
fn a_lost_connection_ends_the_call() {
    let proxy = Proxy::start(&amqp_url());
    let (of_server, of_client) = (steady(&amqp_url()), steady(&proxy.url));
    let mut service = ScriptedService::start(&of_server, &unique("work"), &[]);
    let client = retrying(&of_client, quick());
    for (way, call) in WAYS {
        service.follow(&[Act::Wait]);
        let error = std::thread::scope(|scope| {
            let calling = scope.spawn(|| call(&client, &service.name, &CallOptions::new()));
            service.runs.recv_timeout(PATIENCE).unwrap();
            proxy.cut();
            calling.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{way}: {error}");
        assert_eq!(error.attempts(), 1, "{way}");
        // The next call is behind whatever was sent again.
        assert_eq!(work(&client, &service.name).unwrap(), 42, "{way}");
        assert_eq!(attempts(&service.runs()), [1], "{way}");
        all_ended(&client);
    }
    service.open();
}

fn a_code_that_is_named_is_retried(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = retrying(broker, quick().on_code("locked").on_code("late"));
    for (way, call) in WAYS {
        service.follow(&[Act::Fail("locked"), Act::Fail("late"), Act::Fail("locked")]);
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert_eq!(error.remote_code(), Some("locked"), "{way}: {error}");
        assert_eq!(attempts(&service.runs()), [1, 2, 3], "{way}");
        service.follow(&[Act::Fail("late"), Act::Fail("lock")]);
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert_eq!(error.remote_code(), Some("lock"), "{way}: {error}");
        assert_eq!(error.attempts(), 2, "{way}");
        assert_eq!(attempts(&service.runs()), [1, 2], "{way}");
    }
}

fn a_call_may_forbid_retries(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(MS));
    let client = retrying(broker, quick().per_attempt(MS));
    let options = CallOptions::new().no_retry().idempotent(true);
    for (way, call) in WAYS {
        let error = call(&client, &service.name, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{way}: {error}");
        assert_eq!(error.attempts(), 1, "{way}");
        assert_eq!(attempts(&service.runs()), [1], "{way}");
    }
}

fn a_service_that_starts_meanwhile_is_called(broker: &Broker) {
    // It needs no budget: nothing was taken.
    let nothing = RetryBudget::new().share(0.0).reserve(0);
    let retry = quick().attempts(u32::MAX).budget(nothing);
    let (client, attempts) = observed(broker, retry);
    for (way, call) in WAYS {
        let name = unique("work");
        std::thread::scope(|scope| {
            let calling = scope.spawn(|| call(&client, &name, &CallOptions::new()));
            while attempts.recv_timeout(PATIENCE).unwrap() < 3 {}
            let service = ScriptedService::start(broker, &name, &[]);
            assert_eq!(calling.join().unwrap().unwrap(), 42, "{way}");
            let runs = service.runs();
            assert!(runs.len() == 1 && runs[0].attempt >= 3, "{way}: {runs:?}");
        });
        attempts.try_iter().for_each(drop);
        all_ended(&client);
    }
    let once = retrying(broker, quick().attempts(2));
    let error = work(&once, &unique("absent")).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::NoRoute, 2));
}

fn an_instance_that_registers_meanwhile_is_called(broker: &Broker) {
    let (registry, name) = (Registry::memory(), unique("work"));
    let (sent, attempts) = unbounded();
    let client = finder(broker, &registry)
        .resilience(Resilience::none().retry(quick().attempts(u32::MAX)))
        .attempt_layer(move |call, next: NextCall<'_>| {
            let _ = sent.send(call.attempt());
            next.run(call)
        })
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| work(&client, &name));
        while attempts.recv_timeout(PATIENCE).unwrap() < Some(3) {}
        let _service =
            ScriptedService::start_with(broker, &name, &[], |builder| builder.registry(&registry));
        assert_eq!(calling.join().unwrap().unwrap(), 42);
    });
    let once = finder(broker, &registry);
    let once = once.resilience(Resilience::none().retry(quick().attempts(2)));
    let error = work(&once.build().unwrap(), &unique("absent")).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::NoInstance, 2));
}

fn a_retry_goes_to_another_instance(broker: &Broker) {
    let (registry, name) = (Registry::memory(), unique("work"));
    let [busy, fine] = ["busy", "fine"].map(|id| {
        ScriptedService::start_with(broker, &name, &[], |builder| {
            let instance = Instance::new().with_id(id);
            builder.registry(&registry).instance(instance)
        })
    });
    busy.always(Act::Busy(MS));
    let client = finder(broker, &registry)
        .balancer(RoundRobin::new())
        .resilience(Resilience::none().retry(quick().attempts(2)))
        .build()
        .unwrap();
    for (way, call) in WAYS {
        for _ in 0..4 {
            let reply = call(&client, &name, &CallOptions::new());
            assert_eq!(reply.unwrap(), 42, "{way}");
        }
        let runs = busy.runs();
        assert!(!runs.is_empty() && runs.iter().all(|run| run.attempt == 1));
        fine.runs();
    }
    // Where there is no other, the same is called again.
    fine.always(Act::Busy(MS));
    let patient = finder(broker, &registry)
        .balancer(RoundRobin::new())
        .resilience(Resilience::none().retry(quick().attempts(6)))
        .build()
        .unwrap();
    let error = work(&patient, &name).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Busy, 6));
    assert_eq!(busy.runs().len() + fine.runs().len(), 6);
}

fn batches_and_commands_are_sent_once(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = retrying(broker, quick());
    service.always(Act::Busy(MS));
    let mut batch = client.batch(&service.name);
    batch.add::<u64>("work", &1);
    batch.add::<u64>("work", &2);
    for result in batch.call().into_results::<u64>() {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.attempts()), (ErrorKind::Busy, 1));
    }
    assert_eq!(attempts(&service.runs()), [1, 1]);
    let error = client.send(&unique("absent"), "work", &1).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::NoRoute, 0));
    let mut batch = client.batch(&unique("absent"));
    batch.add::<u64>("work", &1);
    let error = batch.call().into_results::<u64>().remove(0).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::NoRoute, 1));
}

fn a_closed_client_tries_nothing_again(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(MS));
    for (way, call) in WAYS {
        let client = retrying(broker, quick().attempts(u32::MAX));
        let error = std::thread::scope(|scope| {
            let calling = scope.spawn(|| call(&client, &service.name, &CallOptions::new()));
            while service.runs.recv_timeout(PATIENCE).unwrap().attempt < 3 {}
            client.close();
            calling.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::Closed, "{way}: {error}");
        service.runs();
        all_ended(&client);
    }
}
