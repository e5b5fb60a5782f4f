//! `send`: commands, their retries and their dead letters.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coney::message::ServiceMessage;
use coney::transport::{Link, LinkSpec, Topology};
use coney::{Broker, CallOptions, Context, ErrorKind, HandlerError, ServiceServer};
use crossbeam_channel::{Receiver, bounded, unbounded};

use crate::support::dead_letters::{dead_letter, no_dead_letter};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    a_command_is_confirmed_and_carried_out,
    a_service_that_has_never_run_has_no_route,
    thousands_of_commands_get_their_own_outcomes,
    a_command_waits_for_its_service,
    a_failed_command_is_tried_again_later,
    retries_occupy_no_worker,
    a_command_that_fails_for_good_is_kept,
    do_not_retry_prevents_retries,
    a_command_that_does_not_decode_is_kept_at_once,
    a_panic_is_a_failure,
    a_failed_call_is_not_tried_again,
    a_command_redelivered_too_often_is_dead_lettered,
    the_handler_sees_a_redelivery,
    nested_calls_inherit_the_remaining_time,
    quorum_queues_serve,
);

const MS: Duration = Duration::from_millis(1);

/// Starts a server whose action `work` runs `handler`; the receiver gets the times of its runs.
fn serve<F>(broker: &Broker, service: &str, handler: F) -> (ServiceServer, Receiver<Instant>)
where
    F: Fn(u32) -> Result<u32, HandlerError> + Send + Sync + 'static,
{
    let (ran, runs) = unbounded();
    let server = ServiceServer::builder(broker, service)
        .handler("work", move |n: u32| {
            ran.send(Instant::now()).unwrap();
            handler(n)
        })
        .retry_delays([50 * MS, 150 * MS])
        .redelivery_limit(1)
        .start()
        .unwrap();
    (server, runs)
}

fn run(runs: &Receiver<Instant>) -> Instant {
    runs.recv_timeout(PATIENCE).expect("the handler runs")
}

/// Drains the server, and asserts that its handler has not run.
fn no_run(server: &ServiceServer, runs: &Receiver<Instant>) {
    server.drain(PATIENCE).unwrap();
    assert!(runs.is_empty(), "it must not run again");
}

fn a_command_is_confirmed_and_carried_out(broker: &Broker) {
    let service = unique("work");
    let (server, runs) = serve(broker, &service, Ok);
    client(broker).send(&service, "work", &1).unwrap();
    run(&runs);
    no_run(&server, &runs);
}

fn a_service_that_has_never_run_has_no_route(broker: &Broker) {
    let error = client(broker)
        .send(&unique("absent"), "work", &1)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    assert!(error.is_safe_to_retry());
}

fn thousands_of_commands_get_their_own_outcomes(broker: &Broker) {
    let (service, absent) = (unique("work"), unique("absent"));
    let (_server, runs) = serve(broker, &service, Ok);
    let client = client(broker);
    let sends: Vec<_> = (0..3_000)
        .map(|n| {
            let target = if n % 100 == 7 { &absent } else { &service };
            client.send_async(target, "work", &n).unwrap()
        })
        .collect();
    for (n, send) in sends.into_iter().enumerate() {
        match send.wait() {
            Ok(()) => assert_ne!(n % 100, 7),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
                assert_eq!(n % 100, 7);
            }
        }
    }
    for _ in 0..2_970 {
        run(&runs);
    }
}

fn a_command_waits_for_its_service(broker: &Broker) {
    let service = unique("work");
    drop(serve(broker, &service, Ok));
    client(broker).send(&service, "work", &1).unwrap();
    let (_server, runs) = serve(broker, &service, Ok);
    run(&runs);
}

fn a_failed_command_is_tried_again_later(broker: &Broker) {
    let service = unique("work");
    let attempts = AtomicU32::new(0);
    let (server, runs) = serve(broker, &service, move |n| {
        match attempts.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Err(HandlerError::new("not yet")),
            _ => Ok(n),
        }
    });
    client(broker).send(&service, "work", &1).unwrap();
    let (first, second, third) = (run(&runs), run(&runs), run(&runs));
    assert!(second - first >= 39 * MS, "{:?}", second - first);
    assert!(third - second >= 119 * MS, "{:?}", third - second);
    no_run(&server, &runs);
    no_dead_letter(broker, &service);
}

fn retries_occupy_no_worker(broker: &Broker) {
    let service = unique("work");
    let (done, finished) = unbounded();
    let _server = ServiceServer::builder(broker, &service)
        .workers(1)
        .prefetch(1)
        .handler("fail", |(): ()| Err::<(), _>("always"))
        .handler("work", move |n: u32| done.send(n).map_err(|_| "gone"))
        .retry_delays([Duration::from_secs(3_600)])
        .start()
        .unwrap();
    let client = client(broker);
    for _ in 0..5 {
        client.send(&service, "fail", &()).unwrap();
    }
    client.send(&service, "work", &6).unwrap();
    assert_eq!(finished.recv_timeout(PATIENCE), Ok(6));
}

fn a_command_that_fails_for_good_is_kept(broker: &Broker) {
    let service = unique("work");
    let attempts = AtomicU32::new(0);
    let (server, runs) = serve(broker, &service, move |_| {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        Err(HandlerError::new(format!("attempt {attempt}")))
    });
    client(broker).send(&service, "work", &17).unwrap();
    for _ in 0..3 {
        run(&runs);
    }
    let letter = dead_letter(broker, &service);
    assert_eq!(letter.reason(), "retries_exhausted");
    assert_eq!(letter.attempts(), 3);
    assert_eq!(letter.first_error(), Some("attempt 1"));
    assert_eq!(letter.last_error(), Some("attempt 3"));
    assert_eq!(letter.action(), Some("work"));
    assert_eq!(letter.source_service(), Some("order-service"));
    assert!(letter.died_at() > 1_700_000_000, "{}", letter.died_at());
    let envelope = ServiceMessage::decode(letter.body()).unwrap();
    assert_eq!(envelope.payload.decode::<u32>(), Ok(17));
    assert_eq!(letter.message_id(), Some(&*envelope.message_id));
    assert_eq!(
        letter.properties().correlation_id.as_deref(),
        Some(&*envelope.correlation_id)
    );
    no_run(&server, &runs);
}

fn do_not_retry_prevents_retries(broker: &Broker) {
    let service = unique("work");
    let (server, runs) = serve(broker, &service, |_| {
        Err(HandlerError::new("never").do_not_retry())
    });
    client(broker).send(&service, "work", &1).unwrap();
    run(&runs);
    let letter = dead_letter(broker, &service);
    assert_eq!((letter.reason(), letter.attempts()), ("rejected", 1));
    no_run(&server, &runs);
}

fn a_command_that_does_not_decode_is_kept_at_once(broker: &Broker) {
    let service = unique("work");
    let (_server, runs) = serve(broker, &service, Ok);
    client(broker)
        .send(&service, "work", "not a number")
        .unwrap();
    let letter = dead_letter(broker, &service);
    assert_eq!(letter.reason(), "undecodable");
    assert!(letter.last_error().unwrap().contains("cannot decode"));
    assert!(runs.is_empty());
}

fn a_panic_is_a_failure(broker: &Broker) {
    let service = unique("work");
    let attempts = AtomicU32::new(0);
    let (server, runs) = serve(broker, &service, move |n| {
        assert!(attempts.fetch_add(1, Ordering::SeqCst) > 0, "on purpose");
        Ok(n)
    });
    client(broker).send(&service, "work", &1).unwrap();
    run(&runs);
    run(&runs);
    no_run(&server, &runs);
}

fn a_failed_call_is_not_tried_again(broker: &Broker) {
    let service = unique("work");
    let (server, runs) = serve(broker, &service, |_| Err(HandlerError::new("no")));
    let error = client(broker)
        .call::<u32>(&service, "work", &1)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    run(&runs);
    no_run(&server, &runs);
    no_dead_letter(broker, &service);
}

/// Takes the message off the service's queue and drops it, this number of times, as a worker
/// that dies on it.
fn die_on_it(broker: &Broker, service: &str, times: usize) {
    let link = Link::open(broker, LinkSpec::new(Topology::new())).unwrap();
    for _ in 0..times {
        let queue = format!("service.{service}.request");
        let delivery = link.get(&queue, PATIENCE).unwrap().expect("it is there");
        drop(delivery);
    }
}

fn a_command_redelivered_too_often_is_dead_lettered(broker: &Broker) {
    let service = unique("work");
    drop(serve(broker, &service, Ok));
    client(broker).send(&service, "work", &1).unwrap();
    die_on_it(broker, &service, 1);
    // A worker that takes it counts the delivery, and does not finish.
    let (_gate, opened) = bounded::<()>(0);
    let (counting, runs) = serve(broker, &service, move |n| {
        let _ = opened.recv();
        Ok(n)
    });
    run(&runs);
    // The acknowledgement of the original may take this long.
    counting.shutdown(2_000 * MS).unwrap_err();
    drop(counting);
    let (_server, runs) = serve(broker, &service, Ok);
    let letter = dead_letter(broker, &service);
    assert_eq!(letter.reason(), "delivery_limit");
    assert!(runs.is_empty());
}

fn the_handler_sees_a_redelivery(broker: &Broker) {
    let service = unique("work");
    drop(serve(broker, &service, Ok));
    client(broker).send(&service, "mark", &()).unwrap();
    die_on_it(broker, &service, 1);
    let (sent, marks) = unbounded();
    let _server = ServiceServer::builder(broker, &service)
        .handler_with_context("mark", move |context: &Context<'_>, (): ()| {
            sent.send(context.is_redelivered()).map_err(|_| "gone")
        })
        .retry_delays([50 * MS, 150 * MS])
        .start()
        .unwrap();
    assert_eq!(marks.recv_timeout(PATIENCE), Ok(true));
}

fn nested_calls_inherit_the_remaining_time(broker: &Broker) {
    let (outer, inner) = (unique("outer"), unique("inner"));
    let (sent, remaining) = unbounded();
    let _inner = ServiceServer::builder(broker, &inner)
        .handler_with_context("mark", move |context: &Context<'_>, (): ()| {
            sent.send(context.remaining()).map_err(|_| "gone")
        })
        .start()
        .unwrap();
    let _outer = ServiceServer::builder(broker, &outer)
        .handler_with_context("ask", move |context: &Context<'_>, (): ()| {
            let client = context.client()?;
            let long = CallOptions::new().timeout(Duration::from_secs(3_600));
            client.call_with::<()>(&inner, "mark", &(), &long)
        })
        .start()
        .unwrap();
    client(broker).call::<()>(&outer, "ask", &()).unwrap();
    let remaining = remaining
        .recv_timeout(PATIENCE)
        .unwrap()
        .expect("a deadline");
    assert!(remaining <= PATIENCE, "{remaining:?}");
    assert!(remaining > PATIENCE / 2, "{remaining:?}");
}

fn quorum_queues_serve(broker: &Broker) {
    let service = unique("work");
    let (ran, runs) = unbounded();
    let start = || {
        let ran = ran.clone();
        ServiceServer::builder(broker, &service)
            .handler("work", move |n: u32| {
                ran.send(Instant::now()).unwrap();
                if n == 0 { Err("zero") } else { Ok(n) }
            })
            .quorum_queues()
            .retry_delays([50 * MS])
            .redelivery_limit(1)
            .start()
            .unwrap()
    };
    let server = start();
    let client = client(broker);
    assert_eq!(client.call::<u32>(&service, "work", &3).unwrap(), 3);
    run(&runs);
    client.send(&service, "work", &0).unwrap();
    assert!(run(&runs) < run(&runs));
    assert_eq!(dead_letter(broker, &service).reason(), "retries_exhausted");
    drop(server);
    client.send(&service, "work", &1).unwrap();
    // A delivery that was not begun does not count.
    die_on_it(broker, &service, 3);
    let server = start();
    run(&runs);
    server.drain(PATIENCE).unwrap();
    no_dead_letter(broker, &service);
}
