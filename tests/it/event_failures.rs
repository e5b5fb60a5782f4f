//! Events whose handlers fail: their order, their retries and their dead letters.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::{Broker, Context, DeadLetters, ErrorKind, EventSubscriber, HandlerError, Subscription};
use crossbeam_channel::unbounded;
use parking_lot::Mutex;

use crate::support::events::{
    assert_no_more, letters, publisher, recv_n, sending_to, sorted, subscriber, unique_event,
};
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    failed_events_are_retried_and_dead_lettered,
    one_subscription_fails_and_the_other_does_not,
    a_failing_event_holds_up_no_worker,
    events_of_a_key_stay_in_order_whatever_fails,
    events_of_a_key_stay_in_order_over_several_instances,
    a_failed_broadcast_is_retried_locally,
    shutdown_requeues_unstarted_events,
);

const MS: Duration = Duration::from_millis(1);

/// Events, with the attempt of each.
type Attempts = Vec<(u64, u32)>;

fn failed_events_are_retried_and_dead_lettered(broker: &Broker) {
    let (name, service) = (unique_event(), unique("failing"));
    let (sent, attempts) = unbounded();
    let _subscriber = subscriber(broker, &service)
        .on_with_context(&name, move |context: &Context<'_>, n: u64| {
            sent.send((n, context.attempt())).unwrap();
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
    let mut seen = recv_n(&attempts, 10);
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
    let (sent, events) = unbounded();
    let failures = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&failures);
    let subscriber = subscriber(broker, &service)
        .on(&name, sending_to::<u64>(&sent))
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
    assert_eq!(recv_n(&events, 1), [1]);
    eventually("the other is tried again", || {
        failures.load(Ordering::SeqCst) == 2
    });
    subscriber.drain(PATIENCE).unwrap();
    assert_no_more(&events);
}

fn a_failing_event_holds_up_no_worker(broker: &Broker) {
    let (name, service) = (unique_event(), unique("busy"));
    let (sent, events) = unbounded();
    let _subscriber = EventSubscriber::builder(broker, &service)
        .workers(1)
        .prefetch(1)
        .retry_delays([3_600_000 * MS])
        .on(&name, move |n: u64| {
            sent.send(n).unwrap();
            if n == 0 { Err("later") } else { Ok(()) }
        })
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..3u64 {
        publisher.publish(&name, &n).unwrap();
    }
    assert_eq!(recv_n(&events, 3), [0, 1, 2]);
}

/// Publishes this number of events to each of several keys, in turn.
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
    let seen: Arc<Mutex<HashMap<u64, Attempts>>> = Arc::default();
    let (begun, of_another_key) = unbounded();
    let (met, side_by_side) = unbounded();
    let ordered = {
        let seen = Arc::clone(&seen);
        let handle = move |context: &Context<'_>, (key, n): (u64, u64)| {
            seen.lock()
                .entry(key)
                .or_default()
                .push((n, context.attempt()));
            // The first event of all ends when one of another key has begun.
            match (key, n) {
                (0, 0) => met.send(of_another_key.recv_timeout(PATIENCE)).unwrap(),
                (1, 0) => begun.send(()).unwrap(),
                _ => {}
            }
            match (key, n, context.attempt()) {
                (1, 3, 1 | 2) | (2, 5, 1) => Err("not yet"),
                (3, 4, _) => Err("never"),
                _ => Ok(()),
            }
        };
        Subscription::to_with_context(&name, handle).ordered_by(|(key, _): &(u64, u64)| *key)
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
    assert_eq!(recv_n(&side_by_side, 1), [Ok(())], "keys run side by side");
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

fn events_of_a_key_stay_in_order_over_several_instances(broker: &Broker) {
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
    // Another instance takes over before the end.
    first.shutdown(PATIENCE).unwrap();
    let count = |seen: &HashMap<u64, Vec<_>>| seen.values().map(Vec::len).sum::<usize>();
    eventually("all are handled", || count(&seen.lock()) >= 200);
    for (key, events) in &*seen.lock() {
        assert!(events.is_sorted(), "key {key}: {events:?}");
    }
}

fn a_failed_broadcast_is_retried_locally(broker: &Broker) {
    let (name, service) = (unique_event(), unique("all"));
    let (sent, attempts) = unbounded();
    let failing = Subscription::to_with_context(&name, move |context: &Context<'_>, n: u64| {
        sent.send((n, context.attempt())).unwrap();
        if context.attempt() < 3 {
            Err("not yet")
        } else {
            Ok(())
        }
    });
    let subscriber = subscriber(broker, &service)
        .subscribe(failing.broadcast())
        .start()
        .unwrap();
    publisher(broker).publish(&name, &7u64).unwrap();
    assert_eq!(recv_n(&attempts, 3), [(7, 1), (7, 2), (7, 3)]);
    subscriber.shutdown(PATIENCE).unwrap();
    assert_no_more(&attempts);
}

fn shutdown_requeues_unstarted_events(broker: &Broker) {
    for is_ordered in [false, true] {
        let (name, service) = (unique_event(), unique("leaving"));
        let (sent, begun) = unbounded();
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        let handler = move |n: u64| {
            sent.send(n).unwrap();
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
        assert_eq!(recv_n(&begun, 1), [0]);
        let error = thread::scope(|scope| {
            let stopping = scope.spawn(|| leaving.shutdown(300 * MS));
            stopping.join().unwrap()
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(release);
        leaving.shutdown(PATIENCE).unwrap();
        assert_no_more(&begun);
        let (sent, events) = unbounded();
        let mut next = Subscription::to(&name, sending_to::<u64>(&sent));
        if is_ordered {
            next = next.ordered_by(|_: &u64| "all the same");
        }
        let next = subscriber(broker, &service)
            .subscribe(next)
            .start()
            .unwrap();
        // The one whose handler ran too long may come again.
        next.drain(PATIENCE).unwrap();
        let rest: Vec<u64> = events.try_iter().collect();
        let mut numbers = sorted(rest.clone());
        numbers.retain(|n| *n > 0);
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert!(!is_ordered || rest.is_sorted(), "{rest:?}");
    }
}
