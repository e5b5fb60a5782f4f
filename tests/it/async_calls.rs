//! `call_async`: waiting later, callbacks, forgetting.

use std::thread;
use std::time::{Duration, Instant};

use coney::{Broker, CallOptions, ErrorKind, ServiceClient, ServiceServer};

use crate::support::sleepy_service::GatedServer;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_reply_is_waited_for_by_one_thread_after_another,
    replies_can_be_waited_for_in_any_order,
    wait_timeout_and_try_wait_may_return_none,
    callbacks_get_replies_errors_and_timeouts,
    callbacks_never_run_on_the_io_thread,
    a_panicking_callback_does_not_stop_the_others,
    a_callback_may_hold_the_last_client,
    calls_count_as_in_flight_while_a_callback_blocks,
    a_dropped_call_is_abandoned,
    ten_thousand_in_flight,
);

fn echo_server(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .respond("echo", |n: u64| n)
        .start()
        .unwrap()
}

fn replies_can_be_waited_for_in_any_order(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let mut pending: Vec<_> = (0..100u64)
        .map(|n| (n, client.call_async::<u64>(&service, "echo", &n).unwrap()))
        .collect();
    fastrand::shuffle(&mut pending);
    for (n, reply) in pending {
        assert_eq!(reply.wait().unwrap(), n);
    }
}

fn wait_timeout_and_try_wait_may_return_none(broker: &Broker) {
    let service = unique("echo");
    let mut server = GatedServer::start(broker, &service, 2);
    let client = client(broker);
    let mut slow = client.call_async::<u64>(&service, "wait", &300).unwrap();
    assert!(slow.try_wait().is_none());
    assert!(slow.wait_timeout(Duration::from_millis(20)).is_none());
    let hurry = CallOptions::new().timeout(Duration::from_millis(30));
    let mut late = client
        .call_async_with::<u64>(&service, "wait", &1, &hurry)
        .unwrap();
    let error = late.wait_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    server.open();
    assert_eq!(slow.wait_timeout(PATIENCE).unwrap().unwrap(), 300);
    let again = slow.try_wait().unwrap().unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Misuse);
}

fn callbacks_get_replies_errors_and_timeouts(broker: &Broker) {
    let service = unique("echo");
    let server = GatedServer::start(broker, &service, 4);
    let client = client(broker);
    let (sent, replies) = crossbeam_channel::unbounded();
    let call = |service: &str, action: &str, payload: u64, timeout: Duration| {
        let sent = sent.clone();
        let options = CallOptions::new().timeout(timeout);
        client
            .call_async_with::<u64>(service, action, &payload, &options)
            .unwrap()
            .then(move |reply| sent.send(reply).unwrap())
            .unwrap();
        replies.recv_timeout(PATIENCE).unwrap()
    };
    assert_eq!(call(&service, "echo", 1, PATIENCE).unwrap(), 1);
    let error = call(&service, "no_such_action", 1, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAction);
    let error = call(&unique("absent"), "echo", 1, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    let error = call(&service, "wait", 400, Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);

    // The reply to this one arrives before its callback is set.
    let pending = client.call_async::<u64>(&service, "echo", &9).unwrap();
    eventually("its reply", || client.in_flight() == 0);
    let last = sent.clone();
    pending
        .then(move |reply| last.send(reply).unwrap())
        .unwrap();
    assert_eq!(replies.recv_timeout(PATIENCE).unwrap().unwrap(), 9);

    // A closing client leaves this one without a reply.
    let pending = client.call_async::<u64>(&service, "wait", &401).unwrap();
    pending
        .then(move |reply| sent.send(reply).unwrap())
        .unwrap();
    while server.starts.recv_timeout(PATIENCE).unwrap() != 401 {}
    client.close();
    let error = replies.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    eventually("no call in flight", || client.in_flight() == 0);
}

fn callbacks_never_run_on_the_io_thread(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let (sent, replies) = crossbeam_channel::unbounded();
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let blocked = client.call_async::<u64>(&service, "echo", &1).unwrap();
    blocked
        .then(move |_| {
            sent.send(thread::current().name().map(str::to_owned))
                .unwrap();
            let _ = gate.recv();
        })
        .unwrap();
    let name = replies.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(name.starts_with("coney-callback"), "{name}");
    // While the callback blocks its thread, replies still arrive.
    assert_eq!(client.call::<u64>(&service, "echo", &2).unwrap(), 2);
    drop(release);
}

fn a_panicking_callback_does_not_stop_the_others(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let (sent, replies) = crossbeam_channel::unbounded();
    for n in 0..3 {
        let sent = sent.clone();
        client
            .call_async::<u64>(&service, "echo", &n)
            .unwrap()
            .then(move |reply| {
                assert!(n != 1, "a panic that the test wants");
                sent.send(reply.unwrap()).unwrap();
            })
            .unwrap();
    }
    let mut got = [
        replies.recv_timeout(PATIENCE).unwrap(),
        replies.recv_timeout(PATIENCE).unwrap(),
    ];
    got.sort_unstable();
    assert_eq!(got, [0, 2]);
    eventually("no call in flight", || client.in_flight() == 0);
}

fn a_callback_may_hold_the_last_client(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let (sent, replies) = crossbeam_channel::unbounded();
    {
        let client = client(broker);
        let last = client.clone();
        client
            .call_async::<u64>(&service, "echo", &1)
            .unwrap()
            .then(move |reply| {
                drop(last);
                sent.send(reply.unwrap()).unwrap();
            })
            .unwrap();
    }
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(1));
}

fn a_dropped_call_is_abandoned(broker: &Broker) {
    let service = unique("echo");
    let _server = GatedServer::start(broker, &service, 2);
    let client = client(broker);
    let pending = client.call_async::<u64>(&service, "wait", &1).unwrap();
    assert_eq!(client.in_flight(), 1);
    drop(pending);
    assert_eq!(client.in_flight(), 0);
    // It disturbs no other call, sent or not.
    assert_eq!(client.call::<u64>(&service, "echo", &5).unwrap(), 5);
}

fn ten_thousand_in_flight(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let pending: Vec<_> = (0..10_000u64)
        .map(|n| client.call_async::<u64>(&service, "echo", &n).unwrap())
        .collect();
    for (n, reply) in pending.into_iter().enumerate() {
        assert_eq!(reply.wait().unwrap(), n as u64);
    }
    assert_eq!(client.in_flight(), 0);
}

/// Wakes the last thread that waits, after others have waited in between.
fn a_reply_is_waited_for_by_one_thread_after_another(broker: &Broker) {
    let service = unique("nap");
    let mut server = GatedServer::start(broker, &service, 2);
    let client = client(broker);
    let mut pending = client.call_async::<u64>(&service, "wait", &300).unwrap();
    let pending = std::thread::spawn(move || {
        assert!(pending.try_wait().is_none());
        assert!(pending.wait_timeout(Duration::from_millis(20)).is_none());
        pending
    });
    let pending = pending.join().unwrap();
    let begin = Instant::now();
    server.open();
    assert_eq!(pending.wait().unwrap(), 300);
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
    // Another thread alone waits for this one.
    let pending = client.call_async::<u64>(&service, "wait", &50).unwrap();
    let reply = std::thread::spawn(move || pending.wait());
    assert_eq!(reply.join().unwrap().unwrap(), 50);
}

fn calls_count_as_in_flight_while_a_callback_blocks(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = ServiceClient::builder(broker, "test")
        .max_in_flight(20)
        .build()
        .unwrap();
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let call = || client.call_async::<u64>(&service, "echo", &1);
    let (sent, begun) = crossbeam_channel::bounded(1);
    let block = move |_| {
        sent.send(()).unwrap();
        assert!(gate.recv().is_err());
    };
    call().unwrap().then(block).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    // Their replies arrive, and their callbacks wait for the one that blocks.
    for _ in 1..20 {
        call().unwrap().then(|_| {}).unwrap();
    }
    let other = crate::support::client(broker);
    other.call::<u64>(&service, "echo", &1).unwrap(); // after their replies
    assert_eq!(call().unwrap_err().kind(), ErrorKind::Rejected);
    drop(release);
    eventually("all callbacks have run", || client.in_flight() == 0);
}
