//! A shop of nine services behind a gateway: how to write a platform with coney.
//!
//!     cargo run --release --example ecommerce
//!
//! This runs everything in one process, in memory. Over RabbitMQ, with another number of orders:
//!
//!     AMQP_URL=amqp://localhost cargo run --release --example ecommerce -- --orders 5000
//!
//! `--service NAME` runs that service alone, so that the platform can be spread over ten
//! terminals; `--service gateway` then places the orders. With `REDIS_URL` the services register
//! there.
//!
//! At the end it prints the statistics of every service, the dead letters, and an audit: every
//! order is paid, cancelled or a dead letter, and stock and money add up. The exit code is 1 if
//! they do not.
//!
//! | from | to | how |
//! | --- | --- | --- |
//! | gateway | user | call: authenticate the customer |
//! | gateway | product → inventory | call: describe the product and its stock |
//! | gateway | order | command: create the order |
//! | user | order, notification | events `user.*` |
//! | order | payment, inventory, logistics, notification | events `order.*` |
//! | product | search | events `product.*` |
//! | payment | order | events `payment.*` |
//! | inventory | analytics | events `inventory.*` |

mod audit;
mod contract;
mod gateway;
mod platform;
mod services;
mod stats;

use std::process::ExitCode;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::platform::Platform;

#[derive(Parser)]
#[command(about = "A shop of nine services behind a gateway")]
struct Options {
    /// Number of orders that the gateway places
    #[arg(long, default_value_t = 200)]
    orders: u64,
    /// Number of customers that order at the same time
    #[arg(long, default_value_t = 16)]
    customers: usize,
    /// Name of the only service to run, over RabbitMQ: gateway, or one of the nine
    #[arg(long)]
    service: Option<String>,
    /// URL of RabbitMQ: amqp://user:password@host:port/vhost; in memory without it
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: Option<String>,
    /// URL of the registry: redis://user:password@host:port/database; in memory without it
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ecommerce: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one service or all of them; returns true if the books balance.
fn run(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let platform = Platform::open(options.amqp_url.as_deref(), options.redis_url.as_deref())?;
    match options.service.as_deref() {
        None => {
            let running = services::start_all(&platform)?;
            let balanced = gateway::run(&platform, options.orders, options.customers)?;
            for service in running.into_iter().rev() {
                service.stop();
            }
            Ok(balanced)
        }
        Some(_) if options.amqp_url.is_none() => {
            Err("a service alone needs AMQP_URL: in memory nobody would hear it".into())
        }
        Some("gateway") => Ok(gateway::run(&platform, options.orders, options.customers)?),
        Some(name) => {
            // Installed first, so that no early signal is missed.
            let mut signals = Signals::new([SIGTERM, SIGINT])?;
            let service = services::start(&platform, name)?;
            println!("ready");
            signals.forever().next();
            service.stop();
            Ok(true)
        }
    }
}
