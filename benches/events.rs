//! Events per second, as ratios to the shortest hand-written program of the same shape.
//!
//!     cargo bench --bench events -- --seconds 12
//!
//! `publish_async` against a hand-written publisher with confirms, into one queue; and one
//! publisher to ten groups, counted when they are handled, against ten hand-written consumers that
//! acknowledge each delivery, with a prefetch of 10 on both sides. The hand-written programs decode
//! nothing. All consumers of a side use one connection in the first run, as in one process, and one
//! connection each in the second, as in ten. Runs over RabbitMQ on AMQP_URL, or on a private one
//! that it starts; in alternating slices of the same run. Prints one JSON object for each side, and
//! the ratios; that of the fan-out is the median of the ratios of neighbouring slices.

#[path = "support/bare_connection.rs"]
mod bare_connection;
#[allow(dead_code)] // other benchmarks print lines without bounds
#[path = "support/figure.rs"]
mod figure;
#[path = "support/publishing.rs"]
mod publishing;
#[path = "../tests/it/support/server.rs"]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amiquip::{Connection, ConsumerMessage, ConsumerOptions, FieldTable, QueueDeclareOptions};
use clap::Parser;
use coney::{Broker, EventPublisher, EventSubscriber};

use crate::figure::{Bound, bounded, median};
use crate::publishing::{Bare, flood, report};
use crate::server::Server;

#[derive(Parser)]
struct Options {
    /// Seconds for which each side of each scenario publishes in all
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// Bytes of payload
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

const SLICES: u32 = 7;
const GROUPS: usize = 10;
const EXCHANGE: &str = "event.exchange";
const ALONE: &str = "bench.alone";
const BY_HAND: &str = "bench.hand";
const BY_CONEY: &str = "bench.coney";
const QUEUE: &str = "event.bench-alone.bench.alone";

fn main() {
    let options = Options::parse();
    let own_broker;
    let url = match std::env::var("AMQP_URL") {
        Ok(url) => url,
        Err(_) => {
            own_broker = Server::rabbitmq();
            own_broker.url().to_owned()
        }
    };
    let time = Duration::from_secs_f64(options.seconds);
    let payload = "x".repeat(options.payload);
    // The envelope takes some 240 bytes.
    let body = vec![b'x'; options.payload + 240];
    let broker = Broker::connect(&url).expect("the broker is there");
    let publisher = EventPublisher::new(&broker, "bench").expect("a name");
    publish(&url, &broker, &publisher, &payload, &body, time);
    for connections in [1, GROUPS] {
        fan_out(&url, connections, &publisher, &payload, &body, time);
    }
}

fn publish(
    url: &str,
    broker: &Broker,
    publisher: &EventPublisher,
    payload: &str,
    body: &[u8],
    time: Duration,
) {
    // Starting a subscriber declares the queue, which outlives it.
    let subscriber = EventSubscriber::builder(broker, "bench-alone")
        .listen(ALONE, |_: String| ())
        .start();
    drop(subscriber.expect("the subscriber starts"));
    let mut bare = Bare::new(bare_connection::connect(url), EXCHANGE, ALONE, false);
    let mut counts = [0, 0];
    for _ in 0..SLICES {
        counts[0] += bare.publish(body, Instant::now() + time / SLICES);
        bare.purge(QUEUE);
        let send = || publisher.publish_async(ALONE, payload);
        counts[1] += flood(send, Instant::now() + time / SLICES);
        bare.purge(QUEUE);
    }
    let ratio = report(["bare", "publish_async"], counts, time);
    eprintln!("publish_async: {ratio:.2} of bare");
}

fn fan_out(
    url: &str,
    connections: usize,
    publisher: &EventPublisher,
    payload: &str,
    body: &[u8],
    time: Duration,
) {
    let [by_hand, by_coney] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let mut bare = Bare::new(bare_connection::connect(url), EXCHANGE, BY_HAND, false);
    let consumers = Consumers::start(url, connections, &by_hand);
    let connect = |_| Broker::connect(url).expect("the broker is there");
    let brokers: Vec<Broker> = (0..connections).map(connect).collect();
    let subscribers: Vec<EventSubscriber> = (0..GROUPS)
        .map(|group| {
            let handled = Arc::clone(&by_coney);
            let broker = &brokers[group % connections];
            let subscriber = EventSubscriber::builder(broker, &format!("bench-group-{group}"));
            let subscriber = subscriber.listen(BY_CONEY, move |_: String| {
                handled.fetch_add(1, Ordering::Relaxed);
            });
            subscriber.start().expect("the subscriber starts")
        })
        .collect();
    let mut times = [Duration::ZERO; 2];
    let mut ratios = Vec::new();
    for _ in 0..SLICES {
        let bare = timed(&by_hand, |end| bare.publish(body, end), time / SLICES);
        let send = || publisher.publish_async(BY_CONEY, payload);
        let coney = timed(&by_coney, |end| flood(send, end), time / SLICES);
        ratios.push(coney.per_s() / bare.per_s());
        times[0] += bare.time;
        times[1] += coney.time;
    }
    drop(subscribers);
    consumers.stop();
    // The rate is per second of the time until all events were handled.
    let rate = |count: &AtomicU64, time: Duration| {
        (count.load(Ordering::Relaxed) as f64 / time.as_secs_f64()) as u64
    };
    let rates = [rate(&by_hand, times[0]), rate(&by_coney, times[1])];
    report(["bare_fan_out", "fan_out"], rates, Duration::from_secs(1));
    let what = format!("fan-out to {GROUPS} groups, connections: {connections}");
    bounded(&what, median(ratios), "of bare", Bound::AtLeast(1.0));
}

/// The events that were handled in a slice, and the time until the last of them.
struct Handled {
    events: u64,
    time: Duration,
}

impl Handled {
    fn per_s(&self) -> f64 {
        self.events as f64 / self.time.as_secs_f64()
    }
}

/// Publishes for `length`, and waits until every group has handled all events.
fn timed(handled: &AtomicU64, publish: impl FnOnce(Instant) -> u64, length: Duration) -> Handled {
    let (start, before) = (Instant::now(), handled.load(Ordering::Relaxed));
    let published = publish(start + length);
    let all = before + published * GROUPS as u64;
    while handled.load(Ordering::Relaxed) < all {
        assert!(
            start.elapsed() < length + Duration::from_secs(60),
            "some are missing"
        );
        thread::sleep(Duration::from_millis(1));
    }
    Handled {
        events: all - before,
        time: start.elapsed(),
    }
}

/// The shortest hand-written consumers.
struct Consumers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _connections: Vec<Connection>,
}

impl Consumers {
    fn start(url: &str, connections: usize, handled: &Arc<AtomicU64>) -> Self {
        let connect = |_| bare_connection::connect(url);
        let mut connections: Vec<_> = (0..connections).map(connect).collect();
        let over = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = crossbeam_channel::bounded(GROUPS);
        let threads = (0..GROUPS).map(|group| {
            let (over, handled) = (Arc::clone(&over), Arc::clone(handled));
            let ready = ready.clone();
            let which = group % connections.len();
            let channel = connections[which].open_channel(None).expect("a channel");
            thread::spawn(move || {
                let durable = QueueDeclareOptions {
                    durable: true,
                    ..QueueDeclareOptions::default()
                };
                let queue = channel.queue_declare(format!("bench.hand.{group}"), durable);
                let queue = queue.expect("a queue");
                channel
                    .queue_bind(queue.name(), EXCHANGE, BY_HAND, FieldTable::new())
                    .expect("a binding");
                channel.qos(0, 10, false).expect("a prefetch");
                let consumer = queue
                    .consume(ConsumerOptions::default())
                    .expect("a consumer");
                ready.send(()).expect("the main thread waits");
                while !over.load(Ordering::Relaxed) {
                    let next = consumer.receiver().recv_timeout(Duration::from_millis(100));
                    if let Ok(ConsumerMessage::Delivery(delivery)) = next {
                        delivery.ack(&channel).expect("the connection lives");
                        handled.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        let threads = threads.collect();
        is_ready.iter().take(GROUPS).for_each(drop);
        Self {
            over,
            threads,
            _connections: connections,
        }
    }

    fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
