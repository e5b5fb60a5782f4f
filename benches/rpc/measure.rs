use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::{Scenario, Transport};

/// One call, ready to be made again and again by one thread; false if it failed.
pub type Call = Box<dyn FnMut() -> bool + Send>;

/// A server that echoes, and something that calls it.
pub trait Setup {
    /// One caller's call: sends the payload, checks that it came back.
    fn caller(&self, payload: &str) -> Call;
}

/// What the callers of one slice saw.
pub struct Slice {
    seconds: f64,
    /// In nanoseconds.
    latencies: Histogram<u64>,
    errors: u64,
}

/// Lets each thread call for a moment unmeasured, then for `length` measured.
pub fn measure(calls: Vec<Call>, length: Duration) -> Slice {
    let warm_up = length / 5;
    let start = Barrier::new(calls.len() + 1);
    let (measuring, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let threads: Vec<_> = calls
            .into_iter()
            .map(|mut call| {
                let (start, measuring, stop) = (&start, &measuring, &stop);
                scope.spawn(move || {
                    let mut latencies = latencies();
                    let mut errors = 0;
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let begin = Instant::now();
                        let ok = call();
                        let nanos = begin.elapsed().as_nanos() as u64;
                        if measuring.load(Ordering::Relaxed) {
                            latencies.saturating_record(nanos);
                            errors += u64::from(!ok);
                        }
                    }
                    (latencies, errors)
                })
            })
            .collect();
        start.wait();
        thread::sleep(warm_up);
        measuring.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        thread::sleep(length);
        measuring.store(false, Ordering::Relaxed);
        let seconds = begin.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let mut slice = Slice {
            seconds,
            latencies: latencies(),
            errors: 0,
        };
        for thread in threads {
            let (latencies, errors) = thread.join().expect("callers do not panic");
            slice
                .latencies
                .add(latencies)
                .expect("they have the same bounds");
            slice.errors += errors;
        }
        slice
    })
}

/// From a microsecond to a minute in nanoseconds, to one part in a hundred. It never grows,
/// which would be measured, and thousands of callers have one each.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 2).expect("these bounds are allowed")
}

/// All slices of one figure.
pub struct Report {
    pub scenario: Scenario,
    transport: Transport,
    callers: usize,
    payload: usize,
    all: Slice,
}

impl Report {
    pub fn new(scenario: Scenario, transport: Transport, callers: usize, payload: usize) -> Self {
        Self {
            scenario,
            transport,
            callers,
            payload,
            all: Slice {
                seconds: 0.0,
                latencies: latencies(),
                errors: 0,
            },
        }
    }

    pub fn add(&mut self, slice: &Slice) {
        self.all.seconds += slice.seconds;
        self.all.errors += slice.errors;
        self.all
            .latencies
            .add(&slice.latencies)
            .expect("they have the same bounds");
    }

    fn rate(&self) -> f64 {
        self.all.latencies.len() as f64 / self.all.seconds
    }

    fn micros(&self, quantile: f64) -> f64 {
        self.all.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }

    pub fn to_json(&self) -> String {
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        serde_json::json!({
            "scenario": format!("{:?}", self.scenario).to_lowercase(),
            "transport": format!("{:?}", self.transport).to_lowercase(),
            "callers": self.callers,
            "payload": self.payload,
            "seconds": rounded(self.all.seconds),
            "calls": self.all.latencies.len(),
            "calls_per_s": rounded(self.rate()),
            "p50_us": rounded(self.micros(0.5)),
            "p99_us": rounded(self.micros(0.99)),
            "p999_us": rounded(self.micros(0.999)),
            "max_us": rounded(self.micros(1.0)),
            "errors": self.all.errors,
        })
        .to_string()
    }

    pub fn ratio_to(&self, bare: &Self) -> String {
        format!(
            "{:?} {:?} with {} callers: rate {:.2} of bare, p50 {:.2} of bare",
            self.transport,
            self.scenario,
            self.callers,
            self.rate() / bare.rate(),
            self.micros(0.5) / bare.micros(0.5),
        )
    }
}
