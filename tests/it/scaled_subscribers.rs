//! The workers of subscribers: their number, the bounds of subscriptions, and overdue handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coney::server::Scaling;
use coney::{Broker, Context, ErrorKind, Subscription};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::support::events::{
    assert_no_more, publisher, recv_n, sending_to, sorted, subscriber, unique_event,
};
use crate::support::{PATIENCE, eventually, on_both, unique};

on_both!(
    workers_are_added_while_events_wait_and_end_when_idle,
    workers_are_added_for_broadcasts,
    a_key_stays_with_one_worker_at_a_time,
    a_bound_leaves_workers_to_other_subscriptions,
    a_bound_leaves_events_to_other_instances,
    an_overdue_handler_is_shown_and_its_worker_replaced,
);

const MS: Duration = Duration::from_millis(1);

/// Settings with which any wait adds workers, and a moment without work ends them.
fn eager() -> Scaling {
    Scaling::new()
        .target_wait(Duration::from_nanos(1))
        .idle(50 * MS)
}

/// A gate at which handlers wait, and the events that have entered it.
struct Gate {
    open: Sender<()>,
    pass: Receiver<()>,
    entering: Sender<u64>,
    entered: Receiver<u64>,
}

impl Gate {
    fn new() -> Self {
        let ((open, pass), (entering, entered)) = (bounded(0), unbounded());
        Self {
            open,
            pass,
            entering,
            entered,
        }
    }

    /// Returns a function that waits at the gate.
    fn wait(&self) -> impl Fn(u64) + Send + Sync + use<> {
        let (pass, entering) = (self.pass.clone(), self.entering.clone());
        move |event| {
            let _ = entering.send(event);
            let _ = pass.recv();
        }
    }

    fn let_in(&self, handlers: usize) {
        for _ in 0..handlers {
            self.open.send_timeout((), PATIENCE).unwrap();
        }
    }

    /// Lets in all that wait, and all that come.
    fn open(self) -> Receiver<u64> {
        self.entered
    }
}

fn workers_are_added_while_events_wait_and_end_when_idle(broker: &Broker) {
    let (event, gate, (sent, handled)) = (unique_event(), Gate::new(), unbounded());
    let wait = gate.wait();
    let subscriber = subscriber(broker, &unique("s"))
        .listen_with_context(&event, move |context: &Context<'_>, n: u64| {
            wait(n);
            sent.send((n, context.is_redelivered())).unwrap();
        })
        .workers(2..=8)
        .scaling(eager())
        .start()
        .unwrap();
    assert_eq!(subscriber.load().workers, 2);
    let publisher = publisher(broker);
    for n in 0..30u64 {
        publisher.publish(&event, &n).unwrap();
    }
    recv_n(&gate.entered, 2);
    gate.let_in(2); // now it is known that handlers take some time
    eventually("as many as may be handle events", || {
        let load = subscriber.load();
        (load.workers, load.running) == (8, 8)
    });
    assert!(subscriber.load().is_saturated);
    drop(gate.open());
    let mut all: Vec<(u64, bool)> = recv_n(&handled, 30);
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter((0..30).map(|n| (n, false))));
    eventually("idle workers end", || subscriber.load().workers == 2);
    subscriber.drain(PATIENCE).unwrap();
    assert_no_more(&handled);
}

/// The broker does not count the events in the queue of a broadcast.
fn workers_are_added_for_broadcasts(broker: &Broker) {
    let (event, gate, (sent, handled)) = (unique_event(), Gate::new(), unbounded());
    let wait = gate.wait();
    let handler = move |n: u64| {
        wait(n);
        sent.send(n).unwrap();
    };
    let subscriber = subscriber(broker, &unique("s"))
        .subscribe(Subscription::listen(&event, handler).broadcast())
        .workers(1..=4)
        .scaling(eager())
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..12u64 {
        publisher.publish(&event, &n).unwrap();
    }
    recv_n(&gate.entered, 1);
    gate.let_in(1);
    eventually("as many as may be handle events", || {
        subscriber.load().running == 4
    });
    drop(gate.open());
    assert_eq!(sorted(recv_n(&handled, 12)), Vec::from_iter(0..12));
    subscriber.shutdown(PATIENCE).unwrap();
}

fn a_key_stays_with_one_worker_at_a_time(broker: &Broker) {
    const KEYS: u64 = 4;
    let (event, gate, (sent, handled)) = (unique_event(), Gate::new(), unbounded());
    let wait = gate.wait();
    let running: Arc<[AtomicUsize]> = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
    let handler = move |n: u64| {
        let of_key = &running[usize::try_from(n % KEYS).unwrap()];
        let others = of_key.fetch_add(1, Ordering::SeqCst);
        wait(n);
        of_key.fetch_sub(1, Ordering::SeqCst);
        sent.send((n, others)).unwrap();
    };
    let subscriber = subscriber(broker, &unique("s"))
        .subscribe(Subscription::listen(&event, handler).ordered_by(|n: &u64| n % KEYS))
        .workers(2..=8)
        .scaling(eager())
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..40u64 {
        publisher.publish(&event, &n).unwrap();
    }
    recv_n(&gate.entered, 2);
    gate.let_in(2);
    eventually("each key has a worker", || subscriber.load().running == 4);
    drop(gate.open());
    let mut by_key: HashMap<u64, Vec<u64>> = HashMap::new();
    for (n, others) in recv_n(&handled, 40) {
        assert_eq!(others, 0, "{n}");
        by_key.entry(n % KEYS).or_default().push(n);
    }
    for (key, seen) in by_key {
        let wanted: Vec<u64> = (0..40).filter(|n| n % KEYS == key).collect();
        assert_eq!(seen, wanted);
    }
    subscriber.shutdown(PATIENCE).unwrap();
}

fn a_bound_leaves_workers_to_other_subscriptions(broker: &Broker) {
    for way in ["group", "singleton", "broadcast", "ordered"] {
        let [bounded, free] = [0; 2].map(|_| unique_event());
        let (gate, (sent, handled)) = (Gate::new(), unbounded());
        let (wait, done) = (gate.wait(), sent.clone());
        let running = AtomicUsize::new(0);
        let most = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&most);
        let handler = move |n: u64| {
            seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            wait(n);
            running.fetch_sub(1, Ordering::SeqCst);
            done.send(n).unwrap();
        };
        let subscription = Subscription::listen(&bounded, handler).at_most(2);
        let subscription = match way {
            "group" => subscription,
            "singleton" => subscription.named(unique("single")).singleton(),
            "broadcast" => subscription.broadcast(),
            _ => subscription.ordered_by(|n: &u64| *n),
        };
        let subscriber = subscriber(broker, &unique("s"))
            .subscribe(subscription)
            .on(&free, sending_to(&sent))
            .workers(3)
            .start()
            .unwrap();
        let publisher = publisher(broker);
        for n in 0..8u64 {
            publisher.publish(&bounded, &n).unwrap();
        }
        recv_n(&gate.entered, 2);
        for n in 100..110u64 {
            publisher.publish(&free, &n).unwrap();
        }
        let others = sorted(recv_n(&handled, 10));
        assert_eq!(others, Vec::from_iter(100..110), "{way}");
        for _ in 2..8 {
            gate.let_in(1);
            recv_n(&handled, 1);
            recv_n(&gate.entered, 1);
        }
        drop(gate.open());
        recv_n(&handled, 2);
        subscriber.shutdown(PATIENCE).unwrap();
        assert_no_more(&handled);
        assert_eq!(most.load(Ordering::SeqCst), 2, "{way}");
    }
}

fn a_bound_leaves_events_to_other_instances(broker: &Broker) {
    let (event, service, gate) = (unique_event(), unique("s"), Gate::new());
    let wait = gate.wait();
    let subscriber = subscriber(broker, &service)
        .subscribe(Subscription::listen(&event, wait).named("n").at_most(2))
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..10u64 {
        publisher.publish(&event, &n).unwrap();
    }
    recv_n(&gate.entered, 2);
    let queue = format!("event.{service}.n");
    eventually("two more are sent ahead", || {
        broker.queue_depth(&queue).unwrap().messages == 6
    });
    drop(gate.open());
    subscriber.drain(PATIENCE).unwrap();
}

#[test]
fn a_bound_of_zero_is_refused() {
    let subscription = Subscription::listen("order.paid", |_: u64| ()).at_most(0);
    let builder = subscriber(&Broker::memory(), "billing").subscribe(subscription);
    let error = builder.start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let text = error.to_string();
    assert!(
        text.contains("billing's subscription \"order.paid\": at_most(0)"),
        "{text}"
    );
}

fn an_overdue_handler_is_shown_and_its_worker_replaced(broker: &Broker) {
    let (event, gate, (sent, handled)) = (unique_event(), Gate::new(), unbounded());
    let wait = gate.wait();
    let subscriber = subscriber(broker, &unique("s"))
        .listen(&event, move |n: u64| {
            if n == 0 {
                wait(n);
            }
            sent.send(n).unwrap();
        })
        .workers(1)
        .handler_timeout(50 * MS)
        .start()
        .unwrap();
    let publisher = publisher(broker);
    publisher.publish(&event, &0).unwrap();
    recv_n(&gate.entered, 1);
    publisher.publish(&event, &1).unwrap();
    assert_eq!(recv_n(&handled, 1), [1], "on the worker in its place");
    assert_eq!(subscriber.state().overdue_handlers, 1);
    assert!(!subscriber.state().is_healthy());
    let load = subscriber.load();
    assert_eq!((load.overdue, load.overdue_total), (1, 1));
    drop(gate.open());
    assert_eq!(recv_n(&handled, 1), [0]);
    eventually("one worker is left", || subscriber.load().workers == 1);
    assert!(subscriber.state().is_healthy());
    assert_eq!(subscriber.load().overdue_total, 1);
    publisher.publish(&event, &2).unwrap();
    assert_eq!(recv_n(&handled, 1), [2]);
    subscriber.shutdown(PATIENCE).unwrap();
}
