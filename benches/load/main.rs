//! The behaviour of a server when too much comes in.
//!
//!     cargo bench --bench load --features _bench
//!     cargo bench --bench load -- --seconds 2
//!
//! Prints one JSON object per line on stdout, with the bound that the figure has to keep, and whether
//! it does. Starts a private Redis. The cost of a local limit is measured with the feature `_bench`
//! only.

#[path = "../support/figure.rs"]
mod figure;
mod limits;
#[allow(dead_code)]
#[path = "../../tests/it/support/server.rs"]
mod server;

use std::time::Duration;

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Run as one of the processes of a scenario: its name and arguments
    #[arg(long, hide = true, num_args = 1.., value_terminator = "--")]
    process: Vec<String>,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if !options.process.is_empty() {
        return limits::run_process(&options.process);
    }
    limits::run(Duration::from_secs_f64(options.seconds));
}
