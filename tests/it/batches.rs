//! `ServiceClient::batch`, and what a server does with a `$batch`, from both sides.

use std::collections::HashMap;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use coney::batch::BatchLimits;
use coney::{Broker, Context, ErrorKind, Phase, ServiceServer};

use crate::support::gate::{Gate, OpenAtEnd};
use crate::support::math::math;
use crate::support::timing::in_time;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_payload_that_panics_is_its_own_error,
    each_call_has_a_type_and_an_error_of_its_own,
    replies_come_in_the_order_asked_over_many_messages,
    several_workers_handle_one_batch,
    a_batch_leaves_a_worker_to_single_calls,
    replies_before_the_deadline_are_kept,
    large_requests_go_in_messages_of_their_own,
    replies_that_do_not_fit_are_errors_of_their_own,
    many_replies_that_do_not_fit_leave_those_that_do,
    a_missing_service_is_each_calls_error,
    a_dropped_batch_is_not_in_flight,
    shutting_down_ends_a_batch_that_has_begun,
    commands_in_batches,
    replies_are_taken_once,
);

fn each_call_has_a_type_and_an_error_of_its_own(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let mut batch = client(broker).batch(&service);
    let double = batch.add::<u64>("double", &21);
    let refused = batch.add::<()>("refuse", &1);
    let unknown = batch.add::<()>("fly", &1);
    let unreadable = batch.add::<()>("double", "x");
    let panics = batch.add::<()>("panic", &1);
    let unfit = HashMap::from([((1, 2), 3)]);
    let unencodable = batch.add::<()>("double", &unfit);
    let nameless = batch.add::<()>("", &1);
    let other_type = batch.add::<u64>("name", &1);
    let name = batch.add::<String>("name", &7);
    assert_eq!(batch.len(), 9);
    let mut replies = batch.call();
    assert_eq!(replies.take(double).unwrap(), 42);
    assert_eq!(replies.take(name).unwrap(), "number 7");
    let error = replies.take(refused).unwrap_err();
    assert_eq!(error.remote_message(), Some("not today"));
    assert_eq!(error.remote_code(), Some("closed"));
    assert!(error.to_string().contains("refuse"), "{error}");
    assert_eq!(
        replies.take(unknown).unwrap_err().kind(),
        ErrorKind::UnknownAction
    );
    let error = replies.take(unreadable).unwrap_err();
    assert_eq!(error.remote_code(), Some("bad_request"));
    assert_eq!(
        replies.take(panics).unwrap_err().remote_code(),
        Some("panic")
    );
    assert_eq!(
        replies.take(unencodable).unwrap_err().kind(),
        ErrorKind::Encode
    );
    assert_eq!(
        replies.take(nameless).unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    assert_eq!(
        replies.take(other_type).unwrap_err().kind(),
        ErrorKind::Decode
    );
    let elsewhere = client(broker).batch(&service).add::<u64>("double", &1);
    assert_eq!(
        replies.take(elsewhere).unwrap_err().kind(),
        ErrorKind::Misuse
    );
}

fn replies_come_in_the_order_asked_over_many_messages(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let client = client(broker);
    let limits = BatchLimits::new().calls(7);
    let mut batch = client.batch(&service).limits(limits);
    for n in 0..1_000 {
        batch.add::<u64>("double", &n);
    }
    let pending = batch.call_async();
    let doubles = pending.wait().into_results::<u64>();
    let doubles: Vec<u64> = doubles.into_iter().map(Result::unwrap).collect();
    assert_eq!(doubles, (0..1_000).map(|n| n * 2).collect::<Vec<_>>());
    assert_eq!(client.in_flight(), 0);
    assert!(client.batch(&service).call().is_empty());
}

/// Ends only if five handlers run at the same time.
fn several_workers_handle_one_batch(broker: &Broker) {
    let service = unique("meeting");
    let barrier = Arc::new(Barrier::new(5));
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("meet", move |n: u64| {
            barrier.wait();
            n
        })
        .workers(5)
        .start()
        .unwrap();
    let mut batch = client(broker).batch(&service);
    for n in 0..20 {
        batch.add::<u64>("meet", &n);
    }
    let met = batch.call().into_results::<u64>();
    assert!(met.iter().all(Result::is_ok), "{met:?}");
}

/// Checks that a batch gets one of two workers while a single call waits.
fn a_batch_leaves_a_worker_to_single_calls(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let entrance = gate.clone();
    let server = ServiceServer::builder(broker, &service)
        .workers(2)
        .respond_with_context("work", move |context: &Context<'_>, n: u64| {
            entrance.enter(context, n)
        })
        .respond("quick", |n: u64| n)
        .start()
        .unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(broker);
    let mut batch = client.batch(&service);
    for n in 0..50u64 {
        batch.add::<u64>("work", &n);
    }
    let pending = batch.call_async();
    gate.wait_for(2);
    let begin = Instant::now();
    let singles = (0..3u64).map(|n| client.call_async::<u64>(&service, "quick", &n));
    let singles: Vec<_> = singles.map(Result::unwrap).collect();
    eventually("the calls wait beside the batch", || {
        server.load().waiting == 4 && begin.elapsed() > Duration::from_millis(10)
    });
    gate.pass();
    for (n, single) in (0..).zip(singles) {
        assert_eq!(single.wait().unwrap(), n);
    }
    gate.wait_for(2);
    assert_eq!(gate.runs().len(), 3, "the batch goes on afterwards");
    gate.open();
    let replies = pending.wait().into_results::<u64>();
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
}

fn replies_before_the_deadline_are_kept(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let timeout = Duration::from_secs(2);
    let mut batch = client(broker)
        .batch(&service)
        .limits(BatchLimits::new().calls(2))
        .timeout(timeout);
    for millis in [1, 1, 1, 4_000] {
        batch.add::<u64>("nap", &millis);
    }
    let naps = in_time(timeout, "a batch", || batch.call()).into_results::<u64>();
    let ended: Vec<_> = naps.iter().map(Result::is_ok).collect();
    assert_eq!(ended, [true, true, false, false]);
    let error = naps[3].as_ref().unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Reply), "{error}");
    assert!(error.to_string().contains("nap"), "{error}");
}

fn large_requests_go_in_messages_of_their_own(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let sizes = [10, 300_000, 300_000, 700_000, 10, 10];
    let mut batch = client(broker).batch(&service);
    for size in sizes {
        batch.add::<String>("echo", &"x".repeat(size));
    }
    let echoes = batch.call().into_results::<String>();
    let echoed: Vec<_> = echoes.into_iter().map(|text| text.unwrap().len()).collect();
    assert_eq!(echoed, sizes);
}

fn replies_that_do_not_fit_are_errors_of_their_own(broker: &Broker) {
    let service = unique("inflate");
    let most = broker.max_body();
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("inflate", move |parts: usize| "x".repeat(parts * most / 32))
        .workers(1)
        .start()
        .unwrap();
    let mut batch = client(broker).batch(&service);
    for parts in [8, 0, 16, 24, 32, 1, 1] {
        batch.add::<String>("inflate", &parts);
    }
    let texts = batch.call().into_results::<String>();
    // The workers decide the order: no reply is lost to one that does not fit.
    assert!(texts[4].is_err() && texts[1].is_ok() && texts[5].is_ok() && texts[6].is_ok());
    let error = texts[4].as_ref().unwrap_err();
    assert_eq!(error.remote_code(), Some("reply_too_large"), "{error}");
}

fn many_replies_that_do_not_fit_leave_those_that_do(broker: &Broker) {
    let service = unique("inflate");
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("inflate", |bytes: usize| "x".repeat(bytes))
        .start()
        .unwrap();
    for bytes in [40_000, 41_000, 45_000] {
        let mut batch = client(broker).batch(&service);
        for _ in 0..500 {
            batch.add::<String>("inflate", &bytes);
        }
        let texts = batch.call().into_results::<String>();
        let most = broker.max_body() / (bytes + 100);
        let fit = texts.iter().filter(|text| text.is_ok()).count();
        assert!(fit <= most && fit > most * 9 / 10, "{fit} of {most}");
        let errors = texts.iter().filter_map(|text| text.as_ref().err());
        for error in errors {
            assert_eq!(error.remote_code(), Some("reply_too_large"), "{error}");
        }
    }
}

fn a_missing_service_is_each_calls_error(broker: &Broker) {
    let mut batch = client(broker).batch(&unique("absent"));
    for n in 0..3 {
        batch.add::<u64>("double", &n);
    }
    for result in batch.call().into_results::<u64>() {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRoute);
        assert!(error.is_safe_to_retry());
    }
    let client = client(broker);
    let mut batch = client.batch("math");
    batch.add::<u64>("double", &1);
    batch.add::<u64>("double", &2);
    client.close();
    for result in batch.call().into_results::<u64>() {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Closed);
    }
}

fn a_dropped_batch_is_not_in_flight(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let client = client(broker);
    let mut batch = client.batch(&service).limits(BatchLimits::new().calls(2));
    for _ in 0..5 {
        batch.add::<u64>("nap", &50);
    }
    let pending = batch.call_async();
    assert_eq!(client.in_flight(), 3, "messages");
    drop(pending);
    assert_eq!(client.in_flight(), 0);
}

fn replies_are_taken_once(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let mut batch = client(broker).batch(&service);
    let key = batch.add::<u64>("double", &1);
    let mut pending = batch.call_async();
    let mut replies = pending.wait_timeout(PATIENCE).unwrap();
    assert_eq!(replies.take(key).unwrap(), 2);
    let again = pending.try_wait().unwrap().into_results::<u64>();
    assert_eq!(again[0].as_ref().unwrap_err().kind(), ErrorKind::Misuse);
    let error = pending.then(|_| panic!("no callback may run"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Misuse);
}

fn shutting_down_ends_a_batch_that_has_begun(broker: &Broker) {
    let service = unique("math");
    let (began, begins) = crossbeam_channel::unbounded();
    let server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("nap", move |millis: u64| {
            began.send(()).unwrap();
            thread::sleep(Duration::from_millis(millis));
            millis
        })
        .start()
        .unwrap();
    let mut batch = client(broker).batch(&service);
    for _ in 0..30 {
        batch.add::<u64>("nap", &20);
    }
    let pending = batch.call_async();
    begins.recv_timeout(PATIENCE).unwrap();
    server.shutdown(PATIENCE).unwrap();
    // Requests that had not begun went back into the queue, for the next server.
    let _next = math(broker, &service);
    let naps = pending.wait().into_results::<u64>();
    assert!(naps.iter().all(Result::is_ok), "{naps:?}");
}

fn commands_in_batches(broker: &Broker) {
    let service = unique("orders");
    let (done, orders) = crossbeam_channel::unbounded();
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("create", move |order: u64| done.send(order))
        .start()
        .unwrap();
    let client = client(broker);
    let sent = client.send_batch(&service, "create", &Vec::from_iter(0..100u64));
    assert_eq!(sent.len(), 100);
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    let mut carried_out: Vec<u64> = (0..100)
        .map(|_| orders.recv_timeout(PATIENCE).unwrap())
        .collect();
    carried_out.sort_unstable();
    assert_eq!(carried_out, Vec::from_iter(0..100));
    let sent = client.send_batch(&unique("absent"), "create", &[1, 2]);
    let kinds = sent.into_iter().map(|sent| sent.unwrap_err().kind());
    assert_eq!(kinds.collect::<Vec<_>>(), [ErrorKind::NoRoute; 2]);
}

struct Panics;

impl serde::Serialize for Panics {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("no payload")
    }
}

fn a_payload_that_panics_is_its_own_error(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let client = client(broker);
    let mut batch = client.batch(&service);
    let first = batch.add::<u64>("double", &1);
    let second = batch.add::<u64>("double", &Panics);
    let third = batch.add::<u64>("double", &3);
    let mut replies = batch.call();
    assert_eq!(replies.take(first).unwrap(), 2);
    let error = replies.take(second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
    assert_eq!(replies.take(third).unwrap(), 6);
}
