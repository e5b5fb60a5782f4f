//! The behaviour that the queues of both brokers share, through raw links.

use std::time::Duration;

use coney::transport::{ExchangeKind, Link, LinkSpec, Publication, QueueOptions, Topology};
use coney::{Broker, ErrorKind};

use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    prefetch_bounds_what_is_unsettled,
    requeued_messages_come_back_marked_and_in_order,
    a_dropped_delivery_goes_back,
    a_closed_links_deliveries_go_back,
    messages_expire,
    mandatory_messages_come_back,
    exchanges_route,
    a_reply_queue_dies_with_its_link,
    declarations_must_agree,
    consumers_take_turns,
    messages_accepted_before_a_close_are_sent,
    names_and_sizes_are_checked,
    a_channel_the_broker_closed_harms_no_later_link,
);

fn consumer(broker: &Broker, queue: &str, prefetch: u16) -> Link {
    let topology = Topology::new().queue(queue);
    Link::open(broker, LinkSpec::new(topology).consume(queue, prefetch)).unwrap()
}

fn publish(link: &Link, queue: &str, number: u8) {
    link.publish(Publication::new("", queue, vec![number]), PATIENCE)
        .unwrap();
}

fn numbers(link: &Link, count: usize) -> Vec<(u8, bool)> {
    (0..count)
        .map(|_| {
            let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
            let seen = (delivery.message().body[0], delivery.is_redelivered());
            delivery.ack();
            seen
        })
        .collect()
}

fn prefetch_bounds_what_is_unsettled(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 2);
    for n in 0..6 {
        publish(&link, &queue, n);
    }
    // Messages beyond the prefetch count are in the queue, where another link finds them.
    let other = Link::open(broker, LinkSpec::new(Topology::new())).unwrap();
    let next_in_queue = || {
        let mut body = None;
        eventually("it is in the queue", || {
            let delivery = other.get(&queue, PATIENCE).unwrap();
            body = delivery.map(|delivery| {
                let body = delivery.message().body.clone();
                delivery.ack();
                body
            });
            body.is_some()
        });
        body.unwrap()
    };
    let first = link.recv_timeout(PATIENCE).unwrap();
    let second = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(next_in_queue(), [2], "two are unsettled");
    second.ack();
    let third = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(third.message().body, [3]);
    assert_eq!(next_in_queue(), [4]);
    first.ack();
    third.ack();
    assert_eq!(numbers(&link, 1), [(5, false)]);
}

fn requeued_messages_come_back_marked_and_in_order(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 1);
    for n in 0..3 {
        publish(&link, &queue, n);
    }
    link.recv_timeout(PATIENCE).unwrap().reject(true);
    assert_eq!(numbers(&link, 1), [(0, true)]);
    link.recv_timeout(PATIENCE).unwrap().reject(false);
    assert_eq!(numbers(&link, 1), [(2, false)]);
}

fn a_dropped_delivery_goes_back(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 1);
    publish(&link, &queue, 1);
    drop(link.recv_timeout(PATIENCE).unwrap());
    assert_eq!(numbers(&link, 1), [(1, true)]);
}

fn a_closed_links_deliveries_go_back(broker: &Broker) {
    let queue = unique("q");
    let first = consumer(broker, &queue, 5);
    publish(&first, &queue, 1);
    publish(&first, &queue, 2);
    let held = first.recv_timeout(PATIENCE).unwrap();
    drop(first);
    let second = consumer(broker, &queue, 5);
    let mut seen: Vec<u8> = numbers(&second, 2).into_iter().map(|(n, _)| n).collect();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
    // Settling a message that was given back does nothing.
    held.ack();
    publish(&second, &queue, 3);
    assert_eq!(numbers(&second, 1), [(3, false)]);
}

fn messages_expire(broker: &Broker) {
    let (queue, expired) = (unique("q"), unique("expired"));
    let options = QueueOptions::new().dead_letter_to("", &expired);
    let topology = Topology::new().queue(&expired).queue_with(&queue, options);
    let publisher = Link::open(broker, LinkSpec::new(topology.clone())).unwrap();
    let mut soon = Publication::new("", queue.as_str(), vec![1]);
    soon.properties.expiration = Some(Duration::from_millis(30));
    publisher.publish(soon, PATIENCE).unwrap();
    let mut late = Publication::new("", queue.as_str(), vec![2]);
    late.properties.expiration = Some(PATIENCE * 10);
    publisher.publish(late, PATIENCE).unwrap();
    assert_eq!(numbers(&consumer(broker, &expired, 1), 1), [(1, false)]);
    let link = Link::open(broker, LinkSpec::new(topology).consume(&queue, 10)).unwrap();
    publish(&link, &queue, 3);
    assert_eq!(numbers(&link, 2), [(2, false), (3, false)]);
}

fn mandatory_messages_come_back(broker: &Broker) {
    let exchange = unique("x");
    let topology = Topology::new().exchange(&exchange, ExchangeKind::Direct);
    let queue = unique("q");
    let consuming = LinkSpec::new(topology.clone().queue(&queue)).consume(&queue, 1);
    for spec in [LinkSpec::new(topology), consuming] {
        come_back(&Link::open(broker, spec).unwrap(), &exchange);
    }
}

fn come_back(link: &Link, exchange: &str) {
    let mut lost = Publication::new(exchange.to_owned(), "nowhere", vec![1]);
    link.publish(lost.clone(), PATIENCE).unwrap();
    lost.mandatory = true;
    // They come in order, and nothing else between them.
    for id in ["c1", "c2"] {
        lost.properties.correlation_id = Some(id.to_owned());
        link.publish(lost.clone(), PATIENCE).unwrap();
        let returned = link.returned_timeout(PATIENCE).expect("it comes back");
        assert_eq!(returned.exchange, exchange);
        assert_eq!(returned.routing_key, "nowhere");
        assert_eq!(returned.correlation_id.as_deref(), Some(id));
        assert_eq!(returned.reason, "NO_ROUTE");
    }
}

fn exchanges_route(broker: &Broker) {
    for (kind, bound, hits, misses) in [
        (
            ExchangeKind::Direct,
            "a.b",
            vec!["a.b"],
            vec!["a", "a.b.c", ""],
        ),
        (
            ExchangeKind::Topic,
            "a.*",
            vec!["a.b", "a.c"],
            vec!["a", "a.b.c", "b.a"],
        ),
        (
            ExchangeKind::Topic,
            "a.#",
            vec!["a", "a.b", "a.b.c"],
            vec!["b", "b.a"],
        ),
        (ExchangeKind::Fanout, "x", vec!["a", "", "x"], vec![]),
    ] {
        let (exchange, queue) = (unique("x"), unique("q"));
        let topology = Topology::new()
            .exchange(&exchange, kind)
            .queue(&queue)
            .bind(&queue, &exchange, bound);
        let link = Link::open(broker, LinkSpec::new(topology).consume(&queue, 10)).unwrap();
        // The misses first: one that is routed would come first.
        for key in misses.iter().chain(&hits) {
            let publication = Publication::new(exchange.clone(), *key, key.as_bytes().to_vec());
            link.publish(publication, PATIENCE).unwrap();
        }
        for key in &hits {
            let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
            assert_eq!(delivery.message().routing_key, *key, "{kind:?} {bound}");
            delivery.ack();
        }
    }
}

fn a_reply_queue_dies_with_its_link(broker: &Broker) {
    let queue = unique("q");
    let requests = consumer(broker, &queue, 10);
    let client = coney::ServiceClient::new(broker, "short-lived").unwrap();
    drop(client);
    // Nothing is left that a mandatory message could go to.
    let reply = Link::open(broker, LinkSpec::default().reply_queue()).unwrap();
    drop(reply);
    publish(&requests, &queue, 1);
    assert_eq!(numbers(&requests, 1), [(1, false)]);
}

fn declarations_must_agree(broker: &Broker) {
    let exchange = unique("x");
    let declare = |kind| {
        let topology = Topology::new().exchange(&exchange, kind);
        Link::open(broker, LinkSpec::new(topology))
    };
    let link = declare(ExchangeKind::Direct).unwrap();
    let error = declare(ExchangeKind::Topic).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker);
    let error = Link::open(broker, LinkSpec::default().consume(unique("missing"), 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker);
    // A refusal harms no other link.
    let mut message = Publication::new(exchange.clone(), "k", vec![]);
    message.mandatory = true;
    link.publish(message, PATIENCE).unwrap();
    assert!(link.returned_timeout(PATIENCE).is_some());
}

fn consumers_take_turns(broker: &Broker) {
    let queue = unique("q");
    let (a, b) = (consumer(broker, &queue, 10), consumer(broker, &queue, 10));
    for n in 0..6 {
        publish(&a, &queue, n);
    }
    let (of_a, of_b) = (numbers(&a, 3), numbers(&b, 3));
    let mut all: Vec<u8> = of_a.iter().chain(&of_b).map(|(n, _)| *n).collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 5]);
}

fn messages_accepted_before_a_close_are_sent(broker: &Broker) {
    let queue = unique("q");
    let link = consumer(broker, &queue, 100);
    for round in 0..5 {
        let publisher = Link::open(broker, LinkSpec::new(Topology::new().queue(&queue))).unwrap();
        for n in 0..20 {
            publish(&publisher, &queue, round * 20 + n);
        }
        drop(publisher);
    }
    let seen: Vec<u8> = numbers(&link, 100).into_iter().map(|(n, _)| n).collect();
    assert_eq!(seen, (0..100).collect::<Vec<u8>>());
}

fn names_and_sizes_are_checked(broker: &Broker) {
    let long = "x".repeat(300);
    for topology in [
        Topology::new().queue(&long),
        Topology::new().exchange(&long, ExchangeKind::Direct),
        Topology::new().bind("q", "x", &long),
    ] {
        let error = Link::open(broker, LinkSpec::new(topology)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
    let error = Link::open(broker, LinkSpec::default().consume(&long, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);

    let queue = unique("q");
    let link = consumer(broker, &queue, 1);
    let refused = |publication| link.publish(publication, Duration::MAX).unwrap_err().kind();
    let key = Publication::new("", long.as_str(), vec![]);
    assert_eq!(refused(key), ErrorKind::InvalidConfig);
    let mut id = Publication::new("", queue.as_str(), vec![]);
    id.properties.message_id = Some(long.clone());
    assert_eq!(refused(id), ErrorKind::InvalidConfig);
    let mut expiration = Publication::new("", queue.as_str(), vec![]);
    expiration.properties.expiration = Some(Duration::MAX);
    assert_eq!(refused(expiration), ErrorKind::InvalidConfig);
    let body = Publication::new("", queue.as_str(), vec![0; broker.max_body() + 1]);
    assert_eq!(refused(body), ErrorKind::PayloadTooLarge);
    // A reply that cannot be sent is dropped; its request is acknowledged.
    publish(&link, &queue, 1);
    let delivery = link.recv_timeout(PATIENCE).unwrap();
    delivery.ack_with(Publication::new("", long.as_str(), vec![]));
    publish(&link, &queue, 2);
    assert_eq!(numbers(&link, 1), [(2, false)]);
}

fn a_channel_the_broker_closed_harms_no_later_link(broker: &Broker) {
    let queue = unique("q");
    for _ in 0..3 {
        let link = Link::open(broker, LinkSpec::default()).unwrap();
        // RabbitMQ closes the channel; in memory it is an error at once.
        let _ = link.publish(Publication::new(unique("missing"), "k", vec![]), PATIENCE);
        drop(link);
        let link = consumer(broker, &queue, 1);
        publish(&link, &queue, 1);
        assert_eq!(numbers(&link, 1), [(1, false)]);
    }
}
