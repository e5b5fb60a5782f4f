//! Calls per second and their latencies, as ratios to the shortest hand-written program that does
//! the same job, and the growth of both.
//!
//!     cargo bench --bench rpc
//!     cargo bench --bench rpc -- --scenario bare,call --callers 1,64 --transport amqp
//!     cargo bench --bench rpc -- --processes 4 --callers 1 --transport amqp
//!     cargo bench --bench rpc -- --growth --report benches/rpc/report.svg
//!
//! Prints one JSON object per line on stdout, and ratios and tables on stderr. Runs over RabbitMQ
//! on AMQP_URL, or on a private one that it starts. Scenarios are measured in alternating slices of
//! the same run, because machines are noisy: a value is the median of the slices, a ratio that of
//! the ratios of neighbouring slices. A batch counts as many calls as it holds, and its latency is
//! that of the whole.
//!
//! Beside the rates are the processor time of client and server (one process) and of the broker, and
//! the context switches, from /proc, and the system calls, if `perf` is there.

mod bare;
mod comparison;
mod figure;
mod growth;
mod measure;
mod processes;
mod raw;
mod report;
mod scenario;
mod shared;
mod system_calls;
mod target;
mod usage;

#[path = "../support/bare_connection.rs"]
mod bare_connection;
#[allow(dead_code)] // other benchmarks print lines without bounds
#[path = "../support/figure.rs"]
mod bounds;
#[allow(dead_code)] // only other benchmarks read the processor time
#[path = "../support/process.rs"]
mod process;
#[path = "../../tests/it/support/server.rs"]
mod server;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::comparison::Comparison;
use crate::growth::Sweep;
use crate::processes::Role;
use crate::server::Server;
use crate::target::Target;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Over RabbitMQ: amiquip by hand. In memory: two threads and channels.
    Bare,
    /// amiquip by hand, over RabbitMQ only, with one channel and one reply queue for all callers
    Shared,
    /// One channel for all callers, and RabbitMQ's direct reply-to
    Direct,
    /// Sockets and hand-made frames, over RabbitMQ only: the limit
    Raw,
    /// `ServiceClient::call`
    Call,
    /// `ServiceClient::call`, with `coalesce`
    Coalesced,
    /// `ServiceClient::batch`
    Batch,
}

impl Scenario {
    /// Returns true for the hand-written programs on amiquip.
    fn is_by_hand(self) -> bool {
        matches!(self, Self::Bare | Self::Shared | Self::Direct)
    }

    /// Returns true if the scenario exists over that transport and with so many callers.
    fn fits(self, transport: Transport, callers: usize) -> bool {
        match self {
            Self::Shared | Self::Direct | Self::Raw => transport == Transport::Amqp,
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
    #[arg(long, value_delimiter = ',', default_values = ["bare", "shared", "direct", "raw", "call", "coalesced", "batch"])]
    scenario: Vec<Scenario>,
    /// Numbers of threads that call at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    callers: Vec<usize>,
    /// Slices of each figure, alternating with those of the others
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
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
    /// Measure so many processes with a caller each, with and without spinning
    #[arg(long, value_name = "CALLERS")]
    processes: Option<usize>,
    /// Switch off the spinning of lone callers
    #[arg(long)]
    no_spin: bool,
    /// Run as one of these processes
    #[arg(long, hide = true)]
    process: Option<Role>,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if let Some(role) = options.process {
        return processes::run_as(role, &options);
    }
    let mut compared = Vec::new();
    let mut sweeps = Vec::new();
    for &transport in &options.transport {
        let own_broker;
        let target = match (transport, std::env::var("AMQP_URL")) {
            (Transport::Memory, _) => Target::memory(),
            (Transport::Amqp, Ok(url)) => Target::amqp(url),
            (Transport::Amqp, Err(_)) => {
                own_broker = Server::rabbitmq();
                Target::amqp(own_broker.url().to_owned())
            }
        };
        for &callers in &options.callers {
            let comparison = Comparison::measure(&options, transport, &target, callers);
            comparison.print();
            compared.extend(comparison.figures);
        }
        if let (Transport::Amqp, Some(callers)) = (transport, options.processes) {
            processes::compare(&options, &target, callers);
        }
        if options.growth {
            sweeps.extend(Sweep::all(transport, &target, options.batch));
        }
    }
    if let Some(path) = &options.report {
        report::write(path, &compared, &sweeps).expect("the report can be written");
        eprintln!("the report is in {}", path.display());
    }
}
