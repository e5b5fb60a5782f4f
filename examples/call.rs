//! Calls a service from the command line.
//!
//!     AMQP_URL=amqp://localhost cargo run --example call -- user-service get_user '{"user_id":7}'
//!
//! Prints the reply's data as JSON. An error goes to stderr with its kind, and
//! each kind has an exit code of its own (see `exit_code`). With `--repeat` it
//! calls many times, from `--callers` threads, and prints a summary.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use coney::{Broker, CallOptions, Error, ErrorKind, SendOptions, ServiceClient};
use hdrhistogram::Histogram;
use serde_json::Value;

#[derive(Parser)]
#[command(about = "Calls an action of a service over RabbitMQ")]
#[command(
    after_help = "Exit codes: 10 no route, 11 not sent, 12 timed out, 13 connection lost, 14 remote, \
                  15 unknown action, 16 rejected, 17 encode, 18 decode, 19 invalid configuration, \
                  20 connect, 21 broker, 22 closed"
)]
struct Options {
    /// URL of RabbitMQ: amqp://user:password@host:port/vhost
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    /// The service to call
    service: String,
    /// The action to call
    action: String,
    /// The payload, as JSON
    #[arg(value_parser = |text: &str| serde_json::from_str::<Value>(text))]
    payload: Value,
    /// Send a command: wait for the publisher confirm and for no reply
    #[arg(long, conflicts_with_all = ["repeat", "callers"])]
    send: bool,
    /// Timeout of a call, in milliseconds
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
    /// Number of calls to make
    #[arg(long, default_value_t = 1)]
    repeat: u64,
    /// Number of threads that make the calls
    #[arg(long, default_value_t = 1)]
    callers: usize,
}

fn main() -> ExitCode {
    env_logger::init();
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{:?}: {error}", error.kind());
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

fn run(options: &Options) -> coney::Result<()> {
    let broker = Broker::builder(&options.amqp_url)
        .connection_name("call")
        .connect()?;
    let client = ServiceClient::new(&broker, "call")?;
    if options.send {
        let (service, action) = (&options.service, &options.action);
        return client.send_with(
            service,
            action,
            &options.payload,
            &SendOptions::new().timeout(timeout(options)),
        );
    }
    if options.repeat == 1 {
        println!("{}", call(&client, options)?);
        return Ok(());
    }
    repeat(&client, options)
}

fn call(client: &ServiceClient, options: &Options) -> coney::Result<Value> {
    let (service, action) = (&options.service, &options.action);
    client.call_with(service, action, &options.payload, &within(options))
}

fn within(options: &Options) -> CallOptions {
    CallOptions::new().timeout(timeout(options))
}

fn timeout(options: &Options) -> Duration {
    Duration::from_millis(options.timeout_ms)
}

/// Calls from several threads and prints a summary. An error ends its thread; the first one is
/// returned.
fn repeat(client: &ServiceClient, options: &Options) -> coney::Result<()> {
    let left = AtomicU64::new(options.repeat);
    let start = Instant::now();
    let caller = || -> (Histogram<u64>, Option<Error>) {
        // Cannot fail: three significant digits are between zero and five.
        let mut latencies = Histogram::new(3).unwrap();
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
        {
            let call_start = Instant::now();
            if let Err(error) = call(client, options) {
                return (latencies, Some(error));
            }
            let _ = latencies.record(call_start.elapsed().as_micros() as u64);
        }
        (latencies, None)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let callers: Vec<_> = (0..options.callers.max(1))
            .map(|_| scope.spawn(caller))
            .collect();
        callers
            .into_iter()
            .flat_map(thread::ScopedJoinHandle::join)
            .collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut all = Histogram::<u64>::new(3).unwrap();
    let mut first_error = None;
    for (latencies, error) in results {
        let _ = all.add(latencies);
        first_error = first_error.or(error);
    }
    println!(
        "{} calls in {seconds:.2} s: {:.0} calls/s, p50 {:.2} ms, p99 {:.2} ms",
        all.len(),
        all.len() as f64 / seconds,
        all.value_at_quantile(0.5) as f64 / 1_000.0,
        all.value_at_quantile(0.99) as f64 / 1_000.0,
    );
    first_error.map_or(Ok(()), Err)
}

/// Returns the exit code of an error kind. 1 and 2 are left to the shell and to usage errors.
fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NoRoute => 10,
        ErrorKind::NotSent => 11,
        ErrorKind::TimedOut => 12,
        ErrorKind::ConnectionLost => 13,
        ErrorKind::Remote => 14,
        ErrorKind::UnknownAction => 15,
        ErrorKind::Rejected => 16,
        ErrorKind::Encode => 17,
        ErrorKind::Decode => 18,
        ErrorKind::InvalidConfig => 19,
        ErrorKind::Connect => 20,
        ErrorKind::Broker => 21,
        ErrorKind::Closed => 22,
        _ => 1,
    }
}
