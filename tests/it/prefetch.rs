//! A prefetch that changes while its link consumes: nothing is lost, and nothing is redelivered.

use std::time::Duration;

use coney::transport::{Delivery, Link, LinkSpec, Publication, QueueOptions, Topology};
use coney::{Broker, ErrorKind};

use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, amqp_url, eventually, on_both, steady, unique};

on_both!(
    a_higher_prefetch_applies_at_once,
    a_lower_prefetch_applies_as_deliveries_are_settled,
    many_changes_keep_the_order_and_lose_nothing,
    the_prefetch_of_a_single_active_consumer_keeps_its_turn,
    a_link_without_settlements_has_no_prefetch,
);

fn consumer(broker: &Broker, queue: &str, prefetch: u16) -> Link {
    let topology = Topology::new().queue(queue);
    Link::open(broker, LinkSpec::new(topology).consume(queue, prefetch)).unwrap()
}

fn publish(link: &Link, queue: &str, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        let message = Publication::new("", queue, vec![number]);
        link.publish(message, PATIENCE).unwrap();
    }
}

/// Receives the deliveries of these numbers, none of which is redelivered.
fn take(link: &Link, numbers: impl IntoIterator<Item = u8>) -> Vec<Delivery> {
    let take = |number| {
        let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
        let seen = (delivery.message().body[0], delivery.is_redelivered());
        assert_eq!(seen, (number, false));
        delivery
    };
    numbers.into_iter().map(take).collect()
}

/// Asserts that the link has no further delivery, after a round trip to the broker.
fn has_no_more(link: &Link) {
    let mut lost = Publication::new("", unique("nowhere"), Vec::new());
    lost.mandatory = true;
    link.publish(lost, PATIENCE).unwrap();
    assert!(link.returned_timeout(PATIENCE).is_some());
    assert!(link.recv_timeout(Duration::ZERO).is_none());
}

/// Waits until a queue has this number of messages that no consumer has fetched.
fn wait_for_depth(broker: &Broker, queue: &str, messages: usize) {
    eventually("the queue has that depth", || {
        broker.queue_depth(queue).unwrap().messages == messages
    });
}

fn ack(deliveries: Vec<Delivery>) {
    deliveries.into_iter().for_each(Delivery::ack);
}

fn a_higher_prefetch_applies_at_once(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 3);
    publish(&link, &queue, 0..10);
    let first = take(&link, 0..3);
    has_no_more(&link);
    link.set_prefetch(5, PATIENCE).unwrap();
    let more = take(&link, 3..5);
    has_no_more(&link);
    assert_eq!(broker.queue_depth(&queue).unwrap().consumers, 1);
    ack(first);
    let rest = take(&link, 5..8);
    has_no_more(&link);
    ack(more);
    ack(rest);
    ack(take(&link, 8..10));
    wait_for_depth(broker, &queue, 0);
    drop(link);
    // All are acknowledged: none goes back to the queue with the link.
    let next = consumer(broker, &queue, 1);
    publish(&next, &queue, [99]);
    ack(take(&next, [99]));
}

fn a_lower_prefetch_applies_as_deliveries_are_settled(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 5);
    publish(&link, &queue, 0..12);
    let mut held = take(&link, 0..5);
    link.set_prefetch(2, PATIENCE).unwrap();
    for left in [4, 3, 2] {
        held.remove(0).ack();
        assert_eq!(held.len(), left);
        has_no_more(&link);
    }
    for number in 5..12 {
        held.remove(0).ack();
        held.extend(take(&link, [number]));
        has_no_more(&link);
    }
    ack(held);
    wait_for_depth(broker, &queue, 0);
}

fn many_changes_keep_the_order_and_lose_nothing(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 1);
    let mut held = Vec::new();
    for number in 0..200u8 {
        publish(&link, &queue, [number]);
        if number % 7 == 0 {
            let prefetch = [1, 8, 3, 32, 2][usize::from(number / 7) % 5];
            link.set_prefetch(prefetch, PATIENCE).unwrap();
        }
        held.extend(link.recv_timeout(Duration::ZERO));
        if held.len() > 1 {
            Delivery::ack(held.remove(0));
        }
    }
    let mut seen = Vec::new();
    let first = held
        .first()
        .map_or(0, |delivery| delivery.message().body[0]);
    let mut next = first;
    while next < 200 {
        if held.is_empty() {
            held.push(link.recv_timeout(PATIENCE).expect("a delivery"));
        }
        let delivery = held.remove(0);
        seen.push((delivery.message().body[0], delivery.is_redelivered()));
        delivery.ack();
        next += 1;
    }
    let expected: Vec<_> = (first..200).map(|number| (number, false)).collect();
    assert_eq!(seen, expected);
}

fn the_prefetch_of_a_single_active_consumer_keeps_its_turn(broker: &Broker) {
    let queue = unique("q");
    let options = QueueOptions::new().single_active_consumer();
    let spec = LinkSpec::new(Topology::new().queue_with(&queue, options)).consume(&queue, 2);
    let active = Link::open(broker, spec.clone()).unwrap();
    let waiting = Link::open(broker, spec).unwrap();
    publish(&active, &queue, 0..6);
    let held = take(&active, 0..2);
    active.set_prefetch(1, PATIENCE).unwrap();
    ack(held);
    for number in 2..6 {
        ack(take(&active, [number]));
    }
    has_no_more(&waiting);
}

fn a_link_without_settlements_has_no_prefetch(broker: &Broker) {
    for spec in [LinkSpec::default(), LinkSpec::default().reply_queue()] {
        let link = Link::open(broker, spec).unwrap();
        link.set_prefetch(5, PATIENCE).unwrap();
    }
    let link = consumer(broker, &unique("q"), 1);
    broker.close(PATIENCE).unwrap();
    let closed = link.set_prefetch(2, PATIENCE);
    if broker.address() != "memory" {
        assert_eq!(closed.unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[test]
fn the_prefetch_survives_a_reconnect() {
    let proxy = Proxy::start(&amqp_url());
    let broker = steady(&proxy.url);
    let queue = unique("q");
    let link = consumer(&broker, &queue, 2);
    publish(&link, &queue, 0..8);
    let mut held = take(&link, 0..2);
    link.set_prefetch(4, PATIENCE).unwrap();
    held.extend(take(&link, 2..4));
    proxy.cut();
    let mut again = Vec::new();
    while again.len() < 4 {
        let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
        assert!(delivery.is_redelivered());
        again.push(delivery);
    }
    wait_for_depth(&broker, &queue, 4);
    has_no_more(&link);
    // Settling a delivery of the lost connection has no effect.
    ack(held);
    has_no_more(&link);
    ack(again);
    // Some of these had arrived over the lost connection, beyond the prefetch.
    for number in 4..8 {
        let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
        assert_eq!(delivery.message().body, [number]);
        delivery.ack();
    }
}
