//! Tests of delays on the memory broker's state, with a clock of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::state::State;
use crate::topology::{self, DEAD_QUEUE, DelayPath, Topology};
use crate::transport::{
    Delivery, Disposition, LinkSpec, PartialReply, Publication, Returned, Settler, Sink,
};

/// A consumer that records the bodies of its deliveries, and keeps these unsettled.
#[derive(Default)]
struct Recorder(Mutex<Vec<u8>>);

impl Sink for Recorder {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let headers = &delivery.message().properties.headers;
        assert_eq!(
            headers.get("left").is_some(),
            delivery.message().body[0].is_multiple_of(2)
        );
        self.0.lock().push(delivery.message().body[0]);
        delivery.forget();
        Ok(Vec::new())
    }

    fn returned(&self, _: Returned) -> Vec<Publication> {
        panic!("a message had no queue")
    }

    fn lost(&self, _: &str, _: bool) -> Vec<Publication> {
        Vec::new()
    }
    fn closed(&self, _: &str) {}
}

struct NoSettler;

impl Settler for NoSettler {
    fn settle(&self, _: u64, _: u64, _: Disposition) {}
    fn reply(&self, _: u64, _: u64, _: PartialReply<'_>) {}
}

fn open(state: &mut State, spec: &LinkSpec, now: Instant) -> (u64, Arc<Recorder>) {
    let (link, sink) = (state.next_id(), Arc::new(Recorder::default()));
    let opened = state.open(link, spec, sink.clone(), Arc::new(NoSettler), now);
    opened.unwrap();
    (link, sink)
}

fn publish(state: &mut State, link: u64, to: &str, number: u8, path: &DelayPath, now: Instant) {
    let mut publication = Publication::new(path.exchange(), to, vec![number]);
    publication.mandatory = true;
    let headers = &mut publication.properties.headers;
    headers.extend(path.headers());
    if number.is_multiple_of(2) {
        headers.insert("left", "as it is");
    }
    let Publication {
        exchange,
        routing_key,
        ..
    } = &publication;
    let headers = &publication.properties.headers;
    let queues = state.route(exchange, routing_key, headers).unwrap();
    state.publish(link, publication, None, &queues, now);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_message_waits_for_its_own_delay(
        steps in prop::collection::vec((1_u64..100_000, 0_u64..20_000), 1..30),
    ) {
        let start = Instant::now();
        let mut state = State::default();
        let topology = Topology::new().queue("service.s.request");
        let topology = topology.and(topology::for_returns("service.s.request"));
        let topology = topology.and(topology::for_delay_levels());
        let spec = LinkSpec::new(topology).consume("service.s.request", 1_000);
        let (link, sink) = open(&mut state, &spec, start);
        let (mut now, mut due): (Instant, Vec<(Instant, u8)>) = (start, Vec::new());
        for (number, (delay, pause)) in (0..).zip(&steps) {
            let path = DelayPath::of(Duration::from_millis(*delay));
            publish(&mut state, link, "service.s.request", number, &path, now);
            due.push((now + path.delay(), number));
            let until = now + Duration::from_millis(*pause);
            while let Some(next) = state.expire_due(now).filter(|next| *next <= until) {
                now = next;
            }
            now = until;
        }
        while let Some(next) = state.expire_due(now) {
            // Whatever is due has arrived, and nothing else.
            let mut arrived = sink.0.lock().clone();
            arrived.sort_unstable();
            let mut wanted: Vec<u8> =
                due.iter().filter(|(at, _)| *at <= now).map(|(_, number)| *number).collect();
            wanted.sort_unstable();
            prop_assert_eq!(arrived, wanted);
            now = next;
        }
        prop_assert_eq!(sink.0.lock().len(), steps.len());
    }
}

#[test]
fn what_comes_back_to_no_queue_is_a_dead_letter() {
    let start = Instant::now();
    let mut state = State::default();
    let spec = LinkSpec::new(topology::for_delay_levels());
    let (link, _sink) = open(&mut state, &spec, start);
    let path = DelayPath::of(Duration::from_secs(30));
    for number in 0..100 {
        publish(
            &mut state,
            link,
            "service.gone.request",
            number,
            &path,
            start,
        );
    }
    let mut now = start;
    while let Some(next) = state.expire_due(now) {
        now = next;
    }
    assert_eq!(now, start + path.delay() + Duration::from_secs(30));
    assert_eq!(
        state
            .queue_depth(DEAD_QUEUE, Instant::now())
            .unwrap()
            .messages,
        100
    );
}
