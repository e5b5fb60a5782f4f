//! Confirmed commands a second, as a ratio to the shortest hand-written publisher
//! with confirms.
//!
//!     cargo bench --bench publish -- --seconds 12
//!
//! One thread publishes persistent, mandatory messages with the contract's
//! properties to a durable queue, with thousands unconfirmed at a time:
//! `send_async` on one side, amiquip by hand on the other, which sends the same
//! bytes each time, about as many as coney's envelope has. Runs over RabbitMQ on AMQP_URL, or on a private
//! one it starts; in alternating slices of the same run. Prints one JSON object
//! for each, and the ratio.

#[path = "support/bare_connection.rs"]
mod bare_connection;
#[path = "../tests/it/support/server.rs"]
mod server;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Channel, Confirm, Connection, Publish};
use clap::Parser;
use coney::{Broker, PendingSend, ServiceClient, ServiceServer};

use crate::server::Server;

#[derive(Parser)]
struct Options {
    /// How long each side is measured in all
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// Bytes of payload
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

const SERVICE: &str = "bench-publish";
const QUEUE: &str = "service.bench-publish.request";
const WINDOW: usize = 4_000;
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
    let slice = Duration::from_secs_f64(options.seconds) / SLICES;
    let payload = "x".repeat(options.payload);
    let coney = Coney::new(&url);
    let mut bare = Bare::new(&url);
    // The envelope takes some 240 bytes.
    let body = vec![b'x'; options.payload + 240];
    let (mut by_hand, mut by_coney) = (0, 0);
    for _ in 0..SLICES {
        by_hand += bare.publish(&body, slice);
        bare.purge();
        by_coney += coney.publish(&payload, slice);
        bare.purge();
    }
    for (scenario, messages) in [("bare", by_hand), ("send_async", by_coney)] {
        let rate = (messages as f64 / options.seconds).round();
        println!(
            "{}",
            serde_json::json!({"scenario": scenario, "messages": messages, "per_s": rate})
        );
    }
    let ratio = by_coney as f64 / by_hand as f64;
    eprintln!("send_async: {ratio:.2} of bare");
}

struct Coney(ServiceClient);

impl Coney {
    fn new(url: &str) -> Self {
        let broker = Broker::connect(url).expect("the broker is there");
        // Makes the queue, and leaves it.
        drop(
            ServiceServer::builder(&broker, SERVICE)
                .start()
                .expect("the server starts"),
        );
        Self(ServiceClient::new(&broker, "bench").expect("the client starts"))
    }

    fn publish(&self, payload: &str, length: Duration) -> u64 {
        let end = Instant::now() + length;
        let mut pending: VecDeque<PendingSend> = VecDeque::with_capacity(WINDOW);
        let mut confirmed = 0;
        while Instant::now() < end {
            let send = self.0.send_async(SERVICE, "note", payload);
            pending.push_back(send.expect("the broker is there"));
            if pending.len() == WINDOW
                && let Some(oldest) = pending.pop_front()
            {
                oldest.wait().expect("it is confirmed");
                confirmed += 1;
            }
        }
        for send in pending {
            send.wait().expect("it is confirmed");
            confirmed += 1;
        }
        confirmed
    }
}

/// One channel, and a count of what is confirmed.
struct Bare {
    _connection: Connection,
    channel: Channel,
    confirms: crossbeam_channel::Receiver<Confirm>,
    published: u64,
}

impl Bare {
    fn new(url: &str) -> Self {
        let mut connection = bare_connection::connect(url);
        let channel = connection.open_channel(None).expect("a channel");
        let confirms = channel.listen_for_publisher_confirms().expect("confirms");
        channel.enable_publisher_confirms().expect("confirms");
        Self {
            _connection: connection,
            channel,
            confirms,
            published: 0,
        }
    }

    fn publish(&mut self, body: &[u8], length: Duration) -> u64 {
        let end = Instant::now() + length;
        let before = self.published;
        let mut confirmed = before;
        loop {
            let over = Instant::now() >= end;
            if over && confirmed == self.published {
                return self.published - before;
            }
            if !over && self.published - confirmed < WINDOW as u64 {
                let properties = AmqpProperties::default()
                    .with_content_type("application/json".to_owned())
                    .with_delivery_mode(2)
                    .with_message_id(format!("msg_20261123083012_{:016x}", self.published))
                    .with_correlation_id(format!("{:032x}", self.published));
                let mut publish =
                    Publish::with_properties(body, format!("request.{SERVICE}"), properties);
                publish.mandatory = true;
                self.channel
                    .basic_publish("service.exchange", publish)
                    .expect("the connection lives");
                self.published += 1;
                continue;
            }
            match self.confirms.recv().expect("the connection lives") {
                // In order, as one queue confirms; several at a time or one.
                Confirm::Ack(ack) if ack.multiple => confirmed = ack.delivery_tag,
                Confirm::Ack(_) => confirmed += 1,
                Confirm::Nack(nack) => panic!("{nack:?}"),
            }
        }
    }

    fn purge(&self) {
        self.channel.queue_purge(QUEUE).expect("the queue is there");
    }
}
