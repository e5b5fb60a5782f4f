//! Events: their subscribers and their wire format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coney::deduplication::MemoryReplyStore;
use coney::message::ServiceMessage;
use coney::transport::{ExchangeKind, Link, LinkSpec, Publication, Topology};
use coney::{
    Broker, Context, ErrorKind, EventPublisher, EventSubscriber, HandlerError, PublishOptions,
    ServiceServer, Subscription,
};
use crossbeam_channel::unbounded;

use crate::support::events::{
    assert_no_more, publisher, recv_n, sending_to, sorted, subscriber, unique_event,
};
use crate::support::{PATIENCE, on_both, unique};

on_both!(
    every_group_gets_an_event_once,
    groups_get_events_published_while_offline,
    patterns_pick_events,
    a_broadcast_reaches_every_instance,
    a_singleton_has_one_active_consumer,
    a_repeated_event_is_handled_once,
    a_subscriber_is_required_only_if_asked_for,
    the_wire_format_of_an_event,
    many_are_published_at_once,
    what_a_subscriber_holds_is_bounded,
    handlers_may_call_and_publish,
    names_are_checked,
);

const MS: Duration = Duration::from_millis(1);

fn every_group_gets_an_event_once(broker: &Broker) {
    let (name, one, two) = (unique_event(), unique("one"), unique("two"));
    let (sent, of_one) = unbounded();
    let ones = [(); 2].map(|()| {
        subscriber(broker, &one)
            .on(&name, sending_to(&sent))
            .start()
            .unwrap()
    });
    let (sent, of_two) = unbounded();
    let of_the_other = subscriber(broker, &two)
        .on(&name, sending_to(&sent))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..20u64 {
        publisher.publish(&name, &n).unwrap();
    }
    assert_eq!(sorted(recv_n(&of_one, 20)), Vec::from_iter(0..20));
    assert_eq!(sorted(recv_n(&of_two, 20)), Vec::from_iter(0..20));
    for subscriber in ones.iter().chain([&of_the_other]) {
        subscriber.drain(PATIENCE).unwrap();
    }
    assert_no_more(&of_one);
    assert_no_more(&of_two);
}

fn groups_get_events_published_while_offline(broker: &Broker) {
    let (name, service) = (unique_event(), unique("late"));
    let (sent, events) = unbounded();
    let subscribe = || {
        subscriber(broker, &service)
            .on(&name, sending_to(&sent))
            .start()
            .unwrap()
    };
    subscribe().shutdown(PATIENCE).unwrap();
    let publisher = publisher(broker);
    for n in 0..5u64 {
        publisher.publish(&name, &n).unwrap();
    }
    assert_no_more(&events);
    let _back = subscribe();
    assert_eq!(sorted(recv_n(&events, 5)), [0, 1, 2, 3, 4]);
}

fn patterns_pick_events(broker: &Broker) {
    let (source, service) = (unique("src"), unique("patterns"));
    let (sent, events) = unbounded();
    let heard = |as_what: &'static str| {
        let sent = sent.clone();
        move |context: &Context<'_>, _: u64| {
            let event = context
                .action()
                .rsplit('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            sent.send((as_what, event)).map_err(|_| "disconnected")
        }
    };
    let subscriber = subscriber(broker, &service)
        .on_with_context(&format!("{source}.*"), heard("one word"))
        .on_with_context(&format!("{source}.#"), heard("any"))
        .on_with_context(&format!("{source}.a"), heard("exactly"))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for name in ["a", "b", "b.c"] {
        publisher.publish(&format!("{source}.{name}"), &1).unwrap();
    }
    let mut heard = recv_n(&events, 6);
    heard.sort_unstable();
    let wanted = [
        ("any", "a"),
        ("any", "b"),
        ("any", "c"),
        ("exactly", "a"),
        ("one word", "a"),
        ("one word", "b"),
    ];
    assert_eq!(heard, wanted.map(|(how, what)| (how, what.to_owned())));
    subscriber.drain(PATIENCE).unwrap();
    assert_no_more(&events);
}

fn a_broadcast_reaches_every_instance(broker: &Broker) {
    let (name, service) = (unique_event(), unique("all"));
    let (sent, events) = unbounded();
    let subscribe = |who: u64| {
        let sent = sent.clone();
        let heard = move |n: u64| sent.send((who, n)).map_err(|_| "disconnected");
        let broadcast = Subscription::to(&name, heard).broadcast();
        subscriber(broker, &service)
            .subscribe(broadcast)
            .start()
            .unwrap()
    };
    let first = subscribe(1);
    let second = subscribe(2);
    publisher(broker).publish(&name, &7u64).unwrap();
    let mut heard = recv_n(&events, 2);
    heard.sort_unstable();
    assert_eq!(heard, [(1, 7), (2, 7)]);
    first.shutdown(PATIENCE).unwrap();
    publisher(broker).publish(&name, &8u64).unwrap();
    assert_eq!(recv_n(&events, 1), [(2, 8)]);
    second.shutdown(PATIENCE).unwrap();
    assert_no_more(&events);
}

fn a_singleton_has_one_active_consumer(broker: &Broker) {
    let (name, report) = (unique_event(), unique("report"));
    let (sent, events) = unbounded();
    let subscribe = |service: &str, who: u64| {
        let sent = sent.clone();
        let heard = move |n: u64| sent.send((who, n)).map_err(|_| "disconnected");
        let singleton = Subscription::to(&name, heard).named(&report).singleton();
        subscriber(broker, service)
            .subscribe(singleton)
            .start()
            .unwrap()
    };
    let first = subscribe("a-service", 1);
    let _second = subscribe("another-service", 2);
    let publisher = publisher(broker);
    for n in 0..10u64 {
        publisher.publish(&name, &n).unwrap();
    }
    assert!(recv_n(&events, 10).iter().all(|(who, _)| *who == 1));
    first.shutdown(PATIENCE).unwrap();
    publisher.publish(&name, &10u64).unwrap();
    assert_eq!(recv_n(&events, 1), [(2, 10)], "the next one");
}

fn a_repeated_event_is_handled_once(broker: &Broker) {
    let (name, service) = (unique_event(), unique("once"));
    let (sent, events) = unbounded();
    let subscriber = subscriber(broker, &service)
        .deduplicate(Arc::new(MemoryReplyStore::new(100)), 60_000 * MS)
        .on(&name, sending_to::<u64>(&sent))
        .subscribe(Subscription::to(&name, sending_to::<u64>(&sent)).named("too"))
        .start()
        .unwrap();
    let options = PublishOptions::new()
        .message_id("evt-1")
        .header("trace-id", "abc");
    for _ in 0..3 {
        publisher(broker)
            .publish_with(&name, &7u64, &options)
            .unwrap();
    }
    assert_eq!(recv_n(&events, 2), [7, 7], "once for each subscription");
    subscriber.drain(PATIENCE).unwrap();
    assert_no_more(&events);
}

fn a_subscriber_is_required_only_if_asked_for(broker: &Broker) {
    let name = unique_event();
    let publisher = publisher(broker);
    publisher.publish(&name, &1).unwrap();
    let strict = publisher.with_mandatory(true);
    let error = strict.publish(&name, &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(
        error.to_string().contains(&format!("the event {name}")),
        "{error}"
    );
    let (sent, events) = unbounded();
    let _subscriber = subscriber(broker, &unique("one"))
        .on(&name, sending_to::<u64>(&sent))
        .start()
        .unwrap();
    strict.publish(&name, &2u64).unwrap();
    assert_eq!(recv_n(&events, 1), [2]);
}

fn the_wire_format_of_an_event(broker: &Broker) {
    let (name, queue) = (unique_event(), unique("peer"));
    let topology = Topology::new()
        .exchange("event.exchange", ExchangeKind::Topic)
        .queue(&queue)
        .bind(&queue, "event.exchange", &name);
    let peer = Link::open(broker, LinkSpec::new(topology).consume(&queue, 1)).unwrap();
    let options = PublishOptions::new().header("trace-id", "abc");
    publisher(broker)
        .publish_with(&name, &7u64, &options)
        .unwrap();
    let delivery = peer.recv_timeout(PATIENCE).expect("the event");
    let message = delivery.message();
    assert_eq!(
        (&*message.exchange, &*message.routing_key),
        ("event.exchange", &*name)
    );
    assert!(message.properties.persistent);
    assert_eq!(
        message.properties.content_type.as_deref(),
        Some("application/json")
    );
    let body = ServiceMessage::decode(&message.body).unwrap();
    assert_eq!(
        message.properties.message_id.as_deref(),
        Some(&*body.message_id)
    );
    assert_eq!(
        (&*body.source_service, &*body.target_service),
        ("order-service", "")
    );
    assert_eq!((&*body.action, body.reply_to.as_deref()), (&*name, None));
    assert_eq!(
        body.headers.get::<String>("trace-id").as_deref(),
        Some("abc")
    );
    assert_eq!(body.payload.decode::<u64>(), Ok(7));
    delivery.ack();
    // A peer's event with a reply queue: events are not answered.
    let (sent, events) = unbounded();
    let service = unique("one");
    let subscriber = subscriber(broker, &service)
        .on(&name, sending_to::<u64>(&sent))
        .start()
        .unwrap();
    let mut event = ServiceMessage::new("php-service", "", &*name, 8);
    event.reply_to = Some(queue.as_str().into());
    let event = Publication::new("event.exchange", &*name, event.encode().unwrap());
    peer.publish(event, PATIENCE).unwrap();
    assert_eq!(recv_n(&events, 1), [8]);
    let own = peer.recv_timeout(PATIENCE).expect("it has subscribed too");
    own.ack();
    subscriber.drain(PATIENCE).unwrap();
    // A reply would be in the queue before this.
    let mark = Publication::new("", queue.as_str(), b"mark".to_vec());
    peer.publish(mark, PATIENCE).unwrap();
    let next = peer.recv_timeout(PATIENCE).expect("the mark");
    assert_eq!(next.message().body, b"mark", "no reply");
}

fn many_are_published_at_once(broker: &Broker) {
    let (name, service) = (unique_event(), unique("many"));
    let (sent, events) = unbounded();
    let _subscriber = subscriber(broker, &service)
        .prefetch(100)
        .on(&name, sending_to(&sent))
        .start()
        .unwrap();
    let numbers: Vec<u64> = (0..1_000).collect();
    let outcomes = publisher(broker).publish_batch(&name, &numbers);
    assert_eq!(outcomes.len(), 1_000);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(sorted(recv_n(&events, 1_000)), numbers);
}

fn what_a_subscriber_holds_is_bounded(broker: &Broker) {
    let (name, service) = (unique_event(), unique("slow"));
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let (sent, begun) = unbounded();
    let slow = EventSubscriber::builder(broker, &service)
        .workers(2)
        .prefetch(3)
        .listen_with_context(&name, move |_, n: u64| {
            sent.send(n).unwrap();
            let _ = gate.recv();
        })
        .start()
        .unwrap();
    let numbers: Vec<u64> = (0..50).collect();
    for outcome in publisher(broker).publish_batch(&name, &numbers) {
        outcome.unwrap();
    }
    recv_n(&begun, 2);
    // All but three are the broker's, so another instance gets them.
    let (sent, events) = unbounded();
    let _fast = subscriber(broker, &service)
        .on(&name, sending_to::<u64>(&sent))
        .start()
        .unwrap();
    recv_n(&events, 47);
    drop(release);
    slow.shutdown(PATIENCE).unwrap();
}

fn handlers_may_call_and_publish(broker: &Broker) {
    let (name, next, service) = (unique_event(), unique_event(), unique("chain"));
    let doubler = unique("doubler");
    let _server = ServiceServer::builder(broker, &doubler)
        .respond("double", |n: u64| 2 * n)
        .start()
        .unwrap();
    let (sent, events) = unbounded();
    let publisher = publisher(broker);
    let _subscriber = subscriber(broker, &service)
        .on_with_context(&name, {
            let (publisher, next) = (publisher.clone(), next.clone());
            move |context: &Context<'_>, n: u64| -> Result<(), HandlerError> {
                assert_eq!(context.source_service(), "order-service");
                let twice: u64 = context.client()?.call(&doubler, "double", &n)?;
                Ok(publisher.publish(&next, &twice)?)
            }
        })
        .on_raw(&next, move |_: &Context<'_>, json: &str| {
            sent.send(json.to_owned())
        })
        .start()
        .unwrap();
    publisher.publish(&name, &21u64).unwrap();
    assert_eq!(recv_n(&events, 1), ["42"]);
}

fn names_are_checked(broker: &Broker) {
    let publisher = publisher(broker);
    let long = "x".repeat(256);
    for name in ["", "order.*", "#", &long] {
        let error = publisher.publish(name, &1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }
    assert_eq!(
        EventPublisher::new(broker, "").unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    let nothing = |_: u64| Ok::<_, HandlerError>(());
    let twice = subscriber(broker, "s")
        .on("a.b", nothing)
        .on("a.b", nothing)
        .start();
    assert!(twice.unwrap_err().to_string().contains("another name"));
    let error = subscriber(broker, "s")
        .on(&"x".repeat(250), nothing)
        .start();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
    // RabbitMQ drops line breaks from the names of queues.
    let error = subscriber(broker, "s").on("a\nb", nothing).start();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let error = subscriber(broker, "s")
        .workers(0)
        .on("a.b", nothing)
        .start();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let start = Instant::now();
    drop(subscriber(broker, &unique("idle")).start().unwrap());
    assert!(start.elapsed() < PATIENCE);
}
