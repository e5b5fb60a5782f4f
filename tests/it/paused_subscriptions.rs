//! Subscriptions that pause while too many attempts fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use coney::server::PauseOnFailures;
use coney::{Broker, ErrorKind, EventSubscriber, Subscription};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::events::{
    assert_no_more, publisher, recv_n, sending_to, sorted, subscriber, unique_event,
};
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    a_subscription_pauses_until_its_handler_works,
    a_paused_subscription_leaves_its_events_to_other_instances,
    ordered_events_keep_their_order_over_a_pause,
    a_broadcast_misses_no_event_during_a_pause,
    a_paused_subscriber_shuts_down,
);

const MS: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A handler that fails while a flag is not set.
#[derive(Clone, Default)]
struct Unsteady {
    works: Arc<AtomicBool>,
    attempts: Arc<AtomicUsize>,
}

impl Unsteady {
    /// Returns a handler, and the events that it has handled.
    fn handler(
        &self,
    ) -> (
        impl Fn(u64) -> Result<(), &'static str> + use<>,
        Receiver<u64>,
    ) {
        let (it, (sent, handled)) = (self.clone(), unbounded());
        let handler = move |n| {
            it.attempts.fetch_add(1, Ordering::SeqCst);
            match it.works.load(Ordering::SeqCst) {
                true => sent.send(n).map_err(|_| "disconnected"),
                false => Err("no network"),
            }
        };
        (handler, handled)
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    fn repair(&self) {
        self.works.store(true, Ordering::SeqCst);
    }
}

fn pause(length: Duration) -> PauseOnFailures {
    PauseOnFailures::new().minimum_attempts(3).pause_for(length)
}

/// Waits for a pause, and returns its reason.
fn wait_for_pause(subscriber: &EventSubscriber) -> String {
    let mut reason = None;
    eventually("it pauses", || {
        let state = subscriber.state();
        assert_eq!(state.is_healthy(), state.paused.is_empty());
        reason = state.paused.into_iter().next();
        reason.is_some()
    });
    reason.unwrap_or_default()
}

fn wait_for_consumers(broker: &Broker, queue: &str, consumers: usize) {
    eventually("the queue has so many consumers", || {
        broker.queue_depth(queue).unwrap().consumers == consumers
    });
}

fn a_subscription_pauses_until_its_handler_works(broker: &Broker) {
    let ([failing, fine], service) = ([0; 2].map(|_| unique_event()), unique("s"));
    let (unsteady, (sent, others)) = (Unsteady::default(), unbounded::<u64>());
    let (handler, handled) = unsteady.handler();
    let subscriber = EventSubscriber::builder(broker, &service)
        .subscribe(Subscription::to(&failing, handler).named("failing"))
        .on(&fine, sending_to(&sent))
        .workers(2)
        .retry_delays([10 * MS; 20])
        .pause_on_failures(pause(500 * MS))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..10u64 {
        publisher.publish(&failing, &n).unwrap();
    }
    let queue = format!("event.{service}.failing");
    let reason = wait_for_pause(&subscriber);
    assert!(
        reason.starts_with(&format!("{queue}: too many failures: ")),
        "{reason}"
    );
    wait_for_consumers(broker, &queue, 0);
    publisher.publish(&fine, &100).unwrap();
    assert_eq!(recv_n(&others, 1), [100]);
    let before = unsteady.attempts();
    eventually("one more attempt pauses it again", || {
        let paused = subscriber.state().paused;
        unsteady.attempts() > before && paused.iter().any(|it| it.contains("1 of 1 attempts"))
    });
    unsteady.repair();
    assert_eq!(sorted(recv_n(&handled, 10)), Vec::from_iter(0..10));
    eventually("it is healthy", || subscriber.state().is_healthy());
    subscriber.drain(PATIENCE).unwrap();
    assert_no_more(&handled);
}

fn a_paused_subscription_leaves_its_events_to_other_instances(broker: &Broker) {
    let (event, service, unsteady) = (unique_event(), unique("s"), Unsteady::default());
    let (handler, _handled) = unsteady.handler();
    let failing = subscriber(broker, &service)
        .subscribe(Subscription::to(&event, handler).named("n"))
        .retry_delays([10 * MS; 20])
        .pause_on_failures(pause(DAY))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..20u64 {
        publisher.publish(&event, &n).unwrap();
    }
    wait_for_pause(&failing);
    let queue = format!("event.{service}.n");
    wait_for_consumers(broker, &queue, 0);
    let (sent, handled) = unbounded();
    let working = subscriber(broker, &service)
        .subscribe(Subscription::to(&event, sending_to(&sent)).named("n"))
        .start()
        .unwrap();
    assert_eq!(sorted(recv_n(&handled, 20)), Vec::from_iter(0..20));
    let before = unsteady.attempts();
    for n in 20..40u64 {
        publisher.publish(&event, &n).unwrap();
    }
    assert_eq!(sorted(recv_n(&handled, 20)), Vec::from_iter(20..40));
    assert_eq!(unsteady.attempts(), before);
    working.drain(PATIENCE).unwrap();
    failing.shutdown(PATIENCE).unwrap();
}

fn ordered_events_keep_their_order_over_a_pause(broker: &Broker) {
    let (event, service, unsteady) = (unique_event(), unique("s"), Unsteady::default());
    let (handler, handled) = unsteady.handler();
    let subscription = Subscription::to(&event, handler)
        .named("n")
        .ordered_by(|n: &u64| n % 2)
        .pause_on_failures(pause(300 * MS));
    let first = subscriber(broker, &service)
        .subscribe(subscription)
        .retry_delays([10 * MS; 20])
        .start()
        .unwrap();
    let (sent, of_next) = unbounded();
    let next = Subscription::to(&event, sending_to(&sent)).named("n");
    let next = subscriber(broker, &service)
        .subscribe(next.ordered_by(|n: &u64| n % 2))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..30u64 {
        publisher.publish(&event, &n).unwrap();
    }
    wait_for_pause(&first);
    let before = unsteady.attempts();
    eventually("an attempt on trial", || unsteady.attempts() > before);
    unsteady.repair();
    let seen = recv_n(&handled, 30);
    for key in [0, 1] {
        let of_key: Vec<u64> = seen.iter().copied().filter(|n| n % 2 == key).collect();
        assert_eq!(of_key, Vec::from_iter((key..30).step_by(2)));
    }
    // Its turn never passed on.
    assert_no_more(&of_next);
    eventually("it is healthy", || first.state().is_healthy());
    first.shutdown(PATIENCE).unwrap();
    publisher.publish(&event, &30).unwrap();
    assert_eq!(recv_n(&of_next, 1), [30]);
    next.shutdown(PATIENCE).unwrap();
}

fn a_broadcast_misses_no_event_during_a_pause(broker: &Broker) {
    let (event, unsteady) = (unique_event(), Unsteady::default());
    let (handler, handled) = unsteady.handler();
    let subscriber = subscriber(broker, &unique("s"))
        .subscribe(Subscription::to(&event, handler).broadcast())
        .retry_delays([10 * MS; 20])
        .pause_on_failures(pause(300 * MS))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..3u64 {
        publisher.publish(&event, &n).unwrap();
    }
    wait_for_pause(&subscriber);
    for n in 3..40u64 {
        publisher.publish(&event, &n).unwrap();
    }
    unsteady.repair();
    assert_eq!(sorted(recv_n(&handled, 40)), Vec::from_iter(0..40));
    subscriber.shutdown(PATIENCE).unwrap();
    assert_no_more(&handled);
}

fn a_paused_subscriber_shuts_down(broker: &Broker) {
    for is_ordered in [false, true] {
        let (event, service, unsteady) = (unique_event(), unique("s"), Unsteady::default());
        let (handler, _handled) = unsteady.handler();
        let (sent, handled) = unbounded();
        let failing = Subscription::to(&event, handler).named("n");
        let working = Subscription::to(&event, sending_to(&sent)).named("n");
        let [failing, working] = match is_ordered {
            true => [failing, working].map(|it| it.ordered_by(|n: &u64| *n)),
            false => [failing, working],
        };
        let length = 25 * 60 * 1_000 * MS;
        let failing = subscriber(broker, &service)
            .subscribe(failing.pause_on_failures(pause(length)))
            .retry_delays([10 * MS; 20])
            .start()
            .unwrap();
        let publisher = publisher(broker);
        for n in 0..20u64 {
            publisher.publish(&event, &n).unwrap();
        }
        wait_for_pause(&failing);
        failing.shutdown(PATIENCE).unwrap();
        let _working = subscriber(broker, &service)
            .subscribe(working)
            .start()
            .unwrap();
        let all = sorted(recv_n(&handled, 20));
        assert_eq!(all, Vec::from_iter(0..20), "ordered: {is_ordered}");
    }
}

#[test]
fn events_that_wait_in_the_process_pause_for_at_most_25_minutes() {
    let builder = |subscription| {
        subscriber(&Broker::memory(), "mailer")
            .subscribe(subscription)
            .pause_on_failures(pause(DAY))
    };
    let subscription = || Subscription::listen("order.paid", |_: u64| ());
    let error = builder(subscription().broadcast()).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("25 minutes"), "{error}");
    assert!(builder(subscription()).start().is_ok());
    let own = subscription().broadcast().pause_on_failures(pause(MS));
    assert!(builder(own).start().is_ok());
    let invalid = subscription().pause_on_failures(pause(Duration::ZERO));
    let error = builder(invalid).start().unwrap_err();
    assert!(error.to_string().contains("\"order.paid\""), "{error}");
}
