//! A shop whose stock-service is flaky, slow, overloaded, gone and back again: the same customers and
//! the same schedule, first without and then with the policies of `coney::resilience`.
//!
//!     cargo run --example resilience
//!
//! It needs nothing installed, prints a line a second and a table at the end, and takes 28 s.
//! `--seconds 4` makes each of the two runs as short as that: everything in it then goes faster. Over RabbitMQ:
//!
//!     AMQP_URL=amqp://localhost cargo run --example resilience
//!
//! | file | what is in it |
//! | --- | --- |
//! | `clients.rs` | the two clients: this is what a program copies |
//! | `schedule.rs` | the conditions of the service, and their order |
//! | `stock.rs` | the service |
//! | `shop.rs` | the customers, and the threads that serve them |
//! | `counts.rs` | the counters, and the two tables |

mod clients;
mod counts;
mod schedule;
mod shop;
mod stock;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use coney::Broker;

use crate::counts::Counts;
use crate::schedule::SCHEDULE;

#[derive(Parser)]
#[command(about = "A shop whose stock-service fails in every way, without and with resilience")]
struct Options {
    /// Length of each of the two runs, in seconds
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(2..=600))]
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
            eprintln!("resilience: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> coney::Result<()> {
    let broker = match &options.amqp_url {
        Some(url) => Broker::connect(url)?,
        None => Broker::memory(),
    };
    // The length of a line of the schedule: a second, unless `--seconds` says otherwise.
    let tick = Duration::from_secs(options.seconds.into()) / SCHEDULE.len() as u32;
    println!(
        "A shop has {} threads, and {} customers in {} ms. To show an article, a thread asks\n\
         stock-service, and waits {} ms at most. A customer who finds all threads busy, and a queue\n\
         of {} before them, is turned away.",
        shop::THREADS,
        shop::CUSTOMERS,
        tick.as_millis(),
        tick.as_millis(),
        shop::THREADS,
    );

    println!("\nWithout resilience:\n{}", Counts::heading());
    let without = shop::open(&broker, tick, clients::without_resilience)?;
    println!("\nWith resilience:\n{}", Counts::heading());
    let with = shop::open(&broker, tick, clients::with_resilience)?;

    println!("\n{}", Counts::table(&without, &with));
    println!(
        "\nServed: by the service itself. Stale: with the number of pieces as it was before. Fallback: a\n\
         page without that number. In vain: messages that the service refused or never answered."
    );
    Ok(())
}
