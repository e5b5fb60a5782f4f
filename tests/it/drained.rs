//! `drain`: queued messages are handled before a program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use coney::{
    Broker, ErrorKind, EventPublisher, EventSubscriber, HandlerError, Phase, ServiceServer,
};
use crossbeam_channel::unbounded;

use crate::support::proxy::{Mode, Proxy};
use crate::support::server::Server;
use crate::support::{
    PATIENCE, amqp_url, client, eventually, on_both, quick, rabbitmq, steady, unique,
};

on_both!(
    a_server_handles_what_is_queued_and_ends,
    a_subscriber_handles_what_is_queued_and_ends,
    drain_counts_unhandled_messages,
    drain_waits_for_retries,
    a_handler_that_ends_during_the_shutdown_is_drained,
);

const MS: Duration = Duration::from_millis(1);

fn a_server_handles_what_is_queued_and_ends(broker: &Broker) {
    let (service, ran) = (unique("work"), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&ran);
    let server = ServiceServer::builder(broker, &service)
        .workers(2)
        .respond("work", move |_: u64| {
            thread::sleep(2 * MS);
            count.fetch_add(1, Ordering::SeqCst);
        })
        .start()
        .unwrap();
    let client = client(broker);
    for n in 0..100u64 {
        client.send(&service, "work", &n).unwrap();
    }
    server.drain(PATIENCE).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 100);
    client.send(&service, "work", &7).unwrap();
    let (sent, numbers) = unbounded();
    let _next = ServiceServer::builder(broker, &service)
        .handler("work", move |n: u64| sent.send(n))
        .start()
        .unwrap();
    assert_eq!(numbers.recv_timeout(PATIENCE), Ok(7));
    assert_eq!(ran.load(Ordering::SeqCst), 100, "it has ended");
}

fn a_subscriber_handles_what_is_queued_and_ends(broker: &Broker) {
    let (name, ran) = (
        unique("drain").replace('-', "."),
        Arc::new(AtomicU64::new(0)),
    );
    let count = Arc::clone(&ran);
    let subscriber = EventSubscriber::builder(broker, &unique("one"))
        .listen(&name, move |_: u64| {
            thread::sleep(2 * MS);
            count.fetch_add(1, Ordering::SeqCst);
        })
        .start()
        .unwrap();
    let publisher = EventPublisher::new(broker, "tests").unwrap();
    for n in 0..50u64 {
        publisher.publish(&name, &n).unwrap();
    }
    subscriber.drain(PATIENCE).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 50);
}

fn drain_counts_unhandled_messages(broker: &Broker) {
    let service = unique("work");
    let server = ServiceServer::builder(broker, &service)
        .workers(1)
        .prefetch(1)
        .respond("work", |_: u64| {
            thread::sleep(100 * MS);
        })
        .start()
        .unwrap();
    let client = client(broker);
    for n in 0..50u64 {
        client.send(&service, "work", &n).unwrap();
    }
    let error = server.drain(Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("messages are queued"), "{error}");
}

fn drain_waits_for_retries(broker: &Broker) {
    let service = unique("work");
    let server = ServiceServer::builder(broker, &service)
        .retry_delays([300 * MS, 1_000 * PATIENCE])
        .handler_with_context("work", |context: &coney::Context<'_>, last: u32| {
            match context.attempt() >= last {
                true => Ok(()),
                false => Err(HandlerError::new("not yet")),
            }
        })
        .start()
        .unwrap();
    let client = client(broker);
    client.send(&service, "work", &2).unwrap();
    server.drain(PATIENCE).unwrap();
    let (ran, runs) = unbounded();
    let again = ServiceServer::builder(broker, &service)
        .retry_delays([300 * MS, 1_000 * PATIENCE])
        .handler("work", move |_: u32| {
            ran.send(()).unwrap();
            Err::<(), _>("never")
        })
        .start()
        .unwrap();
    client.send(&service, "work", &3).unwrap();
    for _ in 0..2 {
        runs.recv_timeout(PATIENCE).unwrap();
    }
    let error = again.drain(Duration::from_secs(3)).unwrap_err();
    assert!(error.to_string().contains("1 wait for another"), "{error}");
}

/// Drains a server whose handler takes longer than half of the timeout.
fn a_handler_that_ends_during_the_shutdown_is_drained(broker: &Broker) {
    let service = unique("work");
    let (began, begins) = unbounded();
    let server = ServiceServer::builder(broker, &service)
        .respond("work", move |(): ()| {
            began.send(()).unwrap();
            thread::sleep(4_000 * MS);
        })
        .start()
        .unwrap();
    client(broker).send(&service, "work", &()).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    server.drain(7_000 * MS).unwrap();
}

/// The last acknowledgements have reached the broker when `shutdown` returns: the process
/// could end, as the connection does here.
#[test]
fn shutdown_returns_when_the_broker_has_all() {
    let proxy = Proxy::start(&amqp_url());
    let broker = steady(&proxy.url);
    let service = unique("work");
    let (began, begins) = unbounded();
    let server = ServiceServer::builder(&broker, &service)
        .respond("work", move |n: u64| {
            began.send(()).unwrap();
            n
        })
        .start()
        .unwrap();
    let other = rabbitmq();
    let client = client(&other);
    let pending: Vec<_> = (0..9u64)
        .map(|n| client.call_async::<u64>(&service, "work", &n).unwrap())
        .collect();
    proxy.forth(Mode::Delay);
    begins.recv_timeout(PATIENCE).unwrap();
    server.shutdown(PATIENCE).unwrap();
    proxy.forth(Mode::Swallow);
    proxy.cut();
    let again = rabbitmq();
    let server = ServiceServer::builder(&again, &service)
        .respond("work", |n: u64| n + 100)
        .start()
        .unwrap();
    for (n, pending) in (0..).zip(pending) {
        let answer = pending.wait().unwrap();
        assert!(answer == n || answer == n + 100, "{answer}");
    }
    server.drain(PATIENCE).unwrap();
}

#[test]
fn shutdown_fails_if_the_broker_does_not_confirm() {
    let rabbit = Server::rabbitmq();
    let broker = quick(rabbit.url());
    let service = unique("work");
    let server = ServiceServer::builder(&broker, &service)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    let client = client(&broker);
    assert_eq!(client.call::<u64>(&service, "work", &1).unwrap(), 1);
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    // The broker blocks the connection with the next message.
    let options = coney::CallOptions::new().timeout(300 * MS);
    let _ = client.call_with::<u64>(&service, "work", &1, &options);
    let error = server.shutdown(Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
}

#[test]
fn a_lost_connection_does_not_end_a_drain() {
    let proxy = Proxy::start(&amqp_url());
    let broker = steady(&proxy.url);
    let (service, ran) = (unique("work"), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&ran);
    let server = ServiceServer::builder(&broker, &service)
        .workers(2)
        .respond("work", move |_: u64| {
            thread::sleep(10 * MS);
            count.fetch_add(1, Ordering::SeqCst);
        })
        .start()
        .unwrap();
    let client = client(&rabbitmq());
    for n in 0..100u64 {
        client.send(&service, "work", &n).unwrap();
    }
    thread::scope(|scope| {
        let drained = scope.spawn(|| server.drain(4 * PATIENCE));
        eventually("a part is done", || ran.load(Ordering::SeqCst) >= 20);
        proxy.cut();
        drained.join().unwrap().unwrap();
    });
    assert!(ran.load(Ordering::SeqCst) >= 100);
    server.drain(PATIENCE).unwrap(); // nothing is left to do
}

#[test]
fn a_broker_that_does_not_answer_leaves_the_shutdown_its_half() {
    let proxy = Proxy::start(&amqp_url());
    let broker = steady(&proxy.url);
    let service = unique("work");
    let server = ServiceServer::builder(&broker, &service)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    proxy.back(Mode::Swallow);
    let error = server.drain(1_000 * MS).unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Shutdown), "{error}");
    let uncounted = "the messages that are left cannot be counted";
    assert!(error.to_string().contains(uncounted), "{error}");
    proxy.cut_for_good();
}
