//! Rate limits on a server: calls over them are refused, commands and events wait for their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coney::deduplication::MemoryReplyStore;
use coney::resilience::{RateLimit, Resilience, Retry};
use coney::{Broker, CallOptions, Context, ErrorKind, ServiceClient, ServiceServer, Subscription};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::dead_letters::{dead_letter, no_dead_letter};
use crate::support::events::{letters, publisher, recv_n, sorted, subscriber, unique_event};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    a_call_over_the_limit_is_refused_and_did_not_run,
    a_call_that_is_retried_gets_its_turn,
    each_request_of_a_batch_counts_for_itself,
    commands_over_the_limit_are_all_handled_and_lose_no_attempt,
    a_command_that_waits_longer_than_all_delays_keeps_looking,
    each_key_has_a_limit_of_its_own,
    a_key_over_its_limit_uses_nothing_of_the_whole,
    a_key_function_that_panics_fails_the_request,
    other_actions_are_not_limited,
    what_is_over_the_limit_claims_nothing,
    events_over_the_limit_wait_and_lose_no_attempt,
);

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// A limit that admits so many requests while a test runs.
fn only(calls: u32) -> RateLimit {
    RateLimit::every(HOUR).burst(calls)
}

/// Starts a service with a limit; the receiver gets the attempts at its requests.
fn serve(
    broker: &Broker,
    service: &str,
    limit: RateLimit,
) -> (ServiceServer, Receiver<(u32, u64)>) {
    let (sent, attempts) = unbounded();
    let server = ServiceServer::builder(broker, service)
        .respond_with_context("work", move |context: &Context<'_>, n: u64| {
            sent.send((context.attempt(), n)).unwrap();
            n * 2
        })
        .respond("other", |n: u64| n)
        .retry_delays([20 * MS, 100 * MS])
        .limit("work", limit)
        .start()
        .unwrap();
    (server, attempts)
}

fn a_call_over_the_limit_is_refused_and_did_not_run(broker: &Broker) {
    let service = unique("work");
    let (_server, attempts) = serve(broker, &service, only(2));
    let client = client(broker);
    let call = |n: u64| client.call::<u64>(&service, "work", &n);
    assert_eq!([call(1).unwrap(), call(2).unwrap()], [2, 4]);
    let error = call(3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(error.remote_code(), Some("rate_limited"));
    assert!(error.is_safe_to_retry());
    let after = error.retry_after().unwrap();
    assert!(after > HOUR / 2 && after <= HOUR, "{after:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("{service}.work")), "{text}");
    assert_eq!(attempts.try_iter().count(), 2);
}

fn a_call_that_is_retried_gets_its_turn(broker: &Broker) {
    let service = unique("work");
    let limit = RateLimit::every(20 * MS).burst(1);
    let (_server, attempts) = serve(broker, &service, limit);
    let retry = Retry::new().attempts(1_000);
    let client = ServiceClient::builder(broker, "order-service")
        .timeout(PATIENCE)
        .resilience(Resilience::none().retry(retry))
        .build()
        .unwrap();
    for n in 0..5 {
        assert_eq!(client.call::<u64>(&service, "work", &n).unwrap(), 2 * n);
    }
    assert_eq!(attempts.len(), 5);
}

fn each_request_of_a_batch_counts_for_itself(broker: &Broker) {
    let service = unique("work");
    let (_server, attempts) = serve(broker, &service, only(3));
    let client = client(broker);
    let mut batch = client.batch(&service);
    for n in 0..5 {
        batch.add::<u64>("work", &n);
    }
    let results = batch.call().into_results::<u64>();
    let errors: Vec<_> = results.iter().filter_map(|it| it.as_ref().err()).collect();
    assert_eq!(errors.len(), 2);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.retry_after().is_some());
    }
    assert_eq!(attempts.len(), 3);
}

fn commands_over_the_limit_are_all_handled_and_lose_no_attempt(broker: &Broker) {
    const COMMANDS: u64 = 60;
    let service = unique("work");
    let limit = RateLimit::per_second(100).burst(2);
    let (server, attempts) = serve(broker, &service, limit);
    let client = client(broker);
    let start = Instant::now();
    for n in 0..COMMANDS {
        client.send(&service, "work", &n).unwrap();
    }
    let handled = recv_n(&attempts, COMMANDS as usize);
    // The first two at once, and the others one after the other.
    assert!(start.elapsed() >= 10 * MS * (COMMANDS as u32 - 2));
    assert!(handled.iter().all(|(attempt, _)| *attempt == 1));
    let numbers = handled.into_iter().map(|(_, n)| n).collect();
    assert_eq!(sorted(numbers), (0..COMMANDS).collect::<Vec<_>>());
    server.drain(PATIENCE).unwrap();
    assert!(attempts.is_empty());
    no_dead_letter(broker, &service);
}

fn a_command_that_waits_longer_than_all_delays_keeps_looking(broker: &Broker) {
    let service = unique("work");
    // More waits than there are attempts.
    let limit = RateLimit::every(600 * MS).burst(1);
    let (server, attempts) = serve(broker, &service, limit);
    let client = client(broker);
    for n in 0..2 {
        client.send(&service, "work", &n).unwrap();
    }
    let handled = recv_n(&attempts, 2);
    assert!(
        handled.iter().all(|(attempt, _)| *attempt == 1),
        "{handled:?}"
    );
    server.drain(PATIENCE).unwrap();
    no_dead_letter(broker, &service);
}

/// Starts a service with a limit for each name, and one of them all.
fn serve_by_key(broker: &Broker, service: &str, of_key: u32, of_all: u32) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .respond("work", |name: String| name)
        .limit("work", only(of_all))
        .limit_by("work", only(of_key), |context| {
            context.header::<String>("tenant").expect("a tenant")
        })
        .retry_delays([])
        .start()
        .unwrap()
}

fn call_as(client: &ServiceClient, service: &str, tenant: &str) -> coney::Result<String> {
    let options = CallOptions::new().header("tenant", tenant);
    client.call_with(service, "work", tenant, &options)
}

fn each_key_has_a_limit_of_its_own(broker: &Broker) {
    let service = unique("work");
    let _server = serve_by_key(broker, &service, 1, 100);
    let client = client(broker);
    for tenant in ["a", "b"] {
        assert_eq!(call_as(&client, &service, tenant).unwrap(), tenant);
        let error = call_as(&client, &service, tenant).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
}

fn a_key_over_its_limit_uses_nothing_of_the_whole(broker: &Broker) {
    let service = unique("work");
    let _server = serve_by_key(broker, &service, 1, 2);
    let client = client(broker);
    assert!(call_as(&client, &service, "loud").is_ok());
    for _ in 0..10 {
        assert!(call_as(&client, &service, "loud").is_err());
    }
    assert!(call_as(&client, &service, "quiet").is_ok());
    let error = call_as(&client, &service, "third").unwrap_err();
    assert_eq!(error.remote_code(), Some("rate_limited"), "{error}");
}

fn a_key_function_that_panics_fails_the_request(broker: &Broker) {
    let service = unique("work");
    let server = serve_by_key(broker, &service, 5, 5);
    let client = client(broker);
    let error = client.call::<String>(&service, "work", "x").unwrap_err();
    assert_eq!(error.remote_code(), Some("panic"), "{error}");
    client.send(&service, "work", "x").unwrap();
    let letter = dead_letter(broker, &service);
    let error = letter.first_error().unwrap();
    assert!(error.contains("panicked"), "{error}");
    assert_eq!(call_as(&client, &service, "a").unwrap(), "a");
    server.drain(PATIENCE).unwrap();
}

fn other_actions_are_not_limited(broker: &Broker) {
    let service = unique("work");
    let (_server, _attempts) = serve(broker, &service, only(1));
    let client = client(broker);
    for n in 0..20 {
        assert_eq!(client.call::<u64>(&service, "other", &n).unwrap(), n);
    }
}

fn what_is_over_the_limit_claims_nothing(broker: &Broker) {
    let service = unique("work");
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let _server = ServiceServer::builder(broker, &service)
        .respond("work", move |n: u64| {
            counted.fetch_add(1, Ordering::SeqCst);
            n
        })
        .limit("work", RateLimit::every(20 * MS).burst(1))
        .deduplicate(MemoryReplyStore::new(100), PATIENCE)
        .start()
        .unwrap();
    let client = client(broker);
    let id = CallOptions::new().message_id("one");
    client.call::<u64>(&service, "work", &0).unwrap();
    // Refused or not, the same request runs once in the end.
    let mut handled = 0;
    while handled < 3 {
        match client.call_with::<u64>(&service, "work", &1, &id) {
            Ok(n) => handled += n,
            Err(error) => {
                assert_eq!(error.remote_code(), Some("rate_limited"), "{error}");
                std::thread::sleep(error.retry_after().unwrap());
            }
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

fn events_over_the_limit_wait_and_lose_no_attempt(broker: &Broker) {
    const EVENTS: u64 = 10;
    let (service, event) = (unique("s"), unique_event());
    let (sent, attempts) = unbounded();
    let handler = || {
        let sent = sent.clone();
        move |context: &Context<'_>, n: u64| sent.send((context.attempt(), n)).unwrap()
    };
    let subscription = |name: &str| {
        Subscription::listen_with_context(&event, handler())
            .named(name)
            .limit(RateLimit::every(15 * MS).burst(1))
    };
    let (ordered, in_order) = unbounded();
    let by_key = Subscription::listen(&event, move |n: u64| ordered.send(n).unwrap())
        .named("ordered")
        .limit(RateLimit::every(15 * MS).burst(1))
        .ordered_by(|_: &u64| 0);
    let subscriber = subscriber(broker, &service)
        .subscribe(subscription("group"))
        .subscribe(subscription("broadcast").broadcast())
        .subscribe(by_key)
        .start()
        .unwrap();
    let publisher = publisher(broker);
    for n in 0..EVENTS {
        publisher.publish(&event, &n).unwrap();
    }
    let handled = recv_n(&attempts, 2 * EVENTS as usize);
    assert!(
        handled.iter().all(|(attempt, _)| *attempt == 1),
        "{handled:?}"
    );
    assert_eq!(
        recv_n(&in_order, EVENTS as usize),
        (0..EVENTS).collect::<Vec<_>>()
    );
    subscriber.shutdown(PATIENCE).unwrap();
    assert!(attempts.is_empty());
    assert!(letters(broker, &format!("event.{service}.group")).is_empty());
}

#[test]
fn limits_that_cannot_work_are_refused_at_the_start() {
    let broker = Broker::memory();
    let server = || ServiceServer::builder(&broker, "mailer").respond("mail", |n: u64| n);
    let key = |_: &Context<'_>| String::new();
    for (builder, wanted) in [
        (
            server().limit("mial", only(1)),
            "mailer.mial has a rate limit and no handler",
        ),
        (
            server().limit("mail", only(1)).limit("mail", only(2)),
            "two rate limits",
        ),
        (server().limit("mail", only(0)), "mailer.mail"),
        (
            server().limit_by("mail", RateLimit::per_second(0), key),
            "0 calls",
        ),
    ] {
        let error = builder.start().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(wanted), "{error}");
    }
    // The order of the builder's calls is free.
    let _server = ServiceServer::builder(&broker, "free")
        .limit("mail", only(1))
        .respond("mail", |n: u64| n)
        .start()
        .unwrap();
    let subscription = Subscription::listen("a.b", |_: u64| {}).limit(RateLimit::per_second(0));
    let error = subscriber(&broker, "s")
        .subscribe(subscription)
        .start()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("\"a.b\""), "{error}");
}
