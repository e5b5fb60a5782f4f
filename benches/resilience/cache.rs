//! The response cache: hits, one cold key, events, and a service that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::cache::{Cached, ResponseCache};
use coney::resilience::Resilience;
use coney::{Broker, CallOptions, EventPublisher, ServiceClient, ServiceServer};

use crate::figure::{Bound, bounded, median, unbounded};
use crate::killed::rabbitmq;

/// The callers of one cold key.
const CALLERS: u64 = 512;

/// The entries that are read in turn.
const KEYS: u64 = 100;

/// The events whose way is measured, on each broker.
const EVENTS: u64 = 200;

const LONG: Duration = Duration::from_secs(3_600);

/// Measures hits for `length`, and a service that is gone for `gone_for`; the way of an event over
/// both brokers.
pub fn measure(length: Duration, gone_for: Duration) {
    let memory = Broker::memory();
    hits(&memory, length);
    cold_key(&memory);
    invalidation(&memory, "memory");
    match rabbitmq() {
        Some(broker) => invalidation(&broker, "RabbitMQ"),
        None => eprintln!("cache: no events over RabbitMQ, as AMQP_URL is not set"),
    }
    gone(&memory, gone_for);
}

/// Starts a service that returns the number it holds, and counts its calls.
fn start(broker: &Broker, service: &str) -> (ServiceServer, Arc<AtomicU64>, Arc<AtomicU64>) {
    let (held, calls) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (number, count) = (Arc::clone(&held), Arc::clone(&calls));
    let server = ServiceServer::builder(broker, service)
        .respond("value", move |_key: u64| {
            count.fetch_add(1, Ordering::SeqCst);
            number.load(Ordering::SeqCst)
        })
        .start()
        .expect("the server starts");
    (server, held, calls)
}

fn client(broker: &Broker, service: &str, cached: Cached) -> ServiceClient {
    ServiceClient::builder(broker, "bench")
        .cache(&ResponseCache::new(), service, "value", cached)
        .build()
        .expect("the client starts")
}

fn read(client: &ServiceClient, service: &str, key: u64) -> u64 {
    client.call(service, "value", &key).expect("an answer")
}

fn read_all(client: &ServiceClient, service: &str) {
    for key in 0..KEYS {
        read(client, service, key);
    }
}

/// Each hit encodes and decodes a number, which counts.
fn hits(broker: &Broker, length: Duration) {
    let service = "cached";
    let (_server, ..) = start(broker, service);
    let client = client(broker, service, Cached::fresh_for(LONG));
    read_all(&client, service);
    let until = |end: Instant| {
        let mut hits = 0;
        while Instant::now() < end {
            read_all(&client, service);
            hits += KEYS;
        }
        hits as f64
    };
    let rounds = 9;
    let part = length / (2 * rounds);
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let hits = until(begun + part);
        alone.push(begun.elapsed().as_nanos() as f64 / hits);
        let begun = Instant::now();
        let hits: f64 = thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| until(begun + part)));
            threads
                .map(|thread| thread.join().expect("a thread"))
                .iter()
                .sum()
        });
        together.push(hits / begun.elapsed().as_secs_f64());
    }
    bounded(
        "cache hit, one thread",
        median(alone),
        "ns",
        Bound::AtMost(1_000.0),
    );
    bounded(
        "cache hits, two threads",
        median(together),
        "per s",
        Bound::AtLeast(2e6),
    );
}

fn cold_key(broker: &Broker) {
    let service = "cold";
    let (_server, _, calls) = start(broker, service);
    let client = client(broker, service, Cached::fresh_for(LONG));
    let barrier = std::sync::Barrier::new(CALLERS as usize);
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                barrier.wait();
                read(&client, service, 1)
            });
        }
    });
    let requests = calls.load(Ordering::SeqCst) as f64;
    bounded(
        "requests of 512 callers of one cold key",
        requests,
        "requests",
        Bound::AtMost(1.0),
    );
}

/// Measures the time from the confirm of an event to the first read that shows the change.
fn invalidation(broker: &Broker, name: &str) {
    let service = format!("changing-{:x}", fastrand::u64(..));
    let event = format!("{service}.changed");
    let (_server, held, _) = start(broker, &service);
    let cached = Cached::fresh_for(LONG)
        .tags(|key: &u64| [*key])
        .invalidated_by(&*event, |key: &u64| [*key]);
    let client = client(broker, &service, cached);
    let publisher = EventPublisher::new(broker, &service).expect("a publisher");
    read(&client, &service, 1);
    let mut stale = Vec::new();
    for number in 1..=EVENTS {
        held.store(number, Ordering::SeqCst);
        publisher
            .publish(&event, &1u64)
            .expect("the event is confirmed");
        let confirmed = Instant::now();
        while read(&client, &service, 1) != number {}
        stale.push(confirmed.elapsed().as_secs_f64() * 1e3);
    }
    let longest = stale.iter().copied().fold(0.0, f64::max);
    let what = format!("stale after a confirmed event, {name}");
    unbounded(&format!("{what}, median"), median(stale), "ms");
    bounded(
        &format!("{what}, longest"),
        longest,
        "ms",
        Bound::AtMost(50.0),
    );
}

/// Reads warm entries whose service is gone, as they go past their time.
fn gone(broker: &Broker, length: Duration) {
    let service = "gone";
    let (server, ..) = start(broker, service);
    let cached = Cached::fresh_for(Duration::from_millis(50)).stale_if_error(LONG);
    let client = ServiceClient::builder(broker, "bench")
        .resilience(Resilience::new())
        .cache(&ResponseCache::new(), service, "value", cached)
        .build()
        .expect("the client starts");
    read_all(&client, service);
    server
        .shutdown(Duration::from_secs(10))
        .expect("it shuts down");
    let options = CallOptions::new().timeout(Duration::from_millis(100));
    let (end, mut reads, mut errors) = (Instant::now() + length, 0u64, 0u64);
    while Instant::now() < end {
        for key in 0..KEYS {
            let read = client.call_with::<u64>(service, "value", &key, &options);
            errors += u64::from(read.is_err());
            reads += 1;
        }
    }
    unbounded("reads while the service is gone", reads as f64, "reads");
    let what = format!("errors of warm keys, service gone for {length:.0?}");
    bounded(&what, errors as f64, "errors", Bound::AtMost(0.0));
}
