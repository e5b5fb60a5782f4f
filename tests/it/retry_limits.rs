//! Retries within limits: deadlines, timeouts of attempts, budgets.

use std::time::{Duration, Instant};

use coney::client::wait_any;
use coney::deduplication::MemoryReplyStore;
use coney::resilience::RetryBudget;
use coney::{Broker, CallOptions, ErrorKind, Phase, ServiceClient};

use crate::support::retrying::{attempts, observed, quick, retrying};
use crate::support::scripted_service::{Act, Run, ScriptedService, WAYS, all_ended, begin, work};
use crate::support::timing::in_time;
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    a_retry_waits_as_long_as_the_service_asks,
    a_delay_past_the_deadline_is_not_slept,
    a_timeout_is_retried_only_if_the_call_is_idempotent,
    an_idempotent_call_runs_once_if_the_server_deduplicates,
    no_call_outlasts_its_deadline_however_often_it_is_retried,
    a_budget_is_shared,
    a_call_that_is_dropped_between_two_attempts_ends,
    a_call_between_two_attempts_is_not_ready,
);

const MS: Duration = Duration::from_millis(1);

fn a_retry_waits_as_long_as_the_service_asks(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = retrying(broker, quick());
    for (way, call) in WAYS {
        service.follow(&[Act::Busy(150 * MS)]);
        let begin = Instant::now();
        let reply = call(&client, &service.name, &CallOptions::new());
        assert_eq!(reply.unwrap(), 42, "{way}");
        assert!(begin.elapsed() >= 150 * MS, "{way}: {:?}", begin.elapsed());
    }
}

fn a_delay_past_the_deadline_is_not_slept(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(PATIENCE));
    let client = retrying(broker, quick());
    for (way, call) in WAYS {
        let begin = Instant::now();
        let error = call(&client, &service.name, &CallOptions::new()).unwrap_err();
        assert!(begin.elapsed() < PATIENCE / 2, "{way}");
        assert_eq!(error.kind(), ErrorKind::Busy, "{way}: {error}");
        assert_eq!(error.retry_after(), Some(PATIENCE), "{way}");
        assert_eq!(error.attempts(), 1, "{way}");
        all_ended(&client);
    }
}

fn a_timeout_is_retried_only_if_the_call_is_idempotent(broker: &Broker) {
    let start = || ScriptedService::start(broker, &unique("work"), &[Act::Wait]);
    let client = retrying(broker, quick().per_attempt(500 * MS));
    for (way, call) in [WAYS[0], WAYS[2], WAYS[5]] {
        let service = start();
        let options = CallOptions::new().timeout(1_000 * MS);
        let error = call(&client, &service.name, &options).unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Reply), "{way}: {error}");
        assert_eq!(error.attempts(), 1, "{way}");
        assert_eq!(attempts(&service.runs()), [1], "{way}");
        all_ended(&client);
    }
    // The service answers to a later attempt only.
    let client = retrying(broker, quick().per_attempt(300 * MS).attempts(1_000));
    for (way, call) in WAYS {
        let service = start();
        let options = CallOptions::new().idempotent(true);
        assert_eq!(call(&client, &service.name, &options).unwrap(), 42, "{way}");
        let runs = service.runs();
        assert!(runs.len() >= 2, "{way}");
        let is_first = |run: &Run| run.message_id == runs[0].message_id;
        assert!(runs.iter().all(is_first), "{way}: {runs:?}");
        all_ended(&client);
    }
}

fn an_idempotent_call_runs_once_if_the_server_deduplicates(broker: &Broker) {
    let start = || {
        ScriptedService::start_with(broker, &unique("work"), &[Act::Wait], |builder| {
            builder.deduplicate(MemoryReplyStore::new(100), PATIENCE)
        })
    };
    let (client, attempts) = observed(broker, quick().per_attempt(300 * MS).attempts(1_000));
    let options = CallOptions::new().idempotent(true);
    for (way, call) in WAYS {
        let mut service = start();
        let name = service.name.clone();
        std::thread::scope(|scope| {
            let calling = scope.spawn(|| call(&client, &name, &options));
            while attempts.recv_timeout(PATIENCE).unwrap() < 3 {}
            service.open();
            assert_eq!(calling.join().unwrap().unwrap(), 42, "{way}");
        });
        assert_eq!(service.runs().len(), 1, "{way}");
        attempts.try_iter().for_each(drop);
        all_ended(&client);
    }
}

fn no_call_outlasts_its_deadline_however_often_it_is_retried(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let retry = quick().attempts(u32::MAX).per_attempt(50 * MS);
    let client = retrying(broker, retry);
    let absent = unique("absent");
    let timeout = 400 * MS;
    let options = CallOptions::new().timeout(timeout).idempotent(true);
    service.always(Act::Busy(MS));
    let mut attempts = 0;
    for (way, call) in WAYS {
        for name in [&service.name, &absent] {
            let error = in_time(timeout, way, || call(&client, name, &options)).unwrap_err();
            assert!(error.is_unavailable(), "{way}: {error}");
            attempts += error.attempts();
            all_ended(&client);
        }
    }
    assert!(attempts > 5 * 2 * WAYS.len() as u32, "{attempts}");
}

fn a_budget_is_shared(broker: &Broker) {
    let [fine, busy] = ["fine", "busy"].map(unique);
    let fine = ScriptedService::start(broker, &fine, &[]);
    let busy = ScriptedService::start(broker, &busy, &[]);
    busy.always(Act::Busy(MS));
    let half = RetryBudget::new().share(0.5).reserve(0);
    let [rich, poor] = [0; 2].map(|_| retrying(broker, quick().budget(half.clone())));
    let alone = retrying(broker, quick().budget(half.share(0.5)));
    for client in [&rich, &alone] {
        for _ in 0..20 {
            work(client, &fine.name).unwrap();
        }
    }
    // The calls of the other client and the other service pay.
    let attempts = |client: &ServiceClient| {
        let error = work(client, &busy.name).unwrap_err();
        assert_eq!(error.attempts() as usize, busy.runs().len());
        error.attempts()
    };
    assert_eq!([0; 4].map(|_| attempts(&poor)), [3; 4]);
    assert_eq!([0; 4].map(|_| attempts(&alone)), [3; 4]);
    // 24 calls pay for 12 retries, 8 of which were made.
    let mut spent = [0; 10].map(|_| attempts(&poor) - 1);
    assert_eq!(spent.iter().sum::<u32>(), 17 - 8, "{spent:?}");
    spent.sort_unstable();
    assert!(spent[0] == 0, "{spent:?}");
    let none = quick().budget(RetryBudget::new().share(0.0).reserve(0));
    assert_eq!(attempts(&retrying(broker, none)), 1);
}

fn a_call_that_is_dropped_between_two_attempts_ends(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    service.always(Act::Busy(PATIENCE / 2));
    let client = retrying(broker, quick());
    let options = CallOptions::new();
    let mut pending = begin(&client, &service.name, &options).unwrap();
    assert!(pending.wait_timeout(MS).is_none());
    eventually("its reply", || client.in_flight() == 0);
    assert!(
        pending.try_wait().is_none(),
        "it waits for its next attempt"
    );
    drop(pending);
    service.follow(&[]);
    assert_eq!(work(&client, &service.name).unwrap(), 42);
    assert_eq!(attempts(&service.runs()), [1, 1]);
    assert_eq!(client.in_flight(), 0);
}

fn a_call_between_two_attempts_is_not_ready(broker: &Broker) {
    let service = ScriptedService::start(broker, &unique("work"), &[]);
    let client = retrying(broker, quick());
    let options = CallOptions::new();
    let begin = || begin(&client, &service.name, &options).unwrap();
    service.follow(&[Act::Busy(PATIENCE / 2)]);
    let waits = begin();
    eventually("it was refused", || client.in_flight() == 0);
    let mut calls = [waits, begin()];
    assert_eq!(wait_any(&mut calls, PATIENCE), Some(1));
    let [waits, fine] = calls;
    assert_eq!(fine.wait().unwrap(), 42);
    assert_eq!(wait_any(&mut [waits], 20 * MS), None);
    // One whose time has come is sent by the wait.
    service.follow(&[Act::Busy(20 * MS)]);
    let mut calls = [begin()];
    assert_eq!(wait_any(&mut calls, PATIENCE), Some(0));
    assert_eq!(calls[0].try_wait().expect("it is ready").unwrap(), 42);
}
