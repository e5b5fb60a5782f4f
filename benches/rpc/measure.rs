use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Scenario;
use crate::process::resident_kib;
use crate::scenario::{self, Shape};

/// One call, ready to be made again and again by one thread; false if it failed.
pub type Call = Box<dyn FnMut() -> bool + Send>;

/// A server that echoes, and something that calls it.
pub trait Setup {
    /// One caller's call: sends the payload, checks that it came back.
    fn caller(&self, number: usize, payload: &str) -> Call;
}

/// What the callers of one slice saw.
struct Slice {
    seconds: f64,
    /// In nanoseconds.
    latencies: Histogram<u64>,
    errors: u64,
    /// In the middle of it.
    resident_mib: f64,
}

/// Lets each thread call for a moment unmeasured, then for `length` measured.
fn measure(calls: Vec<Call>, length: Duration) -> Slice {
    // Thousands of threads take a while to come to a steady state.
    let warm_up = length / 5 + Duration::from_micros(400) * calls.len() as u32;
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
        thread::sleep(length / 2);
        let resident_mib = resident_kib() as f64 / 1_024.0;
        thread::sleep(length / 2);
        measuring.store(false, Ordering::Relaxed);
        let seconds = begin.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let mut slice = Slice {
            seconds,
            latencies: latencies(),
            errors: 0,
            resident_mib,
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

/// One figure, of as many slices as have been measured.
pub struct Figure {
    pub shape: Shape,
    all: Slice,
}

impl Figure {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            all: Slice {
                seconds: 0.0,
                latencies: latencies(),
                errors: 0,
                resident_mib: 0.0,
            },
        }
    }

    /// Sets everything up anew and adds a slice.
    pub fn measure(&mut self, url: &str, length: Duration) {
        let payload = "x".repeat(self.shape.payload);
        let setup = scenario::set_up(&self.shape, url);
        let callers = 0..self.shape.callers;
        let calls = callers
            .map(|number| setup.caller(number, &payload))
            .collect();
        let slice = measure(calls, length);
        self.all.seconds += slice.seconds;
        self.all.errors += slice.errors;
        self.all.resident_mib = self.all.resident_mib.max(slice.resident_mib);
        self.all
            .latencies
            .add(&slice.latencies)
            .expect("they have the same bounds");
    }

    /// Calls a second.
    pub fn rate(&self) -> f64 {
        let calls = match self.shape.scenario {
            Scenario::Batch => self.shape.batch,
            Scenario::Bare | Scenario::Call | Scenario::Coalesced => 1,
        };
        self.all.latencies.len() as f64 * calls as f64 / self.all.seconds
    }

    pub fn micros(&self, quantile: f64) -> f64 {
        self.all.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }

    pub fn resident_mib(&self) -> f64 {
        self.all.resident_mib
    }

    pub fn errors(&self) -> u64 {
        self.all.errors
    }

    pub fn to_json(&self) -> String {
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        let Shape {
            scenario,
            transport,
            callers,
            payload,
            batch,
            services,
            clients,
        } = self.shape;
        let mut figure = serde_json::json!({
            "scenario": scenario.name(),
            "transport": format!("{transport:?}").to_lowercase(),
            "callers": callers,
            "payload": payload,
            "services": services,
            "clients": clients,
            "seconds": rounded(self.all.seconds),
            "calls_per_s": self.rate().round(),
            "p50_us": rounded(self.micros(0.5)),
            "p99_us": rounded(self.micros(0.99)),
            "p999_us": rounded(self.micros(0.999)),
            "max_us": rounded(self.micros(1.0)),
            "resident_mib": rounded(self.all.resident_mib),
            "errors": self.all.errors,
        });
        if scenario == Scenario::Batch {
            figure["batch"] = batch.into();
        }
        figure.to_string()
    }

    pub fn ratio_to(&self, bare: &Self) -> String {
        format!(
            "{:?} {} with {} callers: rate {:.2} of bare, p50 {:.2} of bare",
            self.shape.transport,
            self.shape.scenario.name(),
            self.shape.callers,
            self.rate() / bare.rate(),
            self.micros(0.5) / bare.micros(0.5),
        )
    }
}
