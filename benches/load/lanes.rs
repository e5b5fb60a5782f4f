//! The cost of waking a worker, with up to 1,000 subscriptions, or actions with bounds, in a process.
//!
//! One event or call at a time, to another subscription or action each time.

use std::time::{Duration, Instant};

use amiquip::{Connection, QueueDeleteOptions};
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

const SERVICE: &str = "bench-lanes";

/// Rounds through all numbers. The median of their medians counts.
const ROUNDS: u32 = 3;

/// Measures for so long.
pub fn measure(length: Duration, is_quick: bool) {
    for transport in brokers::all() {
        let rounds = if is_quick { 1 } else { ROUNDS };
        let slice = length / (2 * rounds * (NUMBERS.len() + 1) as u32);
        let broker = &transport.broker;
        match transport.url {
            // The memory broker compares an event with each subscription, which takes longer than
            // anything else here: so there are always the most, and another subscriber has those
            // that are not measured.
            None => compare("subscriptions", &transport, rounds, MOST, |number, all| {
                events(broker, number, all, slice)
            }),
            Some(_) => compare("subscriptions", &transport, rounds, 0, |number, _| {
                events(broker, number, number, slice)
            }),
        }
        compare("actions with bounds", &transport, rounds, 0, |number, _| {
            calls(broker, number, slice)
        });
        if let Some(url) = &transport.url {
            delete_queues(url);
        }
    }
}

/// Prints the costs in µs that `measure` returns for each number out of `all`, and for one alone:
/// the growth from one to the most is a part of the latter.
fn compare(
    what: &str,
    transport: &Transport,
    rounds: u32,
    all: usize,
    measure: impl Fn(usize, usize) -> f64,
) {
    let (mut costs, mut alone) = (NUMBERS.map(|_| Vec::new()), Vec::new());
    for _ in 0..rounds {
        alone.push(measure(1, 1));
        for (costs, number) in costs.iter_mut().zip(NUMBERS) {
            costs.push(measure(number, all));
        }
    }
    let (costs, alone) = (costs.map(median), median(alone));
    let name = transport.name;
    unbounded(
        &format!("wake-up, one of the {what}, alone, {name}"),
        alone,
        "µs",
    );
    for (cost, number) in costs.iter().zip(NUMBERS) {
        unbounded(&format!("wake-up, {number} {what}, {name}"), *cost, "µs");
    }
    let growth = costs[NUMBERS.len() - 1] - costs[0];
    let wanted = Bound::AtMost(WANTED);
    let what = format!("wake-up, {MOST} {what}, {name}");
    bounded(&what, 1.0 + growth / alone, "of one", wanted);
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
    let _subscriber = subscribe(SERVICE, 0..number);
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
    let add = |server: ServiceServerBuilder, number| {
        let server = server.respond(&name(number), |number: u64| number);
        server.at_most(&name(number), 2)
    };
    let start = || {
        let server = ServiceServer::builder(broker, SERVICE);
        (0..number).fold(server, add).start()
    };
    // RabbitMQ may take longer for a thousand queues than a server waits.
    let server = start().or_else(|_| start()).or_else(|_| start());
    let _server = server.expect("the server starts");
    let client = ServiceClient::new(broker, "bench").expect("a client");
    median_time(number, length, |at| {
        let begin = Instant::now();
        let answer = client.call::<u64>(SERVICE, &name(at), &1);
        answer.expect("the call succeeds");
        begin.elapsed()
    })
}

/// Deletes the queues of the actions, in which commands would wait.
fn delete_queues(url: &str) {
    let mut connection = Connection::insecure_open(url).expect("the broker is there");
    let channel = connection.open_channel(None).expect("a channel");
    for number in 0..MOST {
        let queue = format!("service.{SERVICE}.class.{}", name(number));
        let deleted = channel.queue_delete_nowait(queue, QueueDeleteOptions::default());
        deleted.expect("the connection lives");
    }
    channel.close().expect("the connection lives");
    connection.close().expect("the connection lives");
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
