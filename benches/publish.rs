//! Confirmed commands per second, as a ratio to the shortest hand-written publisher with confirms.
//!
//!     cargo bench --bench publish -- --seconds 12
//!
//! One thread publishes persistent, mandatory messages with the contract's properties to a durable
//! queue, with thousands unconfirmed at a time: `send_async` on one side, amiquip by hand on the
//! other, which sends the same bytes each time, about as many as coney's envelope has. Runs over
//! RabbitMQ on AMQP_URL, or on a private one that it starts; in alternating slices of the same run.
//! Prints one JSON object for each side, and the ratio.

#[path = "support/bare_connection.rs"]
mod bare_connection;
#[path = "support/publishing.rs"]
mod publishing;
#[path = "../tests/it/support/server.rs"]
mod server;

use std::time::{Duration, Instant};

use clap::Parser;
use coney::{Broker, ServiceClient, ServiceServer};

use crate::publishing::{Bare, flood, report};
use crate::server::Server;

#[derive(Parser)]
struct Options {
    /// Seconds for which each side is measured in all
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// Bytes of payload
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

const SERVICE: &str = "bench-publish";
const QUEUE: &str = "service.bench-publish.request";
const KEY: &str = "request.bench-publish";
const SLICES: u32 = 6;

fn main() {
    let options = Options::parse();
    let own_broker;
    let url = match std::env::var("AMQP_URL") {
        Ok(url) => url,
        Err(_) => {
            own_broker = Server::rabbitmq();
            own_broker.url().to_owned()
        }
    };
    let time = Duration::from_secs_f64(options.seconds);
    let slice = time / SLICES;
    let payload = "x".repeat(options.payload);
    let broker = Broker::connect(&url).expect("the broker is there");
    // Starting a server declares the queue, which outlives it.
    let server = ServiceServer::builder(&broker, SERVICE).start();
    drop(server.expect("the server starts"));
    let client = ServiceClient::new(&broker, "bench").expect("the client starts");
    let connection = bare_connection::connect(&url);
    let mut bare = Bare::new(connection, "service.exchange", KEY, true);
    // The envelope takes some 240 bytes.
    let body = vec![b'x'; options.payload + 240];
    let mut counts = [0, 0];
    for _ in 0..SLICES {
        counts[0] += bare.publish(&body, Instant::now() + slice);
        bare.purge(QUEUE);
        let send = || client.send_async(SERVICE, "note", &payload);
        counts[1] += flood(send, Instant::now() + slice);
        bare.purge(QUEUE);
    }
    let ratio = report(["bare", "send_async"], counts, time);
    eprintln!("send_async: {ratio:.2} of bare");
}
