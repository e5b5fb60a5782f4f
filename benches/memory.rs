//! The memory of a call in flight, and the memory and processor time of an idle client and server.
//!
//!     cargo bench --bench memory
//!
//! Runs over the memory broker, where a call in flight includes the message in its queue, and over
//! RabbitMQ (AMQP_URL, or a private one that it starts), where it does not. Prints one JSON object
//! per line. Linux only: it reads /proc.

#[path = "support/process.rs"]
mod process;
#[path = "../tests/it/support/server.rs"]
#[allow(dead_code)] // only the tests restart it
mod server;

use std::process::Command;
use std::time::Duration;

use coney::transport::{ExchangeKind, Link, LinkSpec, Topology};
use coney::{Broker, PendingReply, ServiceClient, ServiceServer};

use crate::process::{cpu_ticks, resident_kib};

const CALLS: usize = 10_000;

/// The environment variable that selects the figure to measure. Each has a process of its own:
/// memory that one has freed, the next would use again.
const PART: &str = "CONEY_BENCH_PART";

fn main() {
    let own_broker;
    let url = match std::env::var("AMQP_URL") {
        Ok(url) => url,
        Err(_) => {
            own_broker = server::Server::rabbitmq();
            own_broker.url().to_owned()
        }
    };
    let amqp = || Broker::connect(&url).expect("the broker is there");
    match std::env::var(PART).as_deref() {
        Ok("idle") => idle(&amqp()),
        Ok("amqp") => in_flight("amqp", &amqp()),
        Ok("memory") => in_flight("memory", &Broker::memory()),
        _ => {
            for part in ["idle", "amqp", "memory"] {
                let this = std::env::current_exe().expect("a path");
                let mut child = Command::new(this);
                child.env(PART, part).env("AMQP_URL", &url);
                assert!(child.status().expect("it starts").success());
            }
        }
    }
}

/// Measures the resident memory and processor time of a client and a server that do nothing.
fn idle(broker: &Broker) {
    let _server = ServiceServer::builder(broker, "bench-idle")
        .respond("echo", |text: String| text)
        .start()
        .expect("a server");
    let client = ServiceClient::new(broker, "bench").expect("a client");
    let _: String = client.call("bench-idle", "echo", "warm").expect("a reply");
    let before = cpu_ticks();
    std::thread::sleep(Duration::from_secs(5));
    let report = serde_json::json!({
        "scenario": "idle",
        "resident_kib": resident_kib(),
        "cpu_ticks_in_5_s": cpu_ticks() - before,
    });
    println!("{report}");
}

/// Measures calls to a service whose queue exists and whose server does not.
fn in_flight(transport: &str, broker: &Broker) {
    let queue = "service.bench-no-server.request";
    let topology = Topology::new()
        .exchange("service.exchange", ExchangeKind::Direct)
        .queue(queue)
        .bind(queue, "service.exchange", "request.bench-no-server");
    let _link = Link::open(broker, LinkSpec::new(topology)).expect("a queue");
    let client = ServiceClient::builder(broker, "bench")
        .timeout(Duration::from_secs(30))
        .build()
        .expect("a client");
    let payload = "x".repeat(200);
    let call = |count: usize| -> Vec<PendingReply<String>> {
        let calls = (0..count)
            .map(|_| client.call_async("bench-no-server", "echo", &payload))
            .collect::<coney::Result<_>>()
            .expect("calls under way");
        std::thread::sleep(Duration::from_secs(1)); // until they are sent
        calls
    };
    drop(call(100));
    let before = resident_kib();
    let calls = call(CALLS);
    let after = resident_kib();
    let report = serde_json::json!({
        "scenario": "in_flight",
        "transport": transport,
        "calls": calls.len(),
        "payload": payload.len(),
        "kib_per_call": (after.saturating_sub(before)) as f64 / CALLS as f64,
    });
    println!("{report}");
}
