//! Messages and settlements that any thread sends by itself, beside those that have to wait for the
//! I/O thread.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use coney::Broker;
use coney::transport::{Delivery, Link, LinkSpec, Publication, Topology};
use parking_lot::Mutex;

use crate::support::proxy::{Mode, Proxy};
use crate::support::{PATIENCE, amqp_url, unique};

fn consumer(broker: &Broker, queue: &str, prefetch: u16) -> Link {
    let spec = LinkSpec::new(Topology::new().queue(queue)).consume(queue, prefetch);
    Link::open(broker, spec).unwrap()
}

fn publisher(broker: &Broker) -> Link {
    Link::open(broker, LinkSpec::default()).unwrap()
}

fn number(delivery: &Delivery) -> u64 {
    let start = delivery.message().body.first_chunk();
    u64::from_be_bytes(*start.expect("a number"))
}

fn numbered(queue: &str, number: u64, size: usize) -> Publication {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(size, 0);
    Publication::new("", queue, body)
}

/// Checks the order where the socket is full, so that messages wait for the I/O thread, and written
/// again, so that the same threads publish by themselves: they must not overtake what waits.
#[test]
fn each_threads_messages_stay_in_order_whichever_way_they_take() {
    const THREADS: u64 = 8;
    const MESSAGES: u64 = 30;
    const ROUNDS: u64 = 2; // all that waits fits into the send queue
    let proxy = Proxy::start(&amqp_url());
    let broker = Broker::connect(&proxy.url).unwrap();
    let reading = Broker::connect(&amqp_url()).unwrap();
    let queue = unique("order");
    let link = consumer(&reading, &queue, 200);
    let shared = publisher(&broker);
    for round in 0..ROUNDS {
        let publish = |numbers: std::ops::Range<u64>, size: usize| {
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (numbers, shared, queue) = (numbers.clone(), &shared, &queue);
                    scope.spawn(move || {
                        for n in numbers {
                            let message = numbered(queue, n * THREADS + thread, size);
                            shared.publish(message, PATIENCE).unwrap();
                        }
                    });
                }
            });
        };
        let first = 2 * round * MESSAGES;
        proxy.forth(Mode::Stall);
        publish(first..first + MESSAGES, 50_000); // 12 MB, more than fits into the sockets
        proxy.forth(Mode::Pass);
        publish(first + MESSAGES..first + 2 * MESSAGES, 100);
    }
    let mut next = [0; THREADS as usize];
    for _ in 0..2 * ROUNDS * MESSAGES * THREADS {
        let delivery = link.recv_timeout(PATIENCE).expect("nothing is lost");
        let (n, thread) = (number(&delivery) / THREADS, number(&delivery) % THREADS);
        let next = &mut next[usize::try_from(thread).unwrap()];
        assert_eq!(n, *next, "of thread {thread}");
        *next += 1;
        delivery.ack();
    }
}

/// Checks that each delivery is acknowledged or requeued, if several threads settle while their link
/// or its broker is closed.
#[test]
fn settlements_race_with_the_end_of_their_link() {
    const DELIVERIES: u64 = 40;
    const THREADS: usize = 8;
    let reading = Broker::connect(&amqp_url()).unwrap();
    for round in 0..15 {
        let broker = Broker::connect(&amqp_url()).unwrap();
        let queue = unique("race");
        let link = consumer(&broker, &queue, 40);
        for n in 0..DELIVERIES {
            link.publish(numbered(&queue, n, 8), PATIENCE).unwrap();
        }
        let arrived = (0..DELIVERIES).map(|_| link.recv_timeout(PATIENCE).unwrap());
        let mut deliveries = arrived.collect::<Vec<_>>().into_iter();
        let acknowledged = Mutex::new(BTreeSet::new());
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let some: Vec<_> = deliveries.by_ref().take(5).collect();
                let acknowledged = &acknowledged;
                scope.spawn(move || {
                    for (at, delivery) in some.into_iter().enumerate() {
                        match (thread + at) % 4 {
                            0 => drop(delivery),
                            1 => delivery.reject(true),
                            _ => {
                                acknowledged.lock().insert(number(&delivery));
                                delivery.ack();
                            }
                        }
                    }
                });
            }
            let broker = &broker;
            scope.spawn(move || match round % 3 {
                0 => drop(link),
                1 => broker.close(PATIENCE).unwrap(),
                _ => {
                    drop(link);
                    broker.close(PATIENCE).unwrap();
                }
            });
        });
        drop(broker);
        // An acknowledgement may come too late, and its message once more.
        let link = consumer(&reading, &queue, 100);
        let mut found = acknowledged.into_inner();
        let mut redelivered = BTreeSet::new();
        while found.len() < DELIVERIES as usize {
            let delivery = link.recv_timeout(PATIENCE).expect("nothing is lost");
            found.insert(number(&delivery));
            assert!(redelivered.insert(number(&delivery)), "it comes once");
            delivery.ack();
        }
        let late = link.recv_timeout(Duration::ZERO);
        assert!(late.is_none_or(|it| redelivered.insert(number(&it))));
    }
}
