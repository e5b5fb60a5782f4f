//! A measured figure: its rate, latencies, memory, and use of the machine.

use std::time::Duration;

use crate::Scenario;
use crate::bounds::median;
use crate::measure::{Slice, latencies, measure};
use crate::scenario::{self, Shape};
use crate::target::Target;
use crate::usage::{Usage, Watch};

/// One figure: the median of its slices.
pub struct Figure {
    pub shape: Shape,
    slices: Vec<Slice>,
    system_calls: Option<f64>,
}

impl Figure {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            slices: Vec::new(),
            system_calls: None,
        }
    }

    /// Creates a new setup, measures one slice and adds it.
    pub fn measure(&mut self, target: &Target, length: Duration) {
        let watch = Watch::Scheduler {
            broker: target.process,
        };
        let slice = self.slice(target, length, watch);
        self.slices.push(slice);
    }

    /// Counts the system calls in a slice of its own, which adds nothing to the other values.
    pub fn count_system_calls(&mut self, target: &Target, length: Duration) {
        let slice = self.slice(target, length, Watch::SystemCalls);
        self.system_calls = self.per_call(&slice, |usage| usage.system_calls);
    }

    fn slice(&self, target: &Target, length: Duration, watch: Watch) -> Slice {
        let payload = "x".repeat(self.shape.payload);
        let setup = scenario::set_up(&self.shape, &target.url);
        let callers = 0..self.shape.callers;
        let calls = callers
            .map(|number| setup.caller(number, &payload))
            .collect();
        measure(calls, length, watch)
    }

    /// Returns the calls per second.
    pub fn rate(&self) -> f64 {
        self.median(|slice| self.rate_of(slice))
    }

    fn rate_of(&self, slice: &Slice) -> f64 {
        let calls = match self.shape.scenario {
            Scenario::Batch => self.shape.batch,
            _ => 1,
        };
        slice.latencies.len() as f64 * calls as f64 / slice.seconds
    }

    /// Returns a quantile of all latencies.
    pub fn micros(&self, quantile: f64) -> f64 {
        let mut all = latencies();
        for slice in &self.slices {
            let added = all.add(&slice.latencies);
            added.expect("they have the same bounds");
        }
        all.value_at_quantile(quantile) as f64 / 1_000.0
    }

    pub fn p50(&self) -> f64 {
        self.median(p50)
    }

    pub fn resident_mib(&self) -> f64 {
        let each = self.slices.iter().map(|slice| slice.resident_mib);
        each.fold(0.0, f64::max)
    }

    pub fn errors(&self) -> u64 {
        self.slices.iter().map(|slice| slice.errors).sum()
    }

    /// Returns the processor time of client and server in µs per call.
    pub fn own_us(&self) -> Option<f64> {
        self.median_per_call(|usage| usage.own_us)
    }

    /// Returns the context switches per call.
    pub fn switches(&self) -> Option<f64> {
        self.median_per_call(|usage| usage.switches)
    }

    /// Returns the system calls per call.
    pub fn system_calls(&self) -> Option<f64> {
        self.system_calls
    }

    fn median_per_call(&self, value: fn(&Usage) -> Option<f64>) -> Option<f64> {
        let slices = self.slices.iter();
        let all: Option<Vec<f64>> = slices.map(|slice| self.per_call(slice, value)).collect();
        all.map(median)
    }

    fn per_call(&self, slice: &Slice, value: fn(&Usage) -> Option<f64>) -> Option<f64> {
        let per_call = value(&slice.usage)? / self.rate_of(slice);
        per_call.is_finite().then_some(per_call)
    }

    fn median(&self, value: impl Fn(&Slice) -> f64) -> f64 {
        median(self.slices.iter().map(value).collect())
    }

    /// Returns the median of the ratios of the rates in neighbouring slices.
    pub fn rate_to(&self, other: &Self) -> f64 {
        self.ratio_to(other, Self::rate_of)
    }

    /// Returns the median of the ratios of the median latencies in neighbouring slices.
    pub fn p50_to(&self, other: &Self) -> f64 {
        self.ratio_to(other, |_, slice| p50(slice))
    }

    fn ratio_to(&self, other: &Self, value: fn(&Self, &Slice) -> f64) -> f64 {
        let pairs = self.slices.iter().zip(&other.slices);
        median(
            pairs
                .map(|(own, of_other)| value(self, own) / value(other, of_other))
                .collect(),
        )
    }

    /// Returns the figure as JSON, with its ratios to the others.
    pub fn to_json(&self, others: &[(&str, &Self)]) -> String {
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        let Shape {
            scenario,
            transport,
            callers,
            payload,
            batch,
            services,
            clients,
            spins: _,
        } = self.shape;
        let seconds = self.slices.iter().map(|slice| slice.seconds).sum();
        let mut figure = serde_json::json!({
            "scenario": scenario.name(),
            "transport": format!("{transport:?}").to_lowercase(),
            "callers": callers,
            "payload": payload,
            "services": services,
            "clients": clients,
            "slices": self.slices.len(),
            "seconds": rounded(seconds),
            "calls_per_s": self.rate().round(),
            "p50_us": rounded(self.p50()),
            "p99_us": rounded(self.micros(0.99)),
            "p999_us": rounded(self.micros(0.999)),
            "max_us": rounded(self.micros(1.0)),
            "resident_mib": rounded(self.resident_mib()),
            "errors": self.errors(),
        });
        if scenario == Scenario::Batch {
            figure["batch"] = batch.into();
        }
        for (name, other) in others {
            figure[format!("rate_to_{name}")] = rounded(self.rate_to(other)).into();
            figure[format!("p50_to_{name}")] = rounded(self.p50_to(other)).into();
        }
        let used = [
            ("own_us_per_call", self.own_us()),
            (
                "broker_us_per_call",
                self.median_per_call(|usage| usage.broker_us),
            ),
            ("switches_per_call", self.switches()),
            ("system_calls_per_call", self.system_calls),
        ];
        for (name, value) in used {
            if let Some(value) = value {
                figure[name] = rounded(value).into();
            }
        }
        figure.to_string()
    }
}

fn p50(slice: &Slice) -> f64 {
    slice.latencies.value_at_quantile(0.5) as f64 / 1_000.0
}
