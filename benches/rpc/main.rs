//! Calls per second and their latencies, as ratios to the shortest hand-written program that does
//! the same job, and the growth of both.
//!
//!     cargo bench --bench rpc
//!     cargo bench --bench rpc -- --scenario bare,call --callers 1,64 --transport amqp
//!     cargo bench --bench rpc -- --growth --report benches/rpc/report.svg
//!
//! Prints one JSON object per line on stdout, and ratios and tables on stderr. Runs over RabbitMQ
//! on AMQP_URL, or on a private one that it starts. Scenarios are measured in alternating slices of
//! the same run, because machines are noisy. A batch counts as many calls as it holds, and its
//! latency is that of the whole.

mod bare;
mod figure;
mod growth;
mod measure;
mod report;
mod scenario;
mod shared;

#[path = "../support/bare_connection.rs"]
mod bare_connection;
#[allow(dead_code)] // only other benchmarks read the processor time
#[path = "../support/process.rs"]
mod process;
#[path = "../../tests/it/support/server.rs"]
mod server;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::figure::Figure;
use crate::growth::Sweep;
use crate::scenario::Shape;
use crate::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Over RabbitMQ: amiquip by hand. In memory: two threads and channels.
    Bare,
    /// amiquip by hand, over RabbitMQ only, with one channel and one reply queue for all callers
    Shared,
    /// One channel for all callers, and RabbitMQ's direct reply-to
    Direct,
    /// `ServiceClient::call`
    Call,
    /// `ServiceClient::call`, with `coalesce`
    Coalesced,
    /// `ServiceClient::batch`
    Batch,
}

impl Scenario {
    fn is_by_hand(self) -> bool {
        matches!(self, Self::Bare | Self::Shared | Self::Direct)
    }

    /// Returns true if the scenario exists over that transport and with so many callers.
    fn fits(self, transport: Transport, callers: usize) -> bool {
        match self {
            Self::Shared | Self::Direct => transport == Transport::Amqp,
            // Sixteen callers of batches have 1,600 calls in flight: more add nothing to the
            // measurement.
            Self::Batch => callers <= 64,
            Self::Bare | Self::Call | Self::Coalesced => true,
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    Memory,
    Amqp,
}

#[derive(Parser)]
struct Options {
    /// Scenarios to measure
    #[arg(long, value_delimiter = ',', default_values = ["bare", "shared", "direct", "call", "coalesced", "batch"])]
    scenario: Vec<Scenario>,
    /// Numbers of threads that call at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    callers: Vec<usize>,
    /// Seconds for which each figure is measured
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Bytes of payload, each way
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Calls in a batch; at most 16 callers have one under way at a time
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Transports to measure
    #[arg(long, value_delimiter = ',', default_values = ["memory", "amqp"])]
    transport: Vec<Transport>,
    /// Measure the growth with callers, payloads, services and clients
    #[arg(long)]
    growth: bool,
    /// Write an SVG report with latencies and curves
    #[arg(long)]
    report: Option<PathBuf>,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// The number of slices of each figure, alternating with those of the others.
const SLICES: u32 = 6;

fn main() {
    let options = Options::parse();
    let mut compared = Vec::new();
    let mut sweeps = Vec::new();
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
            compared.extend(compare(&options, transport, &url, callers));
        }
        if options.growth {
            sweeps.extend(Sweep::all(transport, &url, options.batch));
        }
    }
    if let Some(path) = &options.report {
        report::write(path, &compared, &sweeps).expect("the report can be written");
        eprintln!("the report is in {}", path.display());
    }
}

fn compare(options: &Options, transport: Transport, url: &str, callers: usize) -> Vec<Figure> {
    let slice = Duration::from_secs_f64(options.seconds) / SLICES;
    let mut figures: Vec<Figure> = options
        .scenario
        .iter()
        .filter(|scenario| scenario.fits(transport, callers))
        .map(|&scenario| {
            Figure::new(Shape {
                scenario,
                transport,
                callers: if scenario == Scenario::Batch {
                    callers.min(16)
                } else {
                    callers
                },
                payload: options.payload,
                batch: options.batch,
                services: 1,
                clients: 1,
            })
        })
        .collect();
    for _ in 0..SLICES {
        for figure in &mut figures {
            figure.measure(url, slice);
        }
    }
    for figure in &figures {
        println!("{}", figure.to_json());
    }
    let (by_hand, ours): (Vec<_>, Vec<_>) = figures
        .iter()
        .partition(|it| it.shape.scenario.is_by_hand());
    let best = by_hand
        .into_iter()
        .max_by(|a, b| a.rate().total_cmp(&b.rate()));
    for (figure, best) in ours.into_iter().zip(best.into_iter().cycle()) {
        eprintln!("{}", figure.ratio_to(best));
    }
    figures
}
