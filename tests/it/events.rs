//! Events: who gets them, in which order, and what becomes of those that fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::message::ServiceMessage;
use coney::transport::{ExchangeKind, Link, LinkSpec, Topology};
use coney::{
    Broker, CallOptions, Context, DeadLetters, ErrorKind, EventPublisher, EventSubscriber,
    EventSubscriberBuilder, HandlerError, MemoryReplyStore, ServiceServer, Subscription,
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    every_group_gets_an_event_once,
    groups_get_what_happened_while_they_were_offline,
    patterns_pick_events,
    a_broadcast_reaches_every_instance,
    a_singleton_is_one_in_the_whole_system,
    what_fails_is_tried_again_and_kept_in_the_end,
    one_subscription_fails_and_the_other_does_not,
    a_failing_event_holds_up_no_worker,
    events_of_a_key_stay_in_order_whatever_fails,
    order_holds_over_several_instances,
    a_broadcast_that_fails_is_tried_again_here,
    a_repeated_event_is_handled_once,
    nobody_need_listen_unless_it_is_asked_for,
    the_envelope_is_the_contracts,
    many_are_published_at_once,
    what_a_subscriber_holds_is_bounded,
    shutdown_gives_back_what_was_not_begun,
    handlers_may_call_and_publish,
    names_are_checked,
);

const MS: Duration = Duration::from_millis(1);

fn publisher(broker: &Broker) -> EventPublisher {
    let publisher = EventPublisher::new(broker, "order-service").unwrap();
    publisher.with_timeout(PATIENCE)
}

/// A subscriber's builder that tries again soon.
fn subscriber(broker: &Broker, service: &str) -> EventSubscriberBuilder {
    EventSubscriber::builder(broker, service).retry_delays([20 * MS, 40 * MS])
}

/// A handler that passes on what it gets.
fn tell<T: Send + 'static>(told: &Sender<T>) -> impl Fn(T) -> Result<(), String> + use<T> {
    let told = told.clone();
    move |event| told.send(event).map_err(|_| "nobody listens".to_owned())
}

fn take<T>(events: &Receiver<T>, count: usize) -> Vec<T> {
    let next = |_| events.recv_timeout(PATIENCE).expect("another event");
    (0..count).map(next).collect()
}

fn sorted(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers
}

/// Nothing more comes.
fn is_all<T: std::fmt::Debug>(events: &Receiver<T>) {
    let more = events.recv_timeout(150 * MS);
    assert!(more.is_err(), "{more:?}");
}

/// Event names that no other test hears.
fn unique_event() -> String {
    unique("order").replace('-', ".")
}

fn every_group_gets_an_event_once(broker: &Broker) {
    let (name, one, two) = (unique_event(), unique("one"), unique("two"));
    let (told, of_one) = unbounded();
    let _ones = [(); 2].map(|()| {
        subscriber(broker, &one)
            .on(&name, tell(&told))
            .start()
            .unwrap()
    });
    let (told, of_two) = unbounded();
    let _two = subscriber(broker, &two)
        .on(&name, tell(&told))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..20u64 {
        publisher.publish(&name, &n).unwrap();
    }
    assert_eq!(sorted(take(&of_one, 20)), Vec::from_iter(0..20));
    assert_eq!(sorted(take(&of_two, 20)), Vec::from_iter(0..20));
    is_all(&of_one);
    is_all(&of_two);
}

fn groups_get_what_happened_while_they_were_offline(broker: &Broker) {
    let (name, service) = (unique_event(), unique("late"));
    let (told, events) = unbounded();
    let subscribe = || {
        subscriber(broker, &service)
            .on(&name, tell(&told))
            .start()
            .unwrap()
    };
    subscribe().shutdown(PATIENCE).unwrap();
    let publisher = publisher(broker);
    for n in 0..5u64 {
        publisher.publish(&name, &n).unwrap();
    }
    is_all(&events);
    let _back = subscribe();
    assert_eq!(sorted(take(&events, 5)), [0, 1, 2, 3, 4]);
}

fn patterns_pick_events(broker: &Broker) {
    let (source, service) = (unique("src"), unique("patterns"));
    let (told, events) = unbounded();
    let heard = |as_what: &'static str| {
        let told = told.clone();
        move |context: &Context<'_>, _: u64| {
            let event = context
                .action()
                .rsplit('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            told.send((as_what, event)).map_err(|_| "nobody listens")
        }
    };
    let _subscriber = subscriber(broker, &service)
        .on_with(&format!("{source}.*"), heard("one word"))
        .on_with(&format!("{source}.#"), heard("any"))
        .on_with(&format!("{source}.a"), heard("exactly"))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for name in ["a", "b", "b.c"] {
        publisher.publish(&format!("{source}.{name}"), &1).unwrap();
    }
    let mut heard = take(&events, 6);
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
    is_all(&events);
}

fn a_broadcast_reaches_every_instance(broker: &Broker) {
    let (name, service) = (unique_event(), unique("everybody"));
    let (told, events) = unbounded();
    let subscribe = |who: u64| {
        let told = told.clone();
        let heard = move |n: u64| told.send((who, n)).map_err(|_| "nobody listens");
        let broadcast = Subscription::to(&name, heard).broadcast();
        subscriber(broker, &service)
            .subscribe(broadcast)
            .start()
            .unwrap()
    };
    let first = subscribe(1);
    let _second = subscribe(2);
    publisher(broker).publish(&name, &7u64).unwrap();
    let mut heard = take(&events, 2);
    heard.sort_unstable();
    assert_eq!(heard, [(1, 7), (2, 7)]);
    first.shutdown(PATIENCE).unwrap();
    publisher(broker).publish(&name, &8u64).unwrap();
    assert_eq!(take(&events, 1), [(2, 8)]);
    is_all(&events);
}

fn a_singleton_is_one_in_the_whole_system(broker: &Broker) {
    let (name, report) = (unique_event(), unique("report"));
    let (told, events) = unbounded();
    let subscribe = |service: &str, who: u64| {
        let told = told.clone();
        let heard = move |n: u64| told.send((who, n)).map_err(|_| "nobody listens");
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
    assert!(take(&events, 10).iter().all(|(who, _)| *who == 1));
    first.shutdown(PATIENCE).unwrap();
    publisher.publish(&name, &10u64).unwrap();
    assert_eq!(take(&events, 1), [(2, 10)], "the next one");
}

/// The dead letters of a queue.
fn letters(broker: &Broker, queue: &str) -> Vec<coney::DeadLetter> {
    let dead = DeadLetters::open(broker).unwrap();
    let mut letters = dead.list(usize::MAX).unwrap();
    letters.retain(|letter| letter.queue() == queue);
    letters
}

fn what_fails_is_tried_again_and_kept_in_the_end(broker: &Broker) {
    let (name, service) = (unique_event(), unique("failing"));
    let (told, attempts) = unbounded();
    let _subscriber = subscriber(broker, &service)
        .on_with(&name, move |context: &Context<'_>, n: u64| {
            told.send((n, context.attempt())).unwrap();
            match n {
                1 => Err(HandlerError::new(format!("attempt {}", context.attempt()))),
                2 if context.attempt() == 1 => Err(HandlerError::new("only once")),
                3 => Err(HandlerError::new("for good").do_not_retry()),
                4 => panic!("as the test wants it"),
                _ => Ok(()),
            }
        })
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..5u64 {
        publisher.publish(&name, &n).unwrap();
    }
    publisher.publish(&name, "not a number").unwrap();
    let mut seen = take(&attempts, 10);
    seen.sort_unstable();
    let wanted = [
        (0, 1),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
        (3, 1),
        (4, 1),
        (4, 2),
        (4, 3),
    ];
    assert_eq!(seen, wanted);
    let queue = format!("event.{service}.{name}");
    eventually("four are kept", || letters(broker, &queue).len() == 4);
    for letter in letters(broker, &queue) {
        assert_eq!(letter.action(), Some(&*name));
        let last = letter.last_error().unwrap();
        match letter.payload::<u64>() {
            Ok(1) => {
                assert_eq!(
                    (letter.reason(), letter.attempts()),
                    ("retries_exhausted", 3)
                );
                assert_eq!(
                    (letter.first_error(), last),
                    (Some("attempt 1"), "attempt 3")
                );
            }
            Ok(3) => assert_eq!((letter.reason(), last), ("rejected", "for good")),
            Ok(4) => assert!(last.contains("panicked"), "{last}"),
            Ok(other) => panic!("{other}"),
            Err(_) => assert!(last.contains("cannot decode"), "{last}"),
        }
    }
    let purged = DeadLetters::open(broker).unwrap();
    purged.purge(|letter| letter.queue() == queue).unwrap();
}

fn one_subscription_fails_and_the_other_does_not(broker: &Broker) {
    let (name, service) = (unique_event(), unique("both"));
    let (told, events) = unbounded();
    let failures = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&failures);
    let _subscriber = subscriber(broker, &service)
        .on(&name, tell::<u64>(&told))
        .subscribe(
            Subscription::to(&name, move |_: u64| {
                match counted.fetch_add(1, Ordering::SeqCst) {
                    0 => Err("the first time"),
                    _ => Ok(()),
                }
            })
            .named("audit"),
        )
        .start()
        .unwrap();
    publisher(broker).publish(&name, &1u64).unwrap();
    assert_eq!(take(&events, 1), [1]);
    eventually("the other is tried again", || {
        failures.load(Ordering::SeqCst) == 2
    });
    is_all(&events);
}

fn a_failing_event_holds_up_no_worker(broker: &Broker) {
    let (name, service) = (unique_event(), unique("busy"));
    let (told, events) = unbounded();
    let _subscriber = EventSubscriber::builder(broker, &service)
        .workers(1)
        .prefetch(1)
        .retry_delays([3_600_000 * MS])
        .on(&name, move |n: u64| {
            told.send(n).unwrap();
            if n == 0 { Err("later") } else { Ok(()) }
        })
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..3u64 {
        publisher.publish(&name, &n).unwrap();
    }
    assert_eq!(take(&events, 3), [0, 1, 2]);
}

/// Publishes so many events to each of several keys, turn by turn.
fn publish_keyed(broker: &Broker, name: &str, keys: u64, each: u64) {
    let publisher = publisher(broker);
    let events: Vec<(u64, u64)> = (0..each)
        .flat_map(|n| (0..keys).map(move |key| (key, n)))
        .collect();
    for outcome in publisher.publish_batch(name, &events) {
        outcome.unwrap();
    }
}

fn events_of_a_key_stay_in_order_whatever_fails(broker: &Broker) {
    let (name, service) = (unique_event(), unique("ordered"));
    let seen: Arc<Mutex<HashMap<u64, Vec<(u64, u32)>>>> = Arc::default();
    let begun = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let ordered = {
        let (seen, begun, most) = (Arc::clone(&seen), Arc::clone(&begun), Arc::clone(&most));
        let handle = move |context: &Context<'_>, (key, n): (u64, u64)| {
            most.fetch_max(begun.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            seen.lock()
                .entry(key)
                .or_default()
                .push((n, context.attempt()));
            thread::sleep(MS);
            begun.fetch_sub(1, Ordering::SeqCst);
            match (key, n, context.attempt()) {
                (1, 3, 1 | 2) | (2, 5, 1) => Err("not yet"),
                (3, 4, _) => Err("never"),
                _ => Ok(()),
            }
        };
        Subscription::to_with(&name, handle).ordered_by(|(key, _): &(u64, u64)| *key)
    };
    let _subscriber = subscriber(broker, &service)
        .prefetch(100)
        .subscribe(ordered)
        .start()
        .unwrap();
    publish_keyed(broker, &name, 5, 20);
    let count = |seen: &HashMap<u64, Vec<_>>| seen.values().map(Vec::len).sum::<usize>();
    // Two and one failures that are mended, and one of three attempts.
    eventually("all are handled", || count(&seen.lock()) == 100 + 3 + 2);
    let plain = |n: u64| (n, 1);
    for (key, events) in &*seen.lock() {
        let mut wanted: Vec<(u64, u32)> = (0..20).map(plain).collect();
        let tried_again: &[(u64, u32)] = match key {
            1 => &[(3, 2), (3, 3)],
            2 => &[(5, 2)],
            3 => &[(4, 2), (4, 3)],
            _ => &[],
        };
        wanted.extend(tried_again);
        wanted.sort_unstable();
        assert_eq!(*events, wanted, "key {key}");
    }
    assert!(most.load(Ordering::SeqCst) > 1, "keys run side by side");
    let queue = format!("event.{service}.{name}");
    eventually("one is kept", || letters(broker, &queue).len() == 1);
    let letter = letters(broker, &queue).remove(0);
    assert_eq!(
        (letter.attempts(), letter.first_error()),
        (3, Some("never"))
    );
    let dead = DeadLetters::open(broker).unwrap();
    dead.purge(|letter| letter.queue() == queue).unwrap();
}

fn order_holds_over_several_instances(broker: &Broker) {
    let (name, service) = (unique_event(), unique("ordered"));
    let seen: Arc<Mutex<HashMap<u64, Vec<u64>>>> = Arc::default();
    let subscribe = || {
        let seen = Arc::clone(&seen);
        let handle = move |(key, n): (u64, u64)| {
            seen.lock().entry(key).or_default().push(n);
            thread::sleep(MS);
            Ok::<_, HandlerError>(())
        };
        let ordered = Subscription::to(&name, handle).ordered_by(|(key, _): &(u64, u64)| *key);
        subscriber(broker, &service)
            .prefetch(20)
            .subscribe(ordered)
            .start()
            .unwrap()
    };
    let first = subscribe();
    let _second = subscribe();
    publish_keyed(broker, &name, 4, 50);
    eventually("it has begun", || seen.lock().len() == 4);
    // In the middle of it another takes over.
    first.shutdown(PATIENCE).unwrap();
    let count = |seen: &HashMap<u64, Vec<_>>| seen.values().map(Vec::len).sum::<usize>();
    eventually("all are handled", || count(&seen.lock()) >= 200);
    for (key, events) in &*seen.lock() {
        assert!(events.is_sorted(), "key {key}: {events:?}");
    }
}

fn a_broadcast_that_fails_is_tried_again_here(broker: &Broker) {
    let (name, service) = (unique_event(), unique("everybody"));
    let (told, attempts) = unbounded();
    let failing = Subscription::to_with(&name, move |context: &Context<'_>, n: u64| {
        told.send((n, context.attempt())).unwrap();
        if context.attempt() < 3 {
            Err("not yet")
        } else {
            Ok(())
        }
    });
    let _subscriber = subscriber(broker, &service)
        .subscribe(failing.broadcast())
        .start()
        .unwrap();
    publisher(broker).publish(&name, &7u64).unwrap();
    assert_eq!(take(&attempts, 3), [(7, 1), (7, 2), (7, 3)]);
    is_all(&attempts);
}

fn a_repeated_event_is_handled_once(broker: &Broker) {
    let (name, service) = (unique_event(), unique("once"));
    let (told, events) = unbounded();
    let _subscriber = subscriber(broker, &service)
        .deduplicate(Arc::new(MemoryReplyStore::new(100)), 60_000 * MS)
        .on(&name, tell::<u64>(&told))
        .subscribe(Subscription::to(&name, tell::<u64>(&told)).named("too"))
        .start()
        .unwrap();
    let options = CallOptions::new()
        .message_id("evt-1")
        .header("trace-id", "abc");
    for _ in 0..3 {
        publisher(broker)
            .publish_with(&name, &7u64, &options)
            .unwrap();
    }
    assert_eq!(take(&events, 2), [7, 7], "once for each subscription");
    is_all(&events);
}

fn nobody_need_listen_unless_it_is_asked_for(broker: &Broker) {
    let name = unique_event();
    let publisher = publisher(broker);
    publisher.publish(&name, &1).unwrap();
    let strict = publisher.with_required_subscriber(true);
    let error = strict.publish(&name, &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(
        error.to_string().contains(&format!("the event {name}")),
        "{error}"
    );
    let (told, events) = unbounded();
    let _subscriber = subscriber(broker, &unique("one"))
        .on(&name, tell::<u64>(&told))
        .start()
        .unwrap();
    strict.publish(&name, &2u64).unwrap();
    assert_eq!(take(&events, 1), [2]);
}

fn the_envelope_is_the_contracts(broker: &Broker) {
    let (name, queue) = (unique_event(), unique("peer"));
    let topology = Topology::default()
        .exchange("event.exchange", ExchangeKind::Topic)
        .queue(&queue)
        .bind(&queue, "event.exchange", &name);
    let peer = Link::open(broker, LinkSpec::new(topology).consume(&queue, 1)).unwrap();
    let options = CallOptions::new().header("trace-id", "abc");
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
    // A peer's event, which says where to reply: events are not answered.
    let (told, events) = unbounded();
    let service = unique("one");
    let _subscriber = subscriber(broker, &service)
        .on(&name, tell::<u64>(&told))
        .start()
        .unwrap();
    let mut event = ServiceMessage::new("php-service", "", &*name, 8);
    event.reply_to = Some(queue.as_str().into());
    let event =
        coney::transport::Publication::new("event.exchange", &*name, event.encode().unwrap());
    peer.publish(event, PATIENCE).unwrap();
    assert_eq!(take(&events, 1), [8]);
    let own = peer.recv_timeout(PATIENCE).expect("it has subscribed too");
    own.ack();
    assert!(peer.recv_timeout(150 * MS).is_none(), "no reply");
}

fn many_are_published_at_once(broker: &Broker) {
    let (name, service) = (unique_event(), unique("many"));
    let (told, events) = unbounded();
    let _subscriber = subscriber(broker, &service)
        .prefetch(100)
        .on(&name, tell(&told))
        .start()
        .unwrap();
    let numbers: Vec<u64> = (0..1_000).collect();
    let outcomes = publisher(broker).publish_batch(&name, &numbers);
    assert_eq!(outcomes.len(), 1_000);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(sorted(take(&events, 1_000)), numbers);
}

fn what_a_subscriber_holds_is_bounded(broker: &Broker) {
    let (name, service) = (unique_event(), unique("slow"));
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let (told, begun) = unbounded();
    let slow = EventSubscriber::builder(broker, &service)
        .workers(2)
        .prefetch(3)
        .on(&name, move |n: u64| {
            told.send(n).unwrap();
            let _ = gate.recv();
            Ok::<_, HandlerError>(())
        })
        .start()
        .unwrap();
    let numbers: Vec<u64> = (0..50).collect();
    for outcome in publisher(broker).publish_batch(&name, &numbers) {
        outcome.unwrap();
    }
    take(&begun, 2);
    // All but three are the broker's, so another instance gets them.
    let (told, events) = unbounded();
    let _fast = subscriber(broker, &service)
        .on(&name, tell::<u64>(&told))
        .start()
        .unwrap();
    take(&events, 47);
    drop(release);
    slow.shutdown(PATIENCE).unwrap();
}

fn shutdown_gives_back_what_was_not_begun(broker: &Broker) {
    for is_ordered in [false, true] {
        let (name, service) = (unique_event(), unique("leaving"));
        let (told, begun) = unbounded();
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        let handler = move |n: u64| {
            told.send(n).unwrap();
            let _ = gate.recv();
            Ok::<_, HandlerError>(())
        };
        let mut subscription = Subscription::to(&name, handler);
        if is_ordered {
            subscription = subscription.ordered_by(|_: &u64| "all the same");
        }
        let leaving = EventSubscriber::builder(broker, &service)
            .workers(1)
            .subscribe(subscription)
            .start()
            .unwrap();
        for n in 0..5u64 {
            publisher(broker).publish(&name, &n).unwrap();
        }
        assert_eq!(take(&begun, 1), [0]);
        let error = thread::scope(|scope| {
            let stopping = scope.spawn(|| leaving.shutdown(300 * MS));
            stopping.join().unwrap()
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(release);
        leaving.shutdown(PATIENCE).unwrap();
        is_all(&begun);
        let (told, events) = unbounded();
        let mut next = Subscription::to(&name, tell::<u64>(&told));
        if is_ordered {
            next = next.ordered_by(|_: &u64| "all the same");
        }
        let _next = subscriber(broker, &service)
            .subscribe(next)
            .start()
            .unwrap();
        // The one whose handler ran too long may come again.
        let mut rest = take(&events, 4);
        while let Ok(more) = events.recv_timeout(150 * MS) {
            rest.push(more);
        }
        let mut numbers = sorted(rest.clone());
        numbers.retain(|n| *n > 0);
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert!(!is_ordered || rest.is_sorted(), "{rest:?}");
    }
}

fn handlers_may_call_and_publish(broker: &Broker) {
    let (name, next, service) = (unique_event(), unique_event(), unique("chain"));
    let doubler = unique("doubler");
    let _server = ServiceServer::builder(broker, &doubler)
        .handler("double", |n: u64| Ok::<_, HandlerError>(2 * n))
        .start()
        .unwrap();
    let (told, events) = unbounded();
    let publisher = publisher(broker);
    let _subscriber = subscriber(broker, &service)
        .on_with(&name, {
            let (publisher, next) = (publisher.clone(), next.clone());
            move |context: &Context<'_>, n: u64| -> Result<(), HandlerError> {
                assert_eq!(context.source_service(), "order-service");
                let twice: u64 = context.client()?.call(&doubler, "double", &n)?;
                Ok(publisher.publish(&next, &twice)?)
            }
        })
        .on_raw(&next, move |_: &Context<'_>, json: &str| {
            told.send(json.to_owned())
        })
        .start()
        .unwrap();
    publisher.publish(&name, &21u64).unwrap();
    assert_eq!(take(&events, 1), ["42"]);
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
    let error = subscriber(broker, "s")
        .workers(0)
        .on("a.b", nothing)
        .start();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let start = Instant::now();
    drop(subscriber(broker, &unique("idle")).start().unwrap());
    assert!(start.elapsed() < PATIENCE);
}
