//! A program of the README.

use std::time::Duration;

use coney::{Broker, HandlerError, ServiceClient, ServiceServer};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let server = ServiceServer::builder(&broker, "order-service")
        .handler("create_order", |order: u64| -> Result<(), HandlerError> {
            // An error is tried again after 1, 5, 25 and 125 s, then kept as a dead letter.
            println!("order {order}");
            Ok(())
        })
        .start()?;
    let client = ServiceClient::new(&broker, "shop")?;
    client.send("order-service", "create_order", &4711)?; // the broker has it (RabbitMQ: on disk)
    let pending = client.send_async("order-service", "create_order", &4712)?; // thousands at once
    pending.wait()?;
    server.drain(Duration::from_secs(10)) // handles what is queued, then stops
}
