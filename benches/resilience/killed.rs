//! A service that is killed under load, and comes back: the requests that reach it meanwhile, the
//! time of a refusal, and the time until it is called again.
//!
//! In its place a peer takes the requests off the queue and answers none: for the callers that is
//! no different, and it knows which requests have reached the service.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coney::message::ServiceMessage;
use coney::resilience::{Breaker, BreakerState, Refusal, Resilience};
use coney::transport::{Link, LinkSpec, Topology};
use coney::{Broker, ServiceClient, ServiceServer};

use crate::figure::{Bound, bounded, median, unbounded};
use crate::load::{Failure, Load, Rate, Sample};

const SERVICE: &str = "bench-killed";
const TIMEOUT: Duration = Duration::from_millis(100);
const RATE: Rate = Rate {
    per_second: 1_000,
    callers: 200,
};

/// The refusals whose median counts.
const REFUSALS: usize = 20_000;

/// Measures both brokers, RabbitMQ if there is one.
pub fn measure(killed_for: Duration) {
    Outage::new("memory", Broker::memory(), killed_for).measure();
    match rabbitmq() {
        Some(broker) => Outage::new("RabbitMQ", broker, killed_for).measure(),
        None => eprintln!("killed: not over RabbitMQ, as AMQP_URL is not set"),
    }
}

/// Connects to the RabbitMQ of the environment, if there is one.
pub fn rabbitmq() -> Option<Broker> {
    let urls = ["CONEY_TEST_AMQP_URL", "AMQP_URL"].map(std::env::var);
    let url = urls.into_iter().find_map(Result::ok)?;
    Some(Broker::connect(&url).expect("the broker is there"))
}

struct Outage {
    transport: &'static str,
    broker: Broker,
    killed_for: Duration,
    /// The length of all periods as a part of their defaults.
    scale: f64,
}

/// The moments at which a breaker was reported open.
type Openings = Arc<Mutex<Vec<Instant>>>;

impl Outage {
    fn new(transport: &'static str, broker: Broker, killed_for: Duration) -> Self {
        let scale = (killed_for.as_secs_f64() / 60.0).min(1.0);
        if scale < 1.0 {
            eprintln!("killed, {transport}: open periods are {scale:.2} times the default");
        }
        Self {
            transport,
            broker,
            killed_for,
            scale,
        }
    }

    fn scaled(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * self.scale)
    }

    fn measure(&self) {
        self.measure_from_the_start();
        self.measure_under_load();
    }

    /// Measures a client that begins while the service is dead.
    fn measure_from_the_start(&self) {
        drop(self.server());
        let dead = DeadService::start(&self.broker);
        let (client, openings) = self.client();
        let load = Load::start(&client, SERVICE, RATE, TIMEOUT);
        thread::sleep(self.scaled(12.0));
        let samples = load.stop();
        let reached = dead.stop();
        self.report_periods("dead from the start", &samples, &reached, &openings);
    }

    /// Measures a service that is killed after it has served for 10 s, and comes back.
    fn measure_under_load(&self) {
        let transport = self.transport;
        let server = self.server();
        let (client, openings) = self.client();
        let load = Load::start(&client, SERVICE, RATE, TIMEOUT);
        thread::sleep(self.scaled(10.0));
        let killed_at = Instant::now();
        drop(server);
        let dead = DeadService::start(&self.broker);
        thread::sleep(self.killed_for / 2);
        self.measure_refusals(&client);
        let left = (killed_at + self.killed_for).saturating_duration_since(Instant::now());
        thread::sleep(left);
        let reached = dead.stop();
        let back_at = Instant::now();
        let _server = self.server();
        let breaker = client.breaker(SERVICE).expect("it has one");
        let patience = self.scaled(120.0);
        while breaker.state() != BreakerState::Closed && back_at.elapsed() < patience {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(self.scaled(5.0));
        let samples = load.stop();

        let (before, after): (Vec<Sample>, Vec<Sample>) = samples
            .into_iter()
            .partition(|sample| sample.begun < back_at);
        for (when, samples) in [("before", &before), ("after", &after)] {
            let late = samples.iter().map(|sample| sample.late).max();
            let took = samples.iter().map(|sample| sample.took).max();
            eprintln!(
                "killed under load, {transport}, {when} the service is back: the longest call took \
                 {took:?}, the latest began {late:?} late"
            );
        }
        self.report_periods("killed under load", &before, &reached, &openings);
        let first_opening = openings.lock().expect("no panic").first().copied();
        if let Some(opened) = first_opening {
            let took = opened.duration_since(killed_at).as_secs_f64();
            let what = format!("killed under load, {transport}: time until the breaker opens");
            unbounded(&what, took, "s");
        }
        let last_failed = after.iter().rfind(|sample| sample.result.is_err());
        let back_after = last_failed.map(|sample| sample.begun.duration_since(back_at));
        let what = format!("killed under load, {transport}: traffic is back after the service");
        let wanted = Bound::AtMost(self.scaled(60.0).as_secs_f64());
        let back_after = back_after.unwrap_or_default().as_secs_f64();
        bounded(&what, back_after, "s", wanted);
        let served = after.iter().filter(|sample| sample.result.is_ok()).count();
        eprintln!("{what}: {served} of {} calls served", after.len());
    }

    /// Prints the number of calls that have reached the service in one open period: those that
    /// began after a report that the breaker is open, and before the next one.
    fn report_periods(&self, case: &str, samples: &[Sample], reached: &[u64], openings: &Openings) {
        let transport = self.transport;
        let openings = openings.lock().expect("no panic");
        let reached: HashSet<u64> = reached.iter().copied().collect();
        let mut periods = vec![0u32; openings.len() + 1];
        for sample in samples.iter().filter(|it| reached.contains(&it.number)) {
            let period = openings.partition_point(|opened| *opened < sample.begun);
            periods[period] += 1;
        }
        let what = format!("{case}, {transport}: calls per open period that reach the service");
        let most = periods.iter().skip(1).copied().max();
        let most = most.map_or(f64::INFINITY, f64::from);
        bounded(&what, most, "calls", Bound::AtMost(3.0));
        let what = format!("{case}, {transport}: calls that reach it before the breaker opens");
        unbounded(&what, f64::from(periods[0]), "calls");
        let of = |failure| {
            let failed = samples.iter().filter(|it| it.result == Err(failure));
            failed.count()
        };
        let late = samples.iter().filter(|it| it.took > 2 * TIMEOUT).count();
        eprintln!(
            "{case}, {transport}: {} calls, {} timed out, {} refused, {} failed otherwise, {late} \
             over twice the timeout; per open period {:?}",
            samples.len(),
            of(Failure::TimedOut),
            of(Failure::Refused),
            of(Failure::Other),
            &periods[1..],
        );
    }

    /// Measures refusals while the breaker is open.
    fn measure_refusals(&self, client: &ServiceClient) {
        let breaker = client.breaker(SERVICE).expect("it has one");
        while (breaker.retry_after()).is_none_or(|left| left <= Duration::from_millis(150)) {
            thread::sleep(Duration::from_millis(1));
        }
        let mut times = Vec::with_capacity(REFUSALS);
        for _ in 0..REFUSALS {
            let begin = Instant::now();
            let result = client.call::<u64>(SERVICE, "call", &0);
            let took = begin.elapsed();
            let refused = result.err().and_then(|error| error.refused_by());
            if refused == Some(Refusal::Breaker) {
                times.push(took.as_nanos() as f64 / 1_000.0);
            }
        }
        let what = format!("killed under load, {}: a refusal", self.transport);
        bounded(&what, median(times), "µs", Bound::AtMost(2.0));
    }

    fn server(&self) -> ServiceServer {
        ServiceServer::builder(&self.broker, SERVICE)
            .respond("call", |n: u64| n)
            .start()
            .expect("the server starts")
    }

    fn client(&self) -> (ServiceClient, Openings) {
        let openings = Openings::default();
        let seen = Arc::clone(&openings);
        let breaker = Breaker::new()
            .open_for(self.scaled(5.0), self.scaled(60.0))
            .on_change(move |change| {
                if change.to() == BreakerState::Open {
                    seen.lock().expect("no panic").push(Instant::now());
                }
            });
        let client = ServiceClient::builder(&self.broker, "bench")
            .resilience(Resilience::new().breaker(breaker))
            .build()
            .expect("the client starts");
        (client, openings)
    }
}

/// A peer that takes the requests of the service and answers none.
struct DeadService {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u64>>,
}

impl DeadService {
    fn start(broker: &Broker) -> Self {
        let queue = format!("service.{SERVICE}.request");
        let spec = LinkSpec::new(Topology::new()).consume(queue, 1_000);
        let link = Link::open(broker, spec).expect("the queue has stayed");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut numbers = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let Some(delivery) = link.recv_timeout(Duration::from_millis(10)) else {
                    continue;
                };
                let request = ServiceMessage::decode(&delivery.message().body);
                let request = request.expect("the client has encoded it");
                numbers.push(request.payload.decode().expect("a number"));
                delivery.ack();
            }
            numbers
        });
        Self { stop, thread }
    }

    /// Ends it, and returns the payloads of the requests that have reached it.
    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}
