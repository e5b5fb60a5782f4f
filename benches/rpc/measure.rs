//! Measurement of concurrent callers.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::process::resident_kib;
use crate::usage::{Usage, Watch};

/// One call, made repeatedly by one thread; false if it failed.
pub type Call = Box<dyn FnMut() -> bool + Send>;

/// A server that echoes, and its callers.
pub trait Setup {
    /// Creates one caller's call, which sends the payload and checks the echo.
    fn caller(&self, number: usize, payload: &str) -> Call;
}

/// The measurements of all callers in one slice.
pub struct Slice {
    pub seconds: f64,
    /// The latencies in nanoseconds.
    pub latencies: Histogram<u64>,
    pub errors: u64,
    /// The resident memory in the middle of the slice.
    pub resident_mib: f64,
    pub usage: Usage,
}

/// Runs each call on a thread of its own, first unmeasured to warm up, then for `length` measured.
pub fn measure(calls: Vec<Call>, length: Duration, watch: Watch) -> Slice {
    // Thousands of threads take a while to reach a steady state.
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
        let watched = watch.begin();
        measuring.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        thread::sleep(length / 2);
        let resident_mib = resident_kib() as f64 / 1_024.0;
        thread::sleep(length / 2);
        measuring.store(false, Ordering::Relaxed);
        let seconds = begin.elapsed().as_secs_f64();
        let usage = watched.end();
        stop.store(true, Ordering::Relaxed);
        let mut slice = Slice {
            seconds,
            latencies: latencies(),
            errors: 0,
            resident_mib,
            usage,
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

/// Creates a histogram from a microsecond to a minute, in nanoseconds, with a precision of one in a
/// hundred. It has a fixed size, as growth would be measured too, and thousands of callers have one
/// each.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 2).expect("these bounds are allowed")
}
