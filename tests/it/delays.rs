//! Delays: commands that are sent for later, handlers that name the time of the next attempt, and
//! retry delays of single actions and subscriptions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coney::transport::{Link, LinkSpec, Topology};
use coney::{
    Broker, Context, DeadLetters, ErrorKind, HandlerError, SendOptions, ServiceServer, Subscription,
};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::dead_letters::{dead_letter, letters_of, no_dead_letter};
use crate::support::events::{publisher, recv_n, subscriber, unique_event};
use crate::support::server::Server;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_command_is_not_handled_before_its_delay,
    a_delayed_command_waits_while_no_server_runs,
    delays_of_up_to_30_days_are_accepted,
    a_delayed_command_to_a_service_that_never_ran_fails,
    a_handlers_own_delay_is_used_and_counts_as_an_attempt,
    a_handlers_own_delay_adds_no_attempt,
    a_handlers_own_delay_holds_for_events_that_wait_in_the_process,
    an_action_has_retry_delays_of_its_own,
    a_subscription_has_retry_delays_of_its_own,
    drain_waits_for_a_handlers_own_delay,
);

const MS: Duration = Duration::from_millis(1);

/// The delay of retries that no test waits for.
const NEVER: Duration = Duration::from_secs(3_600);

fn after(delay: Duration) -> SendOptions {
    SendOptions::new().after(delay)
}

/// Starts a server whose action `work` reports the number of each request.
fn working(broker: &Broker, service: &str) -> (ServiceServer, Receiver<u64>) {
    let (done, numbers) = unbounded();
    let server = ServiceServer::builder(broker, service)
        .handler("work", move |n: u64| done.send(n))
        .start()
        .unwrap();
    (server, numbers)
}

fn a_command_is_not_handled_before_its_delay(broker: &Broker) {
    let service = unique("work");
    let (server, numbers) = working(broker, &service);
    let client = client(broker);
    let start = Instant::now();
    // The longest is sent first: none holds up another.
    for millis in [1_900, 700, 300, 1] {
        let delay = after(millis * MS);
        client.send_with(&service, "work", &millis, &delay).unwrap();
    }
    client
        .send_with(&service, "work", &0, &after(Duration::ZERO))
        .unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        let millis = numbers.recv_timeout(PATIENCE).unwrap();
        assert!(
            start.elapsed() >= u32::try_from(millis).unwrap() * MS,
            "{millis}"
        );
        seen.push(millis);
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 300, 700, 1_900]);
    server.drain(PATIENCE).unwrap();
    no_dead_letter(broker, &service);
}

fn a_delayed_command_waits_while_no_server_runs(broker: &Broker) {
    let service = unique("work");
    drop(working(broker, &service));
    let (start, client) = (Instant::now(), client(broker));
    client
        .send_with(&service, "work", &1, &after(600 * MS))
        .unwrap();
    let (_server, numbers) = working(broker, &service);
    assert_eq!(numbers.recv_timeout(PATIENCE), Ok(1));
    assert!(start.elapsed() >= 600 * MS);
}

fn delays_of_up_to_30_days_are_accepted(broker: &Broker) {
    let service = unique("work");
    let (_server, numbers) = working(broker, &service);
    let client = client(broker);
    let day = Duration::from_secs(24 * 60 * 60);
    let send = |delay| client.send_with(&service, "work", &1, &after(delay));
    send(30 * day).unwrap();
    send(20 * day).unwrap();
    send(10 * day).unwrap();
    let error = send(30 * day + MS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.is_safe_to_retry(), "{error}");
    let link = Link::open(broker, LinkSpec::new(Topology::new())).unwrap();
    let waiting = |level: u32| {
        let queue = format!("coney.delay.level.{level}");
        std::iter::from_fn(|| link.get(&queue, PATIENCE).unwrap())
            .map(|it| it.ack())
            .count()
    };
    assert_eq!((waiting(24), waiting(23)), (2, 1));
    assert!(numbers.is_empty());
}

fn a_delayed_command_to_a_service_that_never_ran_fails(broker: &Broker) {
    let client = client(broker);
    let service = unique("nowhere");
    let error = client
        .send_with(&service, "work", &1, &after(100 * MS))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    assert!(error.is_safe_to_retry(), "{error}");
    let (_server, numbers) = working(broker, &service);
    client
        .send_with(&service, "work", &2, &after(100 * MS))
        .unwrap();
    assert_eq!(numbers.recv_timeout(PATIENCE), Ok(2));
}

fn a_handlers_own_delay_is_used_and_counts_as_an_attempt(broker: &Broker) {
    let service = unique("work");
    let (ran, runs) = unbounded();
    let server = ServiceServer::builder(broker, &service)
        .retry_delays([NEVER, NEVER])
        .handler_with_context("work", move |context: &Context<'_>, _: u64| {
            ran.send((context.attempt(), Instant::now())).unwrap();
            match context.attempt() {
                1 => Err(HandlerError::new("not yet").retry_after(450 * MS)),
                2 => Err(HandlerError::new("not yet").retry_after(30 * MS)),
                _ => Ok(()),
            }
        })
        .start()
        .unwrap();
    client(broker).send(&service, "work", &1).unwrap();
    let [first, second, third] = [(); 3].map(|()| runs.recv_timeout(PATIENCE).unwrap());
    assert_eq!([first.0, second.0, third.0], [1, 2, 3]);
    assert!(second.1 - first.1 >= 450 * MS);
    assert!(third.1 - second.1 >= 30 * MS);
    server.drain(PATIENCE).unwrap();
    no_dead_letter(broker, &service);
}

fn a_handlers_own_delay_adds_no_attempt(broker: &Broker) {
    let service = unique("work");
    let server = ServiceServer::builder(broker, &service)
        .retry_delays([20 * MS])
        .handler("work", |_: u64| {
            Err::<(), _>(HandlerError::new("never").retry_after(120 * MS))
        })
        .start()
        .unwrap();
    client(broker).send(&service, "work", &1).unwrap();
    let letter = dead_letter(broker, &service);
    assert_eq!(
        (letter.reason(), letter.attempts()),
        ("retries_exhausted", 2)
    );
    let headers = &letter.properties().headers;
    assert!(
        headers
            .iter()
            .all(|(name, _)| !name.starts_with("coney-delay"))
    );
    server.drain(PATIENCE).unwrap();
}

fn a_handlers_own_delay_holds_for_events_that_wait_in_the_process(broker: &Broker) {
    let (event, ran) = (unique_event(), unbounded());
    let failing = |shared_as: &'static str| {
        let ran = ran.0.clone();
        Subscription::to_with_context(&event, move |context: &Context<'_>, _: u64| {
            ran.send((shared_as, context.attempt(), Instant::now()))
                .unwrap();
            match context.attempt() {
                1 => Err(HandlerError::new("not yet").retry_after(150 * MS)),
                _ => Ok(()),
            }
        })
    };
    let subscriber = subscriber(broker, &unique("one"))
        .retry_delays([Duration::from_secs(1_400)])
        .subscribe(failing("ordered").ordered_by(|n| *n))
        .subscribe(failing("broadcast").named("all").broadcast())
        .start()
        .unwrap();
    publisher(broker).publish(&event, &1).unwrap();
    let runs = recv_n(&ran.1, 4);
    for shared_as in ["ordered", "broadcast"] {
        let runs: Vec<_> = runs.iter().filter(|run| run.0 == shared_as).collect();
        assert_eq!((runs[0].1, runs[1].1), (1, 2));
        assert!(runs[1].2 - runs[0].2 >= 150 * MS);
    }
    subscriber.shutdown(PATIENCE).unwrap();
}

fn an_action_has_retry_delays_of_its_own(broker: &Broker) {
    let service = unique("work");
    let builder = || {
        let failing = |_: u64| Err::<(), _>("no luck");
        ServiceServer::builder(broker, &service)
            .retry_delays([NEVER])
            .handler("mail", failing)
            .handler("notify", failing)
            .retry_delays_of("mail", [10 * MS, 20 * MS])
            .retry_delays_of("notify", [])
    };
    let unknown = builder().retry_delays_of("male", [MS]).start().unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::InvalidConfig, "{unknown}");
    assert!(unknown.to_string().contains("\"male\""), "{unknown}");
    let too_long = builder().retry_delays_of("mail", [50 * 24 * NEVER]).start();
    assert_eq!(too_long.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let server = builder().start().unwrap();
    let client = client(broker);
    client.send(&service, "mail", &1).unwrap();
    client.send(&service, "notify", &1).unwrap();
    eventually("both have failed", || {
        letters_of(broker, &service).len() == 2
    });
    for letter in letters_of(broker, &service) {
        let attempts = if letter.action() == Some("mail") {
            3
        } else {
            1
        };
        assert_eq!(
            (letter.reason(), letter.attempts()),
            ("retries_exhausted", attempts)
        );
    }
    server.drain(PATIENCE).unwrap();
}

fn a_subscription_has_retry_delays_of_its_own(broker: &Broker) {
    let (event, service) = (unique_event(), unique("one"));
    let failing =
        |name: &str| Subscription::to(&event, |_: u64| Err::<(), _>("no luck")).named(name);
    let subscriber = subscriber(broker, &service)
        .retry_delays([NEVER])
        .subscribe(failing("shared").retry_delays([10 * MS, 20 * MS]))
        .subscribe(
            failing("ordered")
                .retry_delays([10 * MS])
                .ordered_by(|n| *n),
        )
        .start()
        .unwrap();
    publisher(broker).publish(&event, &1).unwrap();
    eventually("both have failed", || {
        letters_of(broker, &service).len() == 2
    });
    for letter in letters_of(broker, &service) {
        let attempts = if letter.queue().ends_with(".shared") {
            3
        } else {
            2
        };
        assert_eq!(letter.attempts(), attempts, "{letter:?}");
    }
    subscriber.drain(PATIENCE).unwrap();
    let too_long = Subscription::listen(&event, |_: u64| ())
        .broadcast()
        .retry_delays([NEVER]);
    let too_long = self::subscriber(broker, &service)
        .subscribe(too_long)
        .start();
    assert_eq!(too_long.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

fn drain_waits_for_a_handlers_own_delay(broker: &Broker) {
    let (service, is_first) = (unique("work"), AtomicBool::new(true));
    let (done, numbers) = unbounded();
    let server = ServiceServer::builder(broker, &service)
        .retry_delays([NEVER])
        .handler("work", move |n: u64| {
            if is_first.swap(false, Ordering::SeqCst) {
                return Err(HandlerError::new("not yet").retry_after(400 * MS));
            }
            done.send(n).unwrap();
            Ok(())
        })
        .start()
        .unwrap();
    client(broker).send(&service, "work", &7).unwrap();
    server.drain(PATIENCE).unwrap();
    assert_eq!(numbers.try_recv(), Ok(7));
}

/// Commands whose service is gone when they are due are dead letters, however many, and hold up no
/// other; and whatever the delays, there are no more queues than one for each level.
#[test]
fn what_comes_back_to_a_deleted_queue_is_a_dead_letter_and_holds_up_no_other() {
    let rabbit = Server::rabbitmq();
    let broker = Broker::connect(rabbit.url()).unwrap();
    let (gone, works) = (unique("gone"), unique("works"));
    drop(working(&broker, &gone));
    let is_first = AtomicBool::new(true);
    let (done, numbers) = unbounded();
    let _works = ServiceServer::builder(&broker, &works)
        .retry_delays([500 * MS])
        .handler("work", move |n: u64| {
            if is_first.swap(false, Ordering::SeqCst) {
                return Err(HandlerError::new("not yet"));
            }
            done.send(n).unwrap();
            Ok(())
        })
        .start()
        .unwrap();
    let client = client(&broker);
    let send = |service: &str, n: u64, delay| {
        client
            .send_with(service, "work", &n, &after(delay))
            .unwrap();
    };
    // The client finds the queue, and does not look again.
    send(&gone, 1_000, 60 * NEVER);
    rabbit.ctl(&["delete_queue", &format!("service.{gone}.request")]);
    // More than a quorum queue dead-letters without a confirm.
    for n in 0..50 {
        send(&gone, n, 500 * MS);
    }
    client.send(&works, "work", &1).unwrap();
    assert_eq!(numbers.recv_timeout(PATIENCE), Ok(1));
    send(&works, 2, 500 * MS);
    assert_eq!(numbers.recv_timeout(PATIENCE), Ok(2));
    let dead = || letters_of(&broker, &gone);
    // They wait for their queue once more, for half of the patience.
    let end = Instant::now() + 2 * PATIENCE;
    while dead().len() < 50 {
        assert!(Instant::now() < end, "{}", dead().len());
        std::thread::sleep(100 * MS);
    }
    let letter = dead().remove(0);
    assert_eq!((letter.reason(), letter.attempts()), ("no_queue", 0));
    assert_eq!(letter.action(), Some("work"));
    let (_again, replayed) = working(&broker, &gone);
    let letters = DeadLetters::open(&broker).unwrap();
    let report = letters.replay(|letter| letter.is_of(&gone), 1_000);
    assert_eq!(report.unwrap().sent, 50);
    for _ in 0..50 {
        replayed.recv_timeout(PATIENCE).unwrap();
    }
    for exponent in 0..30 {
        send(&works, 3, NEVER + Duration::from_millis(1 << exponent));
    }
    let queues = rabbit.ctl(&["list_queues", "name"]);
    let levels = queues
        .lines()
        .filter(|name| name.starts_with("coney.delay.level."));
    assert_eq!(levels.count(), 25);
}
