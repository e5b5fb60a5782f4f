//! Subscribers whose connection is cut.

use std::time::Duration;

use coney::{Context, Subscription};
use crossbeam_channel::{bounded, unbounded};

use crate::support::events::{
    assert_no_more, publisher, recv_n, sending_to, sorted, subscriber, unique_event,
};
use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::{PATIENCE, amqp_url, eventually, steady, unique};

const MS: Duration = Duration::from_millis(1);

#[test]
fn ordered_events_have_a_connection_of_their_own() {
    let proxy = Proxy::start(&amqp_url());
    let (of_subscriber, of_publisher) = (steady(&proxy.url), steady(&amqp_url()));
    let (plain, ordered, service) = (unique_event(), unique_event(), unique("mixed"));
    let (sent, plain_events) = unbounded();
    let (sent_in_order, ordered_events) = unbounded();
    let (begun, first) = unbounded();
    let (release, gate) = bounded::<()>(0);
    let wait = move |n: u64| {
        begun.send(()).unwrap();
        let _ = gate.recv();
        sent.send(n)
    };
    let in_order = Subscription::to(&ordered, sending_to::<u64>(&sent_in_order));
    let subscriber = subscriber(&of_subscriber, &service)
        .workers(2)
        .prefetch(10)
        .on(&plain, wait)
        .subscribe(in_order.ordered_by(|_: &u64| 0))
        .start()
        .unwrap();
    let publisher = publisher(&of_publisher);
    for n in 0..5u64 {
        publisher.publish(&plain, &n).unwrap();
    }
    // Two are being handled, and three have been fetched and wait.
    recv_n(&first, 2);
    for n in 0..5u64 {
        publisher.publish(&ordered, &n).unwrap();
    }
    proxy.cut_latest();
    drop(release);
    assert_eq!(sorted(recv_n(&plain_events, 5)), [0, 1, 2, 3, 4]);
    // Events that were handled and not acknowledged are redelivered.
    let mut seen = Vec::new();
    while seen.last() != Some(&4) {
        seen.extend(recv_n(&ordered_events, 1));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    subscriber.drain(PATIENCE).unwrap();
    assert_no_more(&plain_events);
}

#[test]
fn a_broadcast_is_retried_after_a_reconnect() {
    let proxy = Proxy::start(&amqp_url());
    let (of_subscriber, of_publisher) = (steady(&proxy.url), steady(&amqp_url()));
    let (name, service) = (unique_event(), unique("all"));
    let (sent, attempts) = unbounded();
    let failing = Subscription::to_with_context(&name, move |context: &Context<'_>, n: u64| {
        sent.send((n, context.attempt())).unwrap();
        if context.attempt() == 1 {
            Err("not yet")
        } else {
            Ok(())
        }
    });
    let subscriber = subscriber(&of_subscriber, &service)
        .retry_delays([500 * MS])
        .subscribe(failing.broadcast())
        .start()
        .unwrap();
    publisher(&of_publisher).publish(&name, &7u64).unwrap();
    assert_eq!(recv_n(&attempts, 1), [(7, 1)]);
    // The exclusive queue is deleted with the connection, and the event is still retried.
    proxy.cut();
    assert_eq!(recv_n(&attempts, 1), [(7, 2)]);
    subscriber.shutdown(PATIENCE).unwrap();
    assert_no_more(&attempts);
}

/// A name that still exists would be refused (405).
#[test]
fn an_exclusive_queue_gets_a_new_name_in_each_session() {
    let rabbit = Server::rabbitmq();
    let proxy = Proxy::start(rabbit.url());
    let (of_subscriber, of_publisher) = (steady(&proxy.url), steady(rabbit.url()));
    let (name, service) = (unique_event(), unique("all"));
    let (sent, events) = unbounded();
    let subscriber = subscriber(&of_subscriber, &service)
        .subscribe(Subscription::to(&name, sending_to::<u64>(&sent)).broadcast())
        .start()
        .unwrap();
    let publisher = publisher(&of_publisher);
    let queues = || {
        let all = rabbit.ctl(&["list_queues", "name", "--quiet"]);
        let own = all.lines().filter(|line| line.contains(&service));
        own.map(str::to_owned).collect::<Vec<_>>()
    };
    publisher.publish(&name, &1u64).unwrap();
    assert_eq!(recv_n(&events, 1), [1]);
    let before = queues();
    assert_eq!(before.len(), 1, "{before:?}");
    proxy.cut();
    eventually("it is bound again", || {
        publisher.publish(&name, &2u64).unwrap();
        events.recv_timeout(20 * MS).is_ok()
    });
    let now = queues();
    assert!(!now.is_empty() && !now.contains(&before[0]), "{now:?}");
    subscriber.shutdown(PATIENCE).unwrap();
}
