//! Tests of the route of deliveries, with a sink and a settler that record.

use std::thread;
use std::time::{Duration, Instant};

use super::super::coalesce_buffer::CoalesceBuffer;
use super::*;
use crate::transport::{LinkSpec, PartialReply, Publication, Returned};

/// A sink that keeps the deliveries, and refuses those of the routing key `refused`.
#[derive(Default)]
struct RecordingSink(Mutex<Vec<Delivery>>);

impl Sink for RecordingSink {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        match delivery.message().routing_key.as_str() {
            "refused" => return Err(delivery),
            "answered" => return Ok(vec![Publication::new("", "more", Vec::new())]),
            _ => {}
        }
        self.0.lock().push(delivery);
        Ok(Vec::new())
    }

    fn returned(&self, _: Returned) -> Vec<Publication> {
        Vec::new()
    }

    fn lost(&self, _: &str, _: bool) -> Vec<Publication> {
        Vec::new()
    }

    fn closed(&self, _: &str) {}
}

/// A settler that takes deliveries out of the table, as the outlet does.
#[derive(Default)]
struct Settlements {
    unsettled: Arc<Unsettled>,
    rejected: Mutex<Vec<u64>>,
}

impl Settler for Settlements {
    fn settle(&self, session: u64, tag: u64, outcome: Disposition) {
        assert_eq!(session, 7);
        assert!(self.unsettled.take(tag));
        if let Disposition::Reject { requeue: true } = outcome {
            self.rejected.lock().push(tag);
        }
    }

    fn reply(&self, _: u64, _: u64, _: PartialReply<'_>) {}
}

struct Fixture {
    sink: Arc<RecordingSink>,
    settlements: Arc<Settlements>,
    route: DeliveryRoute,
    commands: Receiver<Command>,
}

impl Fixture {
    fn new(spec: LinkSpec) -> Self {
        let sink: Arc<RecordingSink> = Arc::default();
        let settlements: Arc<Settlements> = Arc::default();
        let (sender, commands) = unbounded();
        let registered = RegisteredLink {
            spec,
            sink: Arc::clone(&sink) as Arc<dyn Sink>,
            settler: Arc::clone(&settlements) as Arc<dyn Settler>,
            outlet: Arc::default(),
            commands: sender,
            coalesce_buffer: Arc::new(CoalesceBuffer::new(1_000)),
            refusal: Arc::default(),
            opening: None,
        };
        let unsettled = Arc::clone(&settlements.unsettled);
        Self {
            sink,
            settlements,
            route: DeliveryRoute::new((1, &registered), 7, unsettled),
            commands,
        }
    }

    fn deliver(&self, tag: u64, key: &str) {
        let message = Message {
            routing_key: key.to_owned(),
            ..Message::default()
        };
        self.route.deliver(Incoming {
            tag,
            redelivered: false,
            message: Arc::new(message),
        });
    }

    /// Returns the routing keys of the deliveries that have reached the sink.
    fn keys(&self) -> Vec<String> {
        let deliveries = self.sink.0.lock();
        let keys = deliveries.iter().map(|it| it.message().routing_key.clone());
        keys.collect()
    }

    /// Settles the oldest delivery of the sink, and passes on what waits, as the I/O thread does.
    fn settle_first(&self) {
        let first = self.sink.0.lock().remove(0);
        first.ack();
        if self.settlements.unsettled.has_waiting() {
            self.route.pass_on_waiting();
        }
    }
}

fn consuming(prefetch: u16) -> Fixture {
    Fixture::new(LinkSpec::default().consume("queue", prefetch))
}

#[test]
fn deliveries_wait_until_the_route_is_started_and_stay_in_order() {
    let fixture = consuming(10);
    fixture.deliver(1, "a");
    fixture.deliver(2, "b");
    assert!(fixture.keys().is_empty());
    fixture.route.start();
    fixture.deliver(3, "c");
    assert_eq!(fixture.keys(), ["a", "b", "c"]);
}

#[test]
fn deliveries_beyond_the_prefetch_wait_for_settlements() {
    let fixture = consuming(2);
    fixture.route.start();
    for (tag, key) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        fixture.deliver(tag, key);
    }
    assert_eq!(fixture.keys(), ["a", "b"]);
    fixture.settle_first();
    assert_eq!(fixture.keys(), ["b", "c"]);
    fixture.route.set_prefetch(3);
    fixture.route.pass_on_waiting();
    assert_eq!(fixture.keys(), ["b", "c", "d"]);
    fixture.route.set_prefetch(1);
    fixture.deliver(5, "e");
    fixture.settle_first();
    fixture.settle_first();
    assert_eq!(fixture.keys(), ["d"]);
    fixture.route.pass_on_all();
    assert_eq!(fixture.keys(), ["d", "e"]);
}

#[test]
fn a_refused_delivery_is_requeued_and_what_a_sink_returns_is_sent() {
    let fixture = consuming(10);
    fixture.route.start();
    fixture.deliver(1, "refused");
    fixture.deliver(2, "answered");
    assert_eq!(*fixture.settlements.rejected.lock(), [1, 2]); // dropped, the second one
    match fixture.commands.try_recv() {
        Ok(Command::SendFirst {
            link: 1,
            publications,
        }) => {
            assert_eq!(publications[0].routing_key, "more");
        }
        _ => panic!("nothing is sent"),
    }
}

#[test]
fn a_closed_route_passes_nothing_on() {
    let fixture = consuming(1);
    fixture.deliver(1, "a");
    fixture.route.close();
    fixture.route.start();
    fixture.deliver(2, "b");
    fixture.route.pass_on_all();
    assert!(fixture.keys().is_empty());
}

#[test]
fn replies_of_a_coalescing_link_are_left_to_the_io_thread() {
    let fixture = Fixture::new(LinkSpec::default().reply_queue().coalesces(true));
    fixture.route.start();
    fixture.deliver(1, "a");
    fixture.deliver(2, "b");
    assert!(fixture.keys().is_empty());
    let receiver = fixture.route.by_io_thread().unwrap();
    assert_eq!(receiver.len(), 2);
    fixture.route.pass_on_queued(1);
    assert_eq!(fixture.keys(), ["a"]);
    fixture.route.pass_on_all();
    assert_eq!(fixture.keys(), ["a", "b"]);
}

/// No delivery that came before the settlement of others is left waiting.
#[test]
fn no_delivery_is_stranded_when_threads_deliver_and_settle_at_once() {
    const DELIVERIES: u64 = 5_000;
    let fixture = consuming(1);
    fixture.route.start();
    thread::scope(|scope| {
        scope.spawn(|| {
            for tag in 1..=DELIVERIES {
                fixture.deliver(tag, "a");
            }
        });
        let end = Instant::now() + Duration::from_secs(60);
        let mut settled = 0;
        while settled < DELIVERIES {
            assert!(Instant::now() < end, "{settled} were passed on");
            if fixture.sink.0.lock().is_empty() {
                thread::yield_now();
                continue;
            }
            fixture.settle_first();
            settled += 1;
        }
    });
}
