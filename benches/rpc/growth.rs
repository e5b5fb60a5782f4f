//! Rate, latency and memory as one parameter grows.

use std::time::Duration;

use crate::figure::Figure;
use crate::scenario::Shape;
use crate::target::Target;
use crate::{Scenario, Transport};

const LENGTH: Duration = Duration::from_millis(1_500);

/// The figures for one growing parameter.
pub struct Sweep {
    /// The name of the parameter.
    pub of: &'static str,
    pub scenario: Scenario,
    pub transport: Transport,
    /// The values of the parameter with their figures.
    pub points: Vec<(usize, Figure)>,
}

impl Sweep {
    /// Measures all parameters, and prints a table for each.
    pub fn all(transport: Transport, target: &Target, batch: usize) -> Vec<Self> {
        let shape = Shape {
            scenario: Scenario::Call,
            transport,
            callers: 64,
            payload: 200,
            batch,
            services: 1,
            clients: 1,
            spins: true,
        };
        type Grow = fn(&mut Shape, usize);
        let growing: [(&str, &[usize], Shape, Grow); 4] = [
            (
                "callers",
                &[1, 4, 16, 64, 256, 512, 1_024, 2_048, 4_096],
                shape,
                |shape, callers| shape.callers = callers,
            ),
            (
                "payload",
                &[100, 1 << 10, 10 << 10, 100 << 10, 1 << 20, 4 << 20],
                Shape {
                    callers: 8,
                    ..shape
                },
                |shape, bytes| shape.payload = bytes,
            ),
            ("services", &[1, 10, 50, 200], shape, |shape, services| {
                shape.services = services;
                shape.callers = shape.callers.max(services);
            }),
            ("clients", &[1, 5, 20, 50], shape, |shape, clients| {
                shape.clients = clients
            }),
        ];
        let mut sweeps = Vec::new();
        for (of, values, shape, grow) in growing {
            for scenario in [Scenario::Call, Scenario::Coalesced] {
                let measure = |&value: &usize| {
                    let mut shape = Shape { scenario, ..shape };
                    grow(&mut shape, value);
                    let mut figure = Figure::new(shape);
                    figure.measure(target, LENGTH);
                    println!("{}", figure.to_json(&[]));
                    (value, figure)
                };
                let sweep = Self {
                    of,
                    scenario,
                    transport,
                    points: values.iter().map(measure).collect(),
                };
                sweep.print();
                sweeps.push(sweep);
            }
        }
        sweeps
    }

    fn print(&self) {
        eprintln!("\n{} by {}", self.scenario.name(), self.of);
        eprintln!(
            "{:>10} {:>10} {:>10} {:>10} {:>8} {:>6}",
            self.of, "calls/s", "p50 µs", "p99 µs", "MiB", "errors"
        );
        for (value, figure) in &self.points {
            eprintln!(
                "{value:>10} {:>10.0} {:>10.0} {:>10.0} {:>8.0} {:>6}",
                figure.rate(),
                figure.micros(0.5),
                figure.micros(0.99),
                figure.resident_mib(),
                figure.errors(),
            );
        }
        if self.of == "callers" {
            eprintln!(
                "the rate falls to {:.2} of its peak at most",
                self.worst_after_peak()
            );
        }
    }

    /// Returns the lowest rate after the peak, as a fraction of the peak.
    fn worst_after_peak(&self) -> f64 {
        let mut peak = 0.0_f64;
        let mut worst = 1.0_f64;
        for (_, figure) in &self.points {
            peak = peak.max(figure.rate());
            worst = worst.min(figure.rate() / peak);
        }
        worst
    }
}
