//! The behaviour of a server when too much comes in.
//!
//!     cargo bench --bench load --features _bench
//!     cargo bench --bench load -- --only overload,scaling
//!     cargo bench --bench load -- --quick
//!     cargo bench --bench load -- --only surge --svg benches/load/surge.svg
//!
//! Prints one JSON object per line on stdout, with the bound that the figure has to keep, if it has
//! one, and whether it does; explanations on stderr. Runs over the memory broker, and over RabbitMQ
//! too if CONEY_TEST_AMQP_URL or AMQP_URL is set. The limits start a private Redis; the cost of a
//! local limit is measured with the feature `_bench` only.

mod batch;
mod brokers;
mod bulkhead;
#[path = "../support/figure.rs"]
mod figure;
mod lanes;
mod latencies;
mod limits;
#[allow(dead_code)]
#[path = "../../examples/surge/load.rs"]
mod load;
mod machine;
mod overload;
mod picture;
mod scaling;
#[allow(dead_code)]
#[path = "../../tests/it/support/server.rs"]
mod server;
mod surge;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Twice and ten times as many calls as the workers can do, without and with shedding
    Overload,
    /// An action that is flooded, beside another one
    Bulkhead,
    /// A batch of slow items, beside single calls
    Batch,
    /// A step of the load, and handlers that compute, with a number of workers that follows
    Scaling,
    /// Up to 1,000 subscriptions, or actions with a bound, in one process
    Lanes,
    /// Rate limits, alone and shared in Redis
    Limits,
    /// The load of the example `surge`
    Surge,
}

#[derive(Parser)]
struct Options {
    /// Scenarios to measure
    #[arg(long, value_delimiter = ',', default_values = ["overload", "bulkhead", "batch", "scaling", "lanes", "limits", "surge"])]
    only: Vec<Scenario>,
    /// Shorten everything: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Draw the curves of the surge into this file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Run as one of the processes of a scenario: its name and arguments
    #[arg(long, hide = true, num_args = 1.., value_terminator = "--")]
    process: Vec<String>,
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
}

fn main() {
    let options = Options::parse();
    if !options.process.is_empty() {
        return limits::run_process(&options.process);
    }
    for &scenario in &options.only {
        machine::report_load(scenario);
        match scenario {
            Scenario::Overload => overload::measure(options.length(30.0)),
            Scenario::Bulkhead => bulkhead::measure(options.length(20.0)),
            Scenario::Batch => batch::measure(options.length(20.0)),
            Scenario::Scaling => scaling::measure(options.length(20.0)),
            Scenario::Lanes => lanes::measure(options.length(20.0), options.quick),
            Scenario::Limits => limits::run(options.length(10.0)),
            Scenario::Surge => surge::measure(options.length(30.0), options.svg.as_deref()),
        }
    }
}
