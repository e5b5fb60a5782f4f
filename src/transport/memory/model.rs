//! A property test that drives the broker's state step by step against a model that is simple
//! enough to be obviously right: one list of messages per queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::state::State;
use crate::topology::{ExchangeKind, Topology};
use crate::transport::{
    Delivery, Disposition, LinkSpec, PartialReply, Publication, Returned, Settler, Sink,
};

const QUEUES: [&str; 2] = ["q0", "q1"];

/// One operation of a test on the broker.
#[derive(Clone, Debug)]
enum Step {
    /// Publishes to a queue, or with a routing key that no queue is bound with.
    Publish {
        queue: Option<usize>,
        expires_in: Option<u64>,
        mandatory: bool,
    },
    Consume {
        queue: usize,
        prefetch: u16,
    },
    /// Acknowledges the n-th unsettled delivery, modulo their number.
    Ack(usize),
    Reject {
        which: usize,
        requeue: bool,
    },
    StopConsuming(usize),
    Close(usize),
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let publish = (
        prop::option::weighted(0.9, 0..2usize),
        prop::option::weighted(0.3, 0..50u64),
        any::<bool>(),
    )
        .prop_map(|(queue, expires_in, mandatory)| Step::Publish {
            queue,
            expires_in,
            mandatory,
        });
    prop_oneof![
        8 => publish,
        2 => (0..2usize, 1..4u16).prop_map(|(queue, prefetch)| Step::Consume { queue, prefetch }),
        4 => (0..10usize).prop_map(Step::Ack),
        3 => (0..10usize, any::<bool>()).prop_map(|(which, requeue)| Step::Reject { which, requeue }),
        1 => (0..5usize).prop_map(Step::StopConsuming),
        1 => (0..5usize).prop_map(Step::Close),
        2 => (0..40u64).prop_map(Step::Advance),
    ]
}

/// A sink that stores its deliveries, as a link's owner would.
#[derive(Default)]
struct Consumer {
    got: Mutex<Vec<(u64, bool, Delivery)>>,
    returned: Mutex<u64>,
}

impl Consumer {
    fn numbers(&self) -> Vec<u64> {
        self.got.lock().iter().map(|(number, ..)| *number).collect()
    }
}

impl Sink for Consumer {
    fn delivery(&self, delivery: Delivery) -> Result<Vec<Publication>, Delivery> {
        let number = u64::from_be_bytes(delivery.message().body[..].try_into().unwrap());
        let redelivered = delivery.is_redelivered();
        self.got.lock().push((number, redelivered, delivery));
        Ok(Vec::new())
    }

    fn returned(&self, _: Returned) -> Vec<Publication> {
        *self.returned.lock() += 1;
        Vec::new()
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

#[derive(Clone, Copy, Debug)]
struct Waiting {
    number: u64,
    expires: Option<u64>,
    redelivered: bool,
}

/// A consumer in the model.
#[derive(Debug, Default)]
struct ModelConsumer {
    queue: usize,
    prefetch: usize,
    consuming: bool,
    unsettled: Vec<Waiting>,
}

#[derive(Debug, Default)]
struct Model {
    now: u64,
    ready: [Vec<Waiting>; 2],
    consumers: BTreeMap<u64, ModelConsumer>,
    published: u64,
    returned: u64,
}

impl Model {
    /// Delivers or expires all messages that can be; delivery itself is checked by what the
    /// consumers received.
    fn deliver_or_expire_all(&mut self) {
        for queue in 0..2 {
            let mut room: usize = self
                .consumers
                .values()
                .filter(|c| c.consuming && c.queue == queue)
                .map(|c| c.prefetch - c.unsettled.len())
                .sum();
            let now = self.now;
            while let Some(head) = self.ready[queue].first() {
                if head.expires.is_some_and(|at| at <= now) {
                    self.ready[queue].remove(0);
                } else if room > 0 {
                    room -= 1;
                    self.ready[queue].remove(0);
                } else {
                    break;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn behaves_like_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let start = Instant::now();
        let mut state = State::default();
        let mut model = Model::default();
        let mut sinks: BTreeMap<u64, Arc<Consumer>> = BTreeMap::new();

        let publisher = state.next_id();
        let publisher_sink = Arc::new(Consumer::default());
        let topology = Topology::new()
            .exchange("x", ExchangeKind::Direct)
            .queue(QUEUES[0]).queue(QUEUES[1])
            .bind(QUEUES[0], "x", "k0").bind(QUEUES[1], "x", "k1");
        state.open(publisher, &LinkSpec::new(topology.clone()), publisher_sink.clone(), Arc::new(NoSettler), start).unwrap();

        for step in steps {
            let now = start + Duration::from_millis(model.now);
            match step {
                Step::Publish { queue, expires_in, mandatory } => {
                    model.published += 1;
                    let key = queue.map_or("nowhere".to_owned(), |q| format!("k{q}"));
                    let mut publication = Publication::new("x", key, model.published.to_be_bytes().to_vec());
                    publication.mandatory = mandatory;
                    publication.properties.expiration = expires_in.map(Duration::from_millis);
                    let to = state.route(&publication.exchange, &publication.routing_key, &publication.properties.headers).unwrap();
                    state.publish(publisher, publication, None, &to, now);
                    match queue {
                        Some(queue) => model.ready[queue].push(Waiting {
                            number: model.published,
                            expires: expires_in.map(|after| model.now + after),
                            redelivered: false,
                        }),
                        None => model.returned += u64::from(mandatory),
                    }
                }
                Step::Consume { queue, prefetch } => {
                    let link = state.next_id();
                    let sink = Arc::new(Consumer::default());
                    let spec = LinkSpec::new(topology.clone()).consume(QUEUES[queue], prefetch);
                    model.consumers.insert(link, ModelConsumer { queue, prefetch: prefetch.into(), consuming: true, unsettled: vec![] });
                    sinks.insert(link, sink.clone());
                    state.open(link, &spec, sink, Arc::new(NoSettler), now).unwrap();
                }
                Step::Ack(which) | Step::Reject { which, .. } => {
                    let requeue = matches!(step, Step::Reject { requeue: true, .. });
                    let all: Vec<(u64, usize)> = model.consumers.iter()
                        .flat_map(|(&link, c)| (0..c.unsettled.len()).map(move |at| (link, at)))
                        .collect();
                    if all.is_empty() { continue; }
                    let (link, at) = all[which % all.len()];
                    let consumer = model.consumers.get_mut(&link).unwrap();
                    let waiting = consumer.unsettled.remove(at);
                    if requeue {
                        let queue = &mut model.ready[consumer.queue];
                        let at = queue.partition_point(|w| w.number < waiting.number);
                        queue.insert(at, Waiting { redelivered: true, ..waiting });
                    }
                    let delivery = {
                        let mut got = sinks[&link].got.lock();
                        let at = got.iter().position(|(n, ..)| *n == waiting.number).unwrap();
                        got.remove(at).2
                    };
                    let tag = delivery.forget().unwrap();
                    let outcome = match step {
                        Step::Ack(_) => Disposition::Ack { reply: None },
                        _ => Disposition::Reject { requeue },
                    };
                    state.settle(link, tag, outcome, now);
                    // A second settlement must change nothing.
                    state.settle(link, tag, Disposition::Reject { requeue: true }, now);
                }
                Step::StopConsuming(which) | Step::Close(which) => {
                    let Some(&link) = model.consumers.keys().nth(which) else { continue };
                    if matches!(step, Step::StopConsuming(_)) {
                        state.stop_consuming(link);
                        model.consumers.get_mut(&link).unwrap().consuming = false;
                    } else {
                        let closed = model.consumers.remove(&link).unwrap();
                        for waiting in closed.unsettled {
                            let queue = &mut model.ready[closed.queue];
                            let at = queue.partition_point(|w| w.number < waiting.number);
                            queue.insert(at, Waiting { redelivered: true, ..waiting });
                        }
                        for (_, _, delivery) in sinks.remove(&link).unwrap().got.lock().drain(..) {
                            delivery.forget();
                        }
                        state.close(link, now);
                    }
                }
                Step::Advance(by) => model.now += by,
            }
            // The deliveries to each consumer since the last step, in its order.
            let delivered: Vec<u64> = sinks
                .values()
                .flat_map(|sink| sink.numbers())
                .collect();
            for (&link, consumer) in &mut model.consumers {
                let got = sinks[&link].got.lock();
                for (number, redelivered, _) in got.iter().skip(consumer.unsettled.len()) {
                    let queue = &mut model.ready[consumer.queue];
                    let at = queue.iter().position(|w| w.number == *number);
                    prop_assert!(at.is_some(), "message {number} was delivered but not waiting");
                    let waiting = queue[at.unwrap()];
                    for before in &queue[..at.unwrap()] {
                        let expired = before.expires.is_some_and(|at| at <= model.now);
                        let elsewhere = delivered.contains(&before.number);
                        prop_assert!(expired || elsewhere, "{number} overtook {}", before.number);
                    }
                    prop_assert!(waiting.expires.is_none_or(|at| at > model.now), "{number} had expired");
                    prop_assert_eq!(waiting.redelivered, *redelivered);
                    consumer.unsettled.push(waiting);
                }
            }
            for (&link, consumer) in &model.consumers {
                prop_assert!(consumer.unsettled.len() <= consumer.prefetch);
                prop_assert_eq!(consumer.unsettled.len(), sinks[&link].got.lock().len());
            }
            let held: Vec<u64> = model.consumers.values().flat_map(|c| c.unsettled.iter().map(|w| w.number)).collect();
            for queue in &mut model.ready {
                queue.retain(|w| !held.contains(&w.number));
            }
            // No message that could have been delivered was kept back.
            let kept = model.ready.clone();
            model.deliver_or_expire_all();
            for queue in 0..2 {
                let live = |w: &&Waiting| w.expires.is_none_or(|at| at > model.now);
                let kept = kept[queue].iter().filter(live).count();
                let wanted = model.ready[queue].iter().filter(live).count();
                prop_assert_eq!(kept, wanted, "queue {} kept messages back", queue);
            }
            prop_assert_eq!(*publisher_sink.returned.lock(), model.returned);
        }
        for sink in sinks.values() {
            for (_, _, delivery) in sink.got.lock().drain(..) {
                delivery.forget();
            }
        }
    }
}
