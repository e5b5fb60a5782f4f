//! The effect of a client's policies on calls to a service that is well, busy, gone or failing in
//! part, the cost of the policies, and the response cache.
//!
//!     cargo bench --bench resilience
//!     cargo bench --bench resilience -- --only cost,killed --seconds 60
//!     cargo bench --bench resilience -- --quick
//!
//! Prints one JSON object per line on stdout, with the bound that the figure has to keep, if it has
//! one, and whether it does; explanations on stderr. Runs over the memory broker; the killed
//! service and the events of the cache over RabbitMQ too, if CONEY_TEST_AMQP_URL or AMQP_URL is set.

mod busy;
mod cache;
mod cost;
#[path = "../support/figure.rs"]
mod figure;
mod instances;
mod killed;
mod load;

use std::time::Duration;

use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The cost of the policies for a call that succeeds
    Cost,
    /// A service that refuses all calls as busy
    Busy,
    /// A service that refuses one call in ten as busy
    Flaky,
    /// A service that is killed and comes back
    Killed,
    /// One of four instances fails or is slow
    Instances,
    /// The response cache
    Cache,
}

#[derive(Parser)]
struct Options {
    /// Scenarios to measure
    #[arg(long, value_delimiter = ',', default_values = ["cost", "busy", "flaky", "killed", "instances", "cache"])]
    only: Vec<Scenario>,
    /// Seconds for which the service is killed; open periods of breakers shrink in proportion
    /// below 60
    #[arg(long)]
    seconds: Option<f64>,
    /// Shorten everything: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Returns the length of a scenario, or a tenth of it if it is to be quick.
    fn length(&self, seconds: f64) -> Duration {
        let part = if self.quick { 0.1 } else { 1.0 };
        Duration::from_secs_f64(seconds * part)
    }

    /// Returns the time for which the service is killed.
    fn killed_for(&self) -> Duration {
        let seconds = self.seconds.map(Duration::from_secs_f64);
        seconds.unwrap_or_else(|| self.length(60.0))
    }
}

fn main() {
    let options = Options::parse();
    for scenario in &options.only {
        match scenario {
            Scenario::Cost => cost::measure(options.length(22.0), 11),
            Scenario::Busy => busy::measure_all_busy(options.length(10.0)),
            Scenario::Flaky => busy::measure_some_busy(options.length(10.0)),
            Scenario::Killed => killed::measure(options.killed_for()),
            Scenario::Instances => instances::measure(options.length(12.0).max(SHORTEST)),
            Scenario::Cache => cache::measure(options.length(9.0), options.killed_for()),
        }
    }
}

/// The shortest time for four instances, half of which is enough without ejection: the latencies
/// count from the third second on.
const SHORTEST: Duration = Duration::from_secs(6);
