//! A batch of slow items, and what it does to single calls.

use std::thread;
use std::time::{Duration, Instant};

use coney::{ServiceClient, ServiceServer};

use crate::brokers::{self, Transport};
use crate::figure::{Bound, bounded, unbounded};
use crate::latencies::{lateness, offer, quantile_since_sent};
use crate::load::{Ended, Target};

const WORKERS: usize = 10;
const ITEMS: u64 = 500;

/// The time that an item, or a single call, takes.
const HANDLING: Duration = Duration::from_millis(50);

/// The single calls a second: two workers' worth.
const SINGLE_CALLS: f64 = 40.0;

const TARGET: Target = Target {
    service: "bench-batch",
    action: "work",
    timeout: Duration::from_secs(10),
};

/// Measures single calls alone for a quarter of the time, and beside one batch after the other for
/// the rest.
pub fn measure(length: Duration) {
    for transport in brokers::all() {
        run(&transport, length);
    }
}

fn run(transport: &Transport, length: Duration) {
    let _server = ServiceServer::builder(&transport.broker, TARGET.service)
        .workers(WORKERS)
        .respond(TARGET.action, |number: u64| {
            thread::sleep(HANDLING);
            number
        })
        .start()
        .expect("the server starts");
    let client = ServiceClient::new(&transport.broker, "bench").expect("a client");
    let alone: Vec<Ended> = offer(&client, TARGET, SINGLE_CALLS, length / 4)
        .iter()
        .collect();

    let (begin, time) = (Instant::now(), length * 3 / 4);
    let single = offer(&client, TARGET, SINGLE_CALLS, time);
    // The times within which a batch ran, since the single calls began.
    let mut batches = Vec::new();
    while begin.elapsed() < time {
        let from = begin.elapsed();
        call_batch(&client);
        batches.push(from..begin.elapsed());
    }
    let meanwhile: Vec<Ended> = single
        .iter()
        .filter(|call| batches.iter().any(|batch| batch.contains(&call.due)))
        .collect();

    let case = format!("a batch of {ITEMS} items of 50 ms, {}", transport.name);
    let p99 = [&alone, &meanwhile].map(|calls| quantile_since_sent(calls, 0.99));
    unbounded(&format!("{case}: p99 of single calls alone"), p99[0], "ms");
    let handling = HANDLING.as_secs_f64() * 1e3;
    let what = format!("{case}: p99 of single calls meanwhile");
    let wanted = Bound::AtMost(2.0 * handling + p99[0]);
    bounded(&what, p99[1], "ms", wanted);
    let late = lateness(&meanwhile, 0.99);
    unbounded(&format!("{case}: the generator is late, p99"), late, "ms");
    let took = batches.iter().map(|it| (it.end - it.start).as_secs_f64());
    let took = took.sum::<f64>() / batches.len() as f64;
    unbounded(&format!("{case}: mean time of a batch"), took, "s");
    eprintln!(
        "{case}: p50 of single calls alone {:.1} ms, meanwhile {:.1} ms; {} of {} failed",
        quantile_since_sent(&alone, 0.5),
        quantile_since_sent(&meanwhile, 0.5),
        meanwhile.iter().filter(|it| it.result.is_err()).count(),
        meanwhile.len(),
    );
}

/// Calls a batch, and waits for it.
fn call_batch(client: &ServiceClient) {
    let mut batch = client
        .batch(TARGET.service)
        .timeout(Duration::from_secs(60));
    for item in 0..ITEMS {
        batch.add::<u64>(TARGET.action, &item);
    }
    for reply in batch.call().into_results::<u64>() {
        reply.expect("each item is answered");
    }
}
