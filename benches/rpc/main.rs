//! Calls a second and their latencies, as ratios to the shortest hand-written
//! program that does the same job.
//!
//!     cargo bench --bench rpc -- --scenario bare,call --callers 1,64 --transport amqp
//!
//! Prints one JSON object per line on stdout, and the ratios on stderr. Runs
//! over RabbitMQ on AMQP_URL, or on a private one it starts. What is compared
//! is measured in alternating slices of the same run, because machines are
//! noisy.

mod bare;
mod measure;
mod scenario;

#[path = "../support/bare_connection.rs"]
mod bare_connection;
#[path = "../../tests/it/support/server.rs"]
mod server;

use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::measure::{Report, measure};
use crate::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Over RabbitMQ: amiquip by hand. In memory: two threads and channels.
    Bare,
    /// `ServiceClient::call`
    Call,
    /// The same with `coalesce`
    Coalesced,
    /// `ServiceClient::batch`
    Batch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    Memory,
    Amqp,
}

#[derive(Parser)]
struct Options {
    /// What to measure
    #[arg(long, value_delimiter = ',', default_values = ["bare", "call"])]
    scenario: Vec<Scenario>,
    /// How many threads call at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    callers: Vec<usize>,
    /// How long each figure is measured
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Bytes of payload, each way
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Calls in a batch
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Over what
    #[arg(long, value_delimiter = ',', default_values = ["memory", "amqp"])]
    transport: Vec<Transport>,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// Each figure is measured in so many slices, in turn with the others.
const SLICES: u32 = 6;

fn main() {
    let options = Options::parse();
    for &transport in &options.transport {
        let own_broker;
        let url = match (transport, std::env::var("AMQP_URL")) {
            (Transport::Memory, _) => String::new(),
            (Transport::Amqp, Ok(url)) => url,
            (Transport::Amqp, Err(_)) => {
                own_broker = Server::rabbitmq();
                own_broker.url().to_owned()
            }
        };
        for &callers in &options.callers {
            compare(&options, transport, &url, callers);
        }
    }
}

fn compare(options: &Options, transport: Transport, url: &str, callers: usize) {
    let payload = "x".repeat(options.payload);
    let slice = Duration::from_secs_f64(options.seconds) / SLICES;
    let mut reports: Vec<Report> = options
        .scenario
        .iter()
        .map(|&scenario| Report::new(scenario, transport, callers, options.payload))
        .collect();
    for _ in 0..SLICES {
        for report in &mut reports {
            let setup = scenario::set_up(report.scenario, transport, url, options.batch);
            let calls = (0..callers).map(|_| setup.caller(&payload)).collect();
            report.add(&measure(calls, slice));
        }
    }
    for report in &reports {
        println!("{}", report.to_json());
    }
    for report in &reports {
        if let Some(bare) = reports.iter().find(|r| r.scenario == Scenario::Bare)
            && report.scenario != Scenario::Bare
        {
            eprintln!("{}", report.ratio_to(bare));
        }
    }
}
