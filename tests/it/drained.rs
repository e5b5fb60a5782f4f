//! `drain`: what is queued is handled before a program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use coney::{Broker, ErrorKind, EventPublisher, EventSubscriber, HandlerError, ServiceServer};

use crate::support::proxy::{Mode, Proxy};
use crate::support::server::Server;
use crate::support::{PATIENCE, amqp_url, client, on_both, quick, rabbitmq, unique};

on_both!(
    a_server_handles_what_is_queued_and_ends,
    a_subscriber_handles_what_is_queued_and_ends,
    what_cannot_be_handled_in_time_is_counted,
);

const MS: Duration = Duration::from_millis(1);

fn a_server_handles_what_is_queued_and_ends(broker: &Broker) {
    let (service, ran) = (unique("work"), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&ran);
    let server = ServiceServer::builder(broker, &service)
        .workers(2)
        .handler("work", move |_: u64| {
            thread::sleep(2 * MS);
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(())
        })
        .start()
        .unwrap();
    let client = client(broker);
    for n in 0..100u64 {
        client.send(&service, "work", &n).unwrap();
    }
    server.drain(PATIENCE).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 100);
    client.send(&service, "work", &0).unwrap();
    thread::sleep(50 * MS);
    assert_eq!(ran.load(Ordering::SeqCst), 100, "it has ended");
}

fn a_subscriber_handles_what_is_queued_and_ends(broker: &Broker) {
    let (name, ran) = (
        unique("drain").replace('-', "."),
        Arc::new(AtomicU64::new(0)),
    );
    let count = Arc::clone(&ran);
    let subscriber = EventSubscriber::builder(broker, &unique("one"))
        .on(&name, move |_: u64| {
            thread::sleep(2 * MS);
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(())
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

fn what_cannot_be_handled_in_time_is_counted(broker: &Broker) {
    let service = unique("work");
    let server = ServiceServer::builder(broker, &service)
        .workers(1)
        .prefetch(1)
        .handler("work", |_: u64| {
            thread::sleep(100 * MS);
            Ok::<_, HandlerError>(())
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

/// The last acknowledgements have reached the broker when `shutdown` returns: the process
/// could end, as the connection does here.
#[test]
fn shutdown_returns_when_the_broker_has_all() {
    let proxy = Proxy::start(&amqp_url());
    let broker = quick(&proxy.url);
    let service = unique("work");
    let server = ServiceServer::builder(&broker, &service)
        .handler("work", |n: u64| Ok::<_, HandlerError>(n))
        .start()
        .unwrap();
    let other = rabbitmq();
    let client = client(&other);
    let pending: Vec<_> = (0..9u64)
        .map(|n| client.call_async::<_, u64>(&service, "work", &n).unwrap())
        .collect();
    proxy.forth(Mode::Delay);
    thread::sleep(20 * MS);
    server.shutdown(PATIENCE).unwrap();
    proxy.forth(Mode::Swallow);
    proxy.cut();
    let again = rabbitmq();
    let server = ServiceServer::builder(&again, &service)
        .handler("work", |n: u64| Ok::<_, HandlerError>(n + 100))
        .start()
        .unwrap();
    for (n, pending) in (0..).zip(pending) {
        let answer = pending.wait().unwrap();
        assert!(answer == n || answer == n + 100, "{answer}");
    }
    server.drain(PATIENCE).unwrap();
}

#[test]
fn shutdown_says_so_if_the_broker_has_not() {
    let rabbit = Server::rabbitmq();
    let broker = quick(rabbit.url());
    let service = unique("work");
    let server = ServiceServer::builder(&broker, &service)
        .handler("work", |n: u64| Ok::<_, HandlerError>(n))
        .start()
        .unwrap();
    let client = client(&broker);
    assert_eq!(client.call::<_, u64>(&service, "work", &1).unwrap(), 1);
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    // It notices with what is published next.
    let options = coney::CallOptions::new().timeout(300 * MS);
    let _ = client.call_with::<_, u64>(&service, "work", &1, &options);
    let error = server.shutdown(Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
}
