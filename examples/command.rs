//! A command: sent, confirmed by the broker, and carried out by a service.

use std::time::Duration;

use coney::{Broker, ServiceClient, ServiceServer};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let server = ServiceServer::builder(&broker, "order-service")
        // A handler that fails is retried after 1, 5, 25 and 125 s; then the command is
        // dead-lettered.
        .respond("create_order", |order: u64| println!("order {order}"))
        .start()?;
    let client = ServiceClient::new(&broker, "shop")?;
    // Returns when the broker has confirmed; RabbitMQ has the command on disk then.
    client.send("order-service", "create_order", &4711)?;
    // Returns at once, so that thousands can be under way.
    let pending = client.send_async("order-service", "create_order", &4712)?;
    pending.wait()?;
    // Handles the commands in the queue, then stops: a `main` that just returns would not.
    server.drain(Duration::from_secs(10))
}
