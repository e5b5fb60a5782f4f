//! The cost of waking a worker, with up to 1,000 subscriptions, or actions with bounds, in a process.
//!
//! One event or call at a time, to another subscription or action each time.

use std::time::{Duration, Instant};

use coney::server::ServiceServerBuilder;
use coney::{Broker, EventPublisher, EventSubscriber, ServiceClient, ServiceServer, Subscription};

use crate::brokers::{self, Transport};
use crate::figure::{Bound, bounded, median, unbounded};

/// The numbers of subscriptions or actions. The first is what the last is compared with.
const NUMBERS: [usize; 4] = [1, 10, 100, 1_000];
const MOST: usize = NUMBERS[3];

/// The cost with the most, as a multiple of the cost of one: each doubling may add a tenth, and there
/// are ten.
const WANTED: f64 = 2.0;

/// Rounds through all numbers. The median of their medians counts.
const ROUNDS: u32 = 3;

/// Measures for so long.
pub fn measure(length: Duration, is_quick: bool) {
    for transport in brokers::all() {
        let rounds = if is_quick { 1 } else { ROUNDS };
        let slice = length / (2 * rounds * (NUMBERS.len() + 1) as u32);
        compare("subscriptions", &transport, rounds, |number, all| {
            events(&transport.broker, number, all, slice)
        });
        compare("actions with bounds", &transport, rounds, |number, _| {
            calls(&transport.broker, number, slice)
        });
    }
}

/// Prints the costs in µs that `measure` returns for one subscription or action alone, and for a
/// number of them out of the most.
///
/// The memory broker compares an event with each subscription, which takes longer than anything
/// else here. So the growth is what the most cost over one out of the most, and it is a part of
/// what one costs that is alone.
fn compare(what: &str, transport: &Transport, rounds: u32, measure: impl Fn(usize, usize) -> f64) {
    let (mut costs, mut alone) = (NUMBERS.map(|_| Vec::new()), Vec::new());
    for _ in 0..rounds {
        alone.push(measure(1, 1));
        for (costs, number) in costs.iter_mut().zip(NUMBERS) {
            costs.push(measure(number, MOST));
        }
    }
    let (costs, alone) = (costs.map(median), median(alone));
    unbounded(
        &format!("wake-up, {what}, one alone, {}", transport.name),
        alone,
        "µs",
    );
    for (cost, number) in costs.iter().zip(NUMBERS) {
        let what = format!("wake-up, {number} {what}, {}", transport.name);
        unbounded(&what, *cost, "µs");
    }
    let what = format!("wake-up, {MOST} {what}, {}", transport.name);
    let growth = costs[NUMBERS.len() - 1] - costs[0];
    let wanted = Bound::AtMost(WANTED);
    bounded(&what, 1.0 + growth / alone, "of one alone", wanted);
}

/// Returns the median time in µs from the publication of an event to its handler.
///
/// Another subscriber has the subscriptions from `number` to `all`, so that the broker has the same
/// number of them to choose from.
fn events(broker: &Broker, number: usize, all: usize, length: Duration) -> f64 {
    let (handled, is_handled) = crossbeam_channel::unbounded();
    let subscribe = |service: &str, numbers: std::ops::Range<usize>| {
        let mut subscriber = EventSubscriber::builder(broker, service);
        for number in numbers {
            let handled = handled.clone();
            let subscription = Subscription::listen(&name(number), move |_: u64| {
                let _ = handled.send(Instant::now());
            });
            // A queue of its own that the broker deletes afterwards.
            subscriber = subscriber.subscribe(subscription.broadcast());
        }
        subscriber.start().expect("the subscriber starts")
    };
    let _subscriber = subscribe("bench-lanes", 0..number);
    let _others = (number < all).then(|| subscribe("bench-lanes-others", number..all));
    let publisher = EventPublisher::new(broker, "bench").expect("a publisher");
    median_time(number, length, |at| {
        let begin = Instant::now();
        let sent = publisher.publish_async(&name(at), &1);
        let handled = is_handled.recv_timeout(Duration::from_secs(10));
        let took = handled.expect("the event is handled") - begin;
        sent.and_then(|it| it.wait()).expect("it is confirmed");
        took
    })
}

/// Returns the median time in µs of a call.
fn calls(broker: &Broker, number: usize, length: Duration) -> f64 {
    let server = ServiceServer::builder(broker, "bench-lanes");
    let add = |server: ServiceServerBuilder, number| {
        let server = server.respond(&name(number), |number: u64| number);
        server.at_most(&name(number), 2)
    };
    let server = (0..number).fold(server, add).start();
    let _server = server.expect("the server starts");
    let client = ServiceClient::new(broker, "bench").expect("a client");
    median_time(number, length, |at| {
        let begin = Instant::now();
        let answer = client.call::<u64>("bench-lanes", &name(at), &1);
        answer.expect("the call succeeds");
        begin.elapsed()
    })
}

fn name(number: usize) -> String {
    format!("bench.lane.{number}")
}

/// Returns the median in µs of the times that `time` returns for numbers below `numbers`.
fn median_time(numbers: usize, length: Duration, time: impl Fn(usize) -> Duration) -> f64 {
    // Each once, to warm up.
    for number in 0..numbers {
        time(number);
    }
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < length || times.is_empty() {
        times.push(time(fastrand::usize(..numbers)).as_secs_f64() * 1e6);
    }
    median(times)
}
