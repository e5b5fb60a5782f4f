use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::process::resident_kib;

/// One call, ready to be made again and again by one thread; false if it failed.
pub type Call = Box<dyn FnMut() -> bool + Send>;

/// A server that echoes, and something that calls it.
pub trait Setup {
    /// One caller's call: sends the payload, checks that it came back.
    fn caller(&self, number: usize, payload: &str) -> Call;
}

/// What the callers of one slice saw.
pub struct Slice {
    pub seconds: f64,
    /// In nanoseconds.
    pub latencies: Histogram<u64>,
    pub errors: u64,
    /// In the middle of it.
    pub resident_mib: f64,
}

/// Lets each thread call for a moment unmeasured, then for `length` measured.
pub fn measure(calls: Vec<Call>, length: Duration) -> Slice {
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
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 2).expect("these bounds are allowed")
}
