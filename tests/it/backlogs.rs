//! Back-pressure on commands: senders wait while too many messages wait for the service.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::resilience::Refusal;
use coney::{Broker, ErrorKind, SendOptions, ServiceClient, ServiceServer};
use crossbeam_channel::unbounded;

use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, amqp_url, eventually, on_both, quick, rabbitmq, unique};

on_both!(
    senders_wait_until_the_queue_has_room,
    at_the_deadline_the_command_is_refused_and_not_sent,
    a_batch_of_commands_stops_at_the_bound,
    threads_share_the_room_that_is_left,
    a_service_that_keeps_up_is_not_held_back,
    calls_and_other_services_are_not_affected,
);

const MS: Duration = Duration::from_millis(1);

fn bounded(broker: &Broker, service: &str, most: usize) -> ServiceClient {
    ServiceClient::builder(broker, "shop")
        .timeout(PATIENCE)
        .max_backlog(service, most)
        .build()
        .unwrap()
}

/// Declares the queue of a service that has no server.
fn declare(broker: &Broker, service: &str) {
    let server = ServiceServer::builder(broker, service).respond("work", |_: u64| ());
    drop(server.start().unwrap());
    // Its consumer would take commands for a moment, and requeue them.
    let queue = format!("service.{service}.request");
    eventually("nothing consumes", || {
        broker.queue_depth(&queue).unwrap().consumers == 0
    });
}

fn depth(broker: &Broker, service: &str) -> usize {
    let queue = format!("service.{service}.request");
    broker.queue_depth(&queue).unwrap().messages
}

fn hurried() -> SendOptions {
    SendOptions::new().timeout(200 * MS)
}

fn senders_wait_until_the_queue_has_room(broker: &Broker) {
    let service = unique("work");
    declare(broker, &service);
    let client = bounded(broker, &service, 3);
    for n in 0..3u64 {
        client.send(&service, "work", &n).unwrap();
    }
    assert_eq!(depth(broker, &service), 3);
    let (sent, sends) = unbounded();
    let (handled, numbers) = unbounded();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.send(&service, "work", &3u64).unwrap();
            sent.send(()).unwrap();
        });
        assert!(sends.recv_timeout(300 * MS).is_err(), "it waits");
        assert_eq!(depth(broker, &service), 3);
        let _server = ServiceServer::builder(broker, &service)
            .handler("work", move |n: u64| handled.send(n))
            .start()
            .unwrap();
        sends.recv_timeout(PATIENCE).unwrap();
        for _ in 0..4 {
            numbers.recv_timeout(PATIENCE).unwrap();
        }
    });
}

fn at_the_deadline_the_command_is_refused_and_not_sent(broker: &Broker) {
    let service = unique("work");
    declare(broker, &service);
    let client = bounded(broker, &service, 2);
    for n in 0..2u64 {
        client.send(&service, "work", &n).unwrap();
    }
    let error = client
        .send_with(&service, "work", &2u64, &hurried())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert_eq!(error.refused_by(), Some(Refusal::Backlog));
    assert!(error.is_safe_to_retry());
    assert!(error.to_string().contains("max_backlog"), "{error}");
    let error = client
        .send_async_with(&service, "work", &2u64, &hurried())
        .unwrap_err();
    assert_eq!(error.refused_by(), Some(Refusal::Backlog));
    assert_eq!(depth(broker, &service), 2);
    let none = ServiceClient::builder(broker, "shop").max_backlog("work", 0);
    assert_eq!(none.build().unwrap_err().kind(), ErrorKind::InvalidConfig);
}

/// Checks the bound, which holds as far as the broker answers in time, and has counted what was sent
/// 50 ms before: beside other tests it may not do so at first.
fn a_batch_of_commands_stops_at_the_bound(broker: &Broker) {
    eventually("a batch stops at the bound", || {
        let service = unique("work");
        declare(broker, &service);
        let client = ServiceClient::builder(broker, "shop")
            .timeout(2_000 * MS)
            .max_backlog(&service, 5)
            .build()
            .unwrap();
        let outcomes = client.send_batch(&service, "work", &[7u64; 8]);
        let accepted = outcomes.iter().filter(|it| it.is_ok()).count();
        let refused = outcomes.iter().filter(|outcome| {
            let error = outcome.as_ref().err();
            error.is_some_and(|it| it.refused_by() == Some(Refusal::Backlog))
        });
        (accepted, refused.count(), depth(broker, &service)) == (5, 3, 5)
    });
}

fn threads_share_the_room_that_is_left(broker: &Broker) {
    let service = unique("work");
    declare(broker, &service);
    let client = bounded(broker, &service, 20);
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let options = SendOptions::new().timeout(2_000 * MS);
                while client.send_with(&service, "work", &1u64, &options).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let sent = sent.into_inner();
    assert_eq!(depth(broker, &service), sent);
    // Those of each thread that were on their way while the depth was asked for come on top.
    assert!((20..=28).contains(&sent), "{sent}");
}

/// Sends many times more commands than the queue may hold.
fn a_service_that_keeps_up_is_not_held_back(broker: &Broker) {
    let service = unique("work");
    let (handled, numbers) = unbounded();
    let _server = ServiceServer::builder(broker, &service)
        .handler("work", move |n: u64| handled.send(n))
        .start()
        .unwrap();
    let client = bounded(broker, &service, 20);
    for n in 0..200u64 {
        client.send(&service, "work", &n).unwrap();
    }
    for _ in 0..200 {
        numbers.recv_timeout(PATIENCE).unwrap();
    }
}

fn calls_and_other_services_are_not_affected(broker: &Broker) {
    let (service, other) = (unique("work"), unique("other"));
    declare(broker, &service);
    declare(broker, &other);
    let client = bounded(broker, &service, 1);
    for n in 0..5u64 {
        client.send(&other, "work", &n).unwrap();
    }
    client.send(&service, "work", &1u64).unwrap();
    let pending = client.call_async::<()>(&service, "work", &2u64).unwrap();
    eventually("the call is sent", || depth(broker, &service) == 2);
    let missing = bounded(broker, "missing", 1).send("missing", "work", &1u64);
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NoRoute);
    drop(pending);
}

#[test]
fn without_an_administration_connection_commands_are_sent_unbounded() {
    let service = unique("work");
    let other = rabbitmq();
    declare(&other, &service);
    let proxy = Proxy::start(&amqp_url());
    let broker = quick(&proxy.url);
    let client = bounded(&broker, &service, 2);
    proxy.refuse_later();
    for n in 0..6u64 {
        client.send(&service, "work", &n).unwrap();
    }
    assert_eq!(depth(&other, &service), 6);
}
