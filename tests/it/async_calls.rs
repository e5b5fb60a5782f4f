//! `call_async`: waiting later, callbacks, forgetting.

use std::thread;
use std::time::{Duration, Instant};

use coney::{Broker, CallOptions, ErrorKind, HandlerError, ServiceServer};

use crate::support::nap::nap_server;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_reply_is_waited_for_by_one_thread_after_another,
    replies_can_be_waited_for_in_any_order,
    waiting_a_little_and_not_at_all,
    callbacks_get_replies_errors_and_timeouts,
    callbacks_never_run_on_the_io_thread,
    a_panicking_callback_does_not_stop_the_others,
    a_callback_may_hold_the_last_client,
    a_forgotten_call_is_forgotten,
    ten_thousand_in_flight,
);

fn echo_server(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .handler("echo", |n: u64| Ok::<_, HandlerError>(n))
        .handler("nap", |ms: u64| {
            thread::sleep(Duration::from_millis(ms));
            Ok::<_, HandlerError>(ms)
        })
        .start()
        .unwrap()
}

fn replies_can_be_waited_for_in_any_order(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let mut pending: Vec<_> = (0..100u64)
        .map(|n| {
            (
                n,
                client.call_async::<_, u64>(&service, "echo", &n).unwrap(),
            )
        })
        .collect();
    fastrand::shuffle(&mut pending);
    for (n, reply) in pending {
        assert_eq!(reply.wait().unwrap(), n);
    }
}

fn waiting_a_little_and_not_at_all(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let mut slow = client.call_async::<_, u64>(&service, "nap", &300).unwrap();
    assert!(slow.try_wait().is_none());
    assert!(slow.wait_timeout(Duration::from_millis(20)).is_none());
    assert_eq!(slow.wait_timeout(PATIENCE).unwrap().unwrap(), 300);
    let again = slow.try_wait().unwrap().unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Closed);

    let hurry = CallOptions::new().timeout(Duration::from_millis(30));
    let mut late = client
        .call_async_with::<_, u64>(&service, "nap", &300, &hurry)
        .unwrap();
    let error = late.wait_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

fn callbacks_get_replies_errors_and_timeouts(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let (tell, told) = crossbeam_channel::unbounded();
    let call = |service: &str, action: &str, payload: u64, timeout: Duration| {
        let tell = tell.clone();
        let options = CallOptions::new().timeout(timeout);
        client
            .call_async_with::<_, u64>(service, action, &payload, &options)
            .unwrap()
            .then(move |reply| tell.send(reply).unwrap())
            .unwrap();
        told.recv_timeout(PATIENCE).unwrap()
    };
    assert_eq!(call(&service, "echo", 1, PATIENCE).unwrap(), 1);
    let error = call(&service, "no_such_action", 1, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAction);
    let error = call(&unique("nobody"), "echo", 1, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    let error = call(&service, "nap", 400, Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);

    // One whose reply is here before the callback is.
    let pending = client.call_async::<_, u64>(&service, "echo", &9).unwrap();
    thread::sleep(Duration::from_millis(100));
    let tell_last = tell.clone();
    pending
        .then(move |reply| tell_last.send(reply).unwrap())
        .unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap().unwrap(), 9);

    // And one that a closing client leaves without a reply.
    let pending = client.call_async::<_, u64>(&service, "nap", &400).unwrap();
    pending
        .then(move |reply| tell.send(reply).unwrap())
        .unwrap();
    thread::sleep(Duration::from_millis(100)); // until it has been sent
    client.close();
    let error = told.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    eventually("no call in flight", || client.in_flight() == 0);
}

fn callbacks_never_run_on_the_io_thread(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let (tell, told) = crossbeam_channel::unbounded();
    let blocked = client.call_async::<_, u64>(&service, "echo", &1).unwrap();
    blocked
        .then(move |_| {
            tell.send(thread::current().name().map(str::to_owned))
                .unwrap();
            thread::sleep(Duration::from_millis(300));
        })
        .unwrap();
    let name = told.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(name.starts_with("coney-callback"), "{name}");
    // While the callback blocks its thread, replies still arrive.
    let options = CallOptions::new().timeout(Duration::from_millis(250));
    let reply: coney::Result<u64> = client.call_with(&service, "echo", &2, &options);
    assert_eq!(reply.unwrap(), 2);
}

fn a_panicking_callback_does_not_stop_the_others(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let (tell, told) = crossbeam_channel::unbounded();
    for n in 0..3 {
        let tell = tell.clone();
        client
            .call_async::<_, u64>(&service, "echo", &n)
            .unwrap()
            .then(move |reply| {
                assert!(n != 1, "a panic that the test wants");
                tell.send(reply.unwrap()).unwrap();
            })
            .unwrap();
    }
    let mut got = [
        told.recv_timeout(PATIENCE).unwrap(),
        told.recv_timeout(PATIENCE).unwrap(),
    ];
    got.sort_unstable();
    assert_eq!(got, [0, 2]);
    eventually("no call in flight", || client.in_flight() == 0);
}

fn a_callback_may_hold_the_last_client(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let (tell, told) = crossbeam_channel::unbounded();
    {
        let client = client(broker);
        let last = client.clone();
        client
            .call_async::<_, u64>(&service, "echo", &1)
            .unwrap()
            .then(move |reply| {
                drop(last);
                tell.send(reply.unwrap()).unwrap();
            })
            .unwrap();
    }
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1));
}

fn a_forgotten_call_is_forgotten(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let pending = client.call_async::<_, u64>(&service, "nap", &100).unwrap();
    assert_eq!(client.in_flight(), 1);
    drop(pending);
    assert_eq!(client.in_flight(), 0);
    // Sent or not by then, its reply is nobody's; the next call is undisturbed.
    assert_eq!(client.call::<_, u64>(&service, "echo", &5).unwrap(), 5);
}

fn ten_thousand_in_flight(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let client = client(broker);
    let pending: Vec<_> = (0..10_000u64)
        .map(|n| client.call_async::<_, u64>(&service, "echo", &n).unwrap())
        .collect();
    for (n, reply) in pending.into_iter().enumerate() {
        assert_eq!(reply.wait().unwrap(), n as u64);
    }
    assert_eq!(client.in_flight(), 0);
}

/// Who waits last is woken, whoever has waited in between.
fn a_reply_is_waited_for_by_one_thread_after_another(broker: &Broker) {
    let service = unique("nap");
    let (_server, _starts) = nap_server(broker, &service);
    let client = client(broker);
    let mut pending = client.call_async::<_, u64>(&service, "nap", &300).unwrap();
    let pending = std::thread::spawn(move || {
        assert!(pending.try_wait().is_none());
        assert!(pending.wait_timeout(Duration::from_millis(20)).is_none());
        pending
    });
    let begin = Instant::now();
    assert_eq!(pending.join().unwrap().wait().unwrap(), 300);
    assert!(begin.elapsed() < PATIENCE / 4, "{:?}", begin.elapsed());
    // And by another thread alone.
    let pending = client.call_async::<_, u64>(&service, "nap", &50).unwrap();
    let nap = std::thread::spawn(move || pending.wait());
    assert_eq!(nap.join().unwrap().unwrap(), 50);
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
}
