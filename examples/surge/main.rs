//! One server process, and a load that steps from 10 to 300 calls a second and back, each of which
//! takes 50 ms: first with four workers, then with a number of workers that follows the load, and
//! with load shedding.
//!
//!     cargo run --example surge
//!
//! It needs nothing installed, prints a line a second and a table at the end, and takes a minute.
//! `--seconds 12` makes each of the two runs as short as that; idle workers end after 10 s, so they
//! remain until the end then. Over RabbitMQ:
//!
//!     AMQP_URL=amqp://localhost cargo run --example surge
//!
//! | file | what is in it |
//! | --- | --- |
//! | `servers.rs` | the two servers: this is what a program copies |
//! | `load.rs` | the calls, which begin when they are due and not when the last one has ended |
//! | `run.rs` | the schedule of the load |
//! | `counts.rs` | the counters, the lines and the table |

mod counts;
mod load;
mod run;
mod servers;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use coney::Broker;

use crate::counts::Counts;
use crate::servers::{Kind, WORK};

#[derive(Parser)]
#[command(about = "A server under a load that steps up and down, without and with scaling")]
struct Options {
    /// Length of each of the two runs, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=600))]
    seconds: u32,
    /// URL of RabbitMQ: amqp://user:password@host:port/vhost; in memory without it
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: Option<String>,
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("surge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> coney::Result<()> {
    let broker = match &options.amqp_url {
        Some(url) => Broker::connect(url)?,
        None => Broker::memory(),
    };
    let length = Duration::from_secs(options.seconds.into());
    println!(
        "Each call takes {} ms of a worker, and its caller waits for {} ms at most. 10 calls a second\n\
         are offered at first, then 300, which needs 15 workers, then 10 again.",
        WORK.as_millis(),
        run::TIMEOUT.as_millis(),
    );
    let mut runs = Vec::new();
    for kind in Kind::ALL {
        println!("\nWith {}:\n{}", kind.name(), Counts::heading());
        let seconds = run::run(&broker, kind, length, SECOND, |number, counts| {
            println!("{}", counts.line(number));
        })?;
        let mut all = Counts::default();
        for counts in &seconds {
            all.merge(counts);
        }
        runs.push((kind.name(), all));
    }
    println!("\n{}", Counts::table(&runs));
    println!(
        "\nOffered: calls that were due. Busy: refused at once, to be repeated later. Failed: without an\n\
         answer in time. p50 and p99: the latencies of the served calls, from the time when each was due."
    );
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);
