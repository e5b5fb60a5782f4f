//! The time until calls succeed again after the broker is back.
//!
//!     cargo bench --bench recovery -- --restarts 10
//!
//! Kills a private RabbitMQ, starts it again, and measures from the moment it accepts connections
//! to the reply of a call that has waited for it, with the reconnect delays at their default
//! minimum. Prints each time, and the median.

#[path = "../tests/it/support/server.rs"]
mod server;

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use coney::{Broker, CallOptions, ServiceClient, ServiceServer};

use crate::server::Server;

#[derive(Parser)]
struct Options {
    /// Number of restarts
    #[arg(long, default_value_t = 10)]
    restarts: usize,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// The default minimum of the reconnect delays.
const DELAY: Duration = Duration::from_millis(200);

fn main() {
    let options = Options::parse();
    let mut rabbit = Server::rabbitmq();
    let address = rabbit.url().rsplit_once('@').expect("a login").1.to_owned();
    let broker = Broker::builder(rabbit.url())
        .reconnect_delays(DELAY, DELAY)
        .connect()
        .expect("the broker is there");
    let _server = ServiceServer::builder(&broker, "recovery")
        .respond("echo", |n: u64| n)
        .start()
        .expect("the server starts");
    let client = ServiceClient::new(&broker, "bench").expect("the client starts");
    let patient = CallOptions::new()
        .timeout(Duration::from_secs(120))
        .idempotent(true);
    let mut millis: Vec<u128> = (0..options.restarts)
        .map(|_| {
            rabbit.kill();
            let took = thread::scope(|scope| {
                let call = scope.spawn(|| {
                    let reply: coney::Result<u64> =
                        client.call_with("recovery", "echo", &7, &patient);
                    assert_eq!(reply.expect("it waits for the broker"), 7);
                    Instant::now()
                });
                let accepts = scope.spawn(|| {
                    while TcpStream::connect(&address).is_err() {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Instant::now()
                });
                rabbit.start_again();
                let accepts = accepts.join().expect("it polls");
                call.join()
                    .expect("it calls")
                    .saturating_duration_since(accepts)
            });
            println!("{}", serde_json::json!({"recovery_ms": took.as_millis()}));
            took.as_millis()
        })
        .collect();
    millis.sort_unstable();
    eprintln!("median {} ms of {}", millis[millis.len() / 2], millis.len());
}
