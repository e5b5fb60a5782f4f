//! The cost of the policies for a call that succeeds.
//!
//! A call over the memory broker takes some microseconds, most of them the hand-over to another
//! thread, and varies by more than the policies cost. So short blocks of calls with and without
//! policies alternate, each is compared with its neighbour, and the median of the differences
//! counts: a block that the machine has disturbed does not move it. A second client without
//! policies shows how far from zero such a median is for no reason.

use std::time::{Duration, Instant};

use coney::client::ServiceClientBuilder;
use coney::resilience::{RateLimit, Resilience};
use coney::{Broker, ServiceClient, ServiceServer};

use crate::figure::{Bound, bounded, median, unbounded};

/// The calls of a block: a third of a millisecond, shorter than a turn of the scheduler.
const BLOCK: u32 = 64;

/// A client that is compared with the one without policies.
struct Side {
    name: &'static str,
    client: ServiceClient,
    /// The differences in nanoseconds per call, of each block.
    differences: Vec<f64>,
    /// The medians of the pairs.
    medians: Vec<f64>,
}

impl Side {
    fn new(name: &'static str, client: ServiceClientBuilder) -> Self {
        Self {
            name,
            client: client.build().expect("the client starts"),
            differences: Vec::new(),
            medians: Vec::new(),
        }
    }
}

/// Measures so many pairs, in `length` together.
pub fn measure(length: Duration, pairs: u32) {
    let broker = Broker::memory();
    let _server = ServiceServer::builder(&broker, "echo")
        .respond("echo", |n: u64| n)
        .start()
        .expect("the server starts");
    let client = || ServiceClient::builder(&broker, "bench");
    let whole = || client().resilience(whole_pipeline());
    let plain = client().build().expect("the client starts");
    let mut sides = [
        Side::new("noise: a second client without policies", client()),
        Side::new("cost of the whole pipeline", whole()),
        Side::new("cost of Resilience::new()", {
            client().resilience(Resilience::new())
        }),
        Side::new(
            "cost of the whole pipeline, a layer and an attempt layer",
            whole()
                .layer(|call, next| next.run(call))
                .attempt_layer(|call, next| next.run(call)),
        ),
    ];
    let mut alone = Vec::new();
    for pair in 0..pairs {
        let end = Instant::now() + length / pairs;
        for round in pair.. {
            for side in &mut sides {
                let (without, with) = match round % 2 {
                    0 => {
                        let without = block(&plain);
                        (without, block(&side.client))
                    }
                    _ => {
                        let with = block(&side.client);
                        (block(&plain), with)
                    }
                };
                alone.push(without);
                side.differences.push(with - without);
            }
            if Instant::now() >= end {
                break;
            }
        }
        for side in &mut sides {
            let differences = std::mem::take(&mut side.differences);
            side.medians.push(median(differences));
        }
    }
    unbounded("a call without policies", median(alone), "ns");
    for side in sides {
        let (name, value) = (side.name, median(side.medians.clone()));
        match name {
            "cost of the whole pipeline" => bounded(name, value, "ns", Bound::AtMost(300.0)),
            _ => unbounded(name, value, "ns"),
        }
        let low = side.medians.iter().copied().fold(f64::MAX, f64::min);
        let high = side.medians.iter().copied().fold(f64::MIN, f64::max);
        eprintln!("{name}: {value:.0} ns, {pairs} pairs from {low:.0} to {high:.0} ns");
    }
}

/// Creates all policies that a call without a balancer passes.
fn whole_pipeline() -> Resilience {
    Resilience::new()
        .rate(RateLimit::per_second(1_000_000_000))
        .max_in_flight(1_000)
}

/// Makes the calls of a block, and returns their mean time in nanoseconds.
fn block(client: &ServiceClient) -> f64 {
    let begin = Instant::now();
    for n in 0..u64::from(BLOCK) {
        let reply: u64 = client.call("echo", "echo", &n).expect("a reply");
        assert_eq!(reply, n);
    }
    begin.elapsed().as_nanos() as f64 / f64::from(BLOCK)
}
