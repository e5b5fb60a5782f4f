//! A measured figure: its rate, latencies and memory.

use std::time::Duration;

use crate::Scenario;
use crate::measure::{Slice, latencies, measure};
use crate::scenario::{self, Shape};

/// One figure, accumulated over the measured slices.
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

    /// Creates a new setup, measures one slice and adds it.
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

    /// Returns the calls per second.
    pub fn rate(&self) -> f64 {
        let calls = match self.shape.scenario {
            Scenario::Batch => self.shape.batch,
            _ => 1,
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

    /// Compares with the fastest hand-written program.
    pub fn ratio_to(&self, best: &Self) -> String {
        format!(
            "{:?} {} with {} callers: rate {:.2} of {}, p50 {:.2} of it",
            self.shape.transport,
            self.shape.scenario.name(),
            self.shape.callers,
            self.rate() / best.rate(),
            best.shape.scenario.name(),
            self.micros(0.5) / best.micros(0.5),
        )
    }
}
