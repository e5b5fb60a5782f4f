//! Four instances of a service, one of which fails or is slow, with and without ejection.

use std::panic;
use std::thread;
use std::time::{Duration, Instant};

use coney::balance::RoundRobin;
use coney::resilience::{Breaker, Resilience, Retry, Throttle};
use coney::{Broker, Instance, Registry, ServiceClient, ServiceServer};

use crate::figure::{Bound, bounded, unbounded};
use crate::load::{Load, Rate, Sample};

const INSTANCES: u64 = 4;

/// The number of the instance that fails or is slow.
const BAD: u64 = 2;

/// The time that a handler takes, and that of the slow instance's handlers.
const NORMAL: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(100);

/// More callers than a slow instance holds up.
const RATE: Rate = Rate {
    per_second: 400,
    callers: 80,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Panic,
    /// Slower than the callers wait.
    TooSlow,
    /// Slow, and the callers wait.
    Slow,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Panic => "one of four instances fails",
            Self::TooSlow => "one of four instances is 20 times slower, over the timeout",
            Self::Slow => "one of four instances is 20 times slower",
        }
    }

    fn timeout(self) -> Duration {
        match self {
            Self::TooSlow => SLOW / 2,
            Self::Panic | Self::Slow => SLOW * 50,
        }
    }
}

/// Measures each fault for this long, and half as long without ejection.
pub fn measure(length: Duration) {
    // The panics are meant.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    for fault in [Fault::Panic, Fault::TooSlow, Fault::Slow] {
        let without = Resilience::none()
            .retry(Retry::new())
            .breaker(Breaker::new())
            .throttle(Throttle::new());
        let without = Run::new(fault, without, length / 2);
        let with = Run::new(fault, Resilience::new(), length);
        let name = fault.name();
        if fault == Fault::Slow {
            let what = format!("{name}: p99 after 2 s, to that of the healthy, without ejection");
            unbounded(&what, without.slowness(), "times");
        } else {
            let what = format!("{name}: failed calls after 1 s, without ejection");
            unbounded(&what, without.failed(), "%");
            let what = format!("{name}: failed calls after 1 s");
            bounded(&what, with.failed(), "%", Bound::AtMost(2.0));
        }
        let what = format!("{name}: p99 after 2 s, to that of the healthy");
        bounded(&what, with.slowness(), "times", Bound::AtMost(2.0));
    }
    panic::set_hook(hook);
}

/// The calls of one run.
struct Run {
    begun: Instant,
    samples: Vec<Sample>,
}

impl Run {
    fn new(fault: Fault, policies: Resilience, length: Duration) -> Self {
        let (broker, registry) = (Broker::memory(), Registry::memory());
        let server = |number| {
            ServiceServer::builder(&broker, "stock")
                .registry(&registry)
                .instance(Instance::new().with_id(format!("i{number}")))
                .workers(32)
                .prefetch(32)
                .respond("call", move |_: u64| {
                    match number == BAD {
                        true if fault == Fault::Panic => panic!("the instance fails"),
                        true => thread::sleep(SLOW),
                        false => thread::sleep(NORMAL),
                    }
                    number
                })
                .start()
                .expect("the server starts")
        };
        let _servers: Vec<ServiceServer> = (0..INSTANCES).map(server).collect();
        let client = ServiceClient::builder(&broker, "bench")
            .registry(&registry)
            .balancer(RoundRobin::new())
            .resilience(policies)
            .build()
            .expect("the client starts");
        let begun = Instant::now();
        let load = Load::start(&client, "stock", RATE, fault.timeout());
        thread::sleep(length);
        let samples = load.stop();
        let run = Self { begun, samples };
        let of = |number| {
            let served = run.samples.iter().filter(|it| it.result == Ok(number));
            served.count()
        };
        eprintln!(
            "{}: {} calls, served by the instances {:?}, {} failed; ejected: {:?}",
            fault.name(),
            run.samples.len(),
            [0, 1, 2, 3].map(of),
            run.samples.iter().filter(|it| it.result.is_err()).count(),
            client.ejected("stock"),
        );
        run
    }

    fn after(&self, seconds: u64) -> impl Iterator<Item = &Sample> {
        let from = self.begun + Duration::from_secs(seconds);
        self.samples.iter().filter(move |it| it.begun >= from)
    }

    /// Returns the share of failed calls after the first second, in per cent.
    fn failed(&self) -> f64 {
        let failed = self.after(1).filter(|it| it.result.is_err()).count();
        100.0 * failed as f64 / self.after(1).count() as f64
    }

    /// Returns the 99th percentile of all calls after two seconds, as a multiple of that of the
    /// calls that the healthy instances have served.
    fn slowness(&self) -> f64 {
        let healthy = |it: &&Sample| it.result.is_ok_and(|by| by != BAD);
        percentile_99(self.after(2)) / percentile_99(self.after(2).filter(healthy))
    }
}

/// Returns the 99th percentile of the calls' times in seconds.
fn percentile_99<'a>(samples: impl Iterator<Item = &'a Sample>) -> f64 {
    let mut times: Vec<f64> = samples.map(|it| it.took.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}
