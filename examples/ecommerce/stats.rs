//! The statistics that each service keeps of its handlers.

use std::sync::Mutex;
use std::time::Instant;

use coney::{Context, HandlerError};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The statistics of a running service.
pub struct Stats(Mutex<Inner>);

struct Inner {
    handled: u64,
    failed: u64,
    retried: u64,
    micros: Histogram<u64>,
}

#[derive(Serialize, Deserialize)]
/// The statistics as a payload.
pub struct Report {
    pub handled: u64,
    pub failed: u64,
    pub retried: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Stats {
    pub fn new() -> Self {
        Self(Mutex::new(Inner {
            handled: 0,
            failed: 0,
            retried: 0,
            // Cannot fail: three significant digits are between zero and five.
            micros: Histogram::new(3).unwrap(),
        }))
    }

    /// Runs `work` and counts its result, its attempt and its duration.
    pub fn count<T>(
        &self,
        context: &Context<'_>,
        work: impl FnOnce() -> Result<T, HandlerError>,
    ) -> Result<T, HandlerError> {
        let start = Instant::now();
        let result = work();
        let mut inner = self.0.lock().unwrap();
        inner.retried += u64::from(context.attempt() > 1);
        match result {
            Ok(_) => inner.handled += 1,
            Err(_) => inner.failed += 1,
        }
        let _ = inner.micros.record(start.elapsed().as_micros() as u64);
        result
    }

    /// Returns a snapshot.
    pub fn report(&self) -> Report {
        let inner = self.0.lock().unwrap();
        let millis = |quantile| inner.micros.value_at_quantile(quantile) as f64 / 1_000.0;
        Report {
            handled: inner.handled,
            failed: inner.failed,
            retried: inner.retried,
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
        }
    }
}
