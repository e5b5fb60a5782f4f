//! Many calls in few messages: a batch, and a client that coalesces calls of many threads.

use std::thread;

use coney::batch::BatchLimits;
use coney::{Broker, ServiceClient, ServiceServer};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let _server = ServiceServer::builder(&broker, "math")
        .respond("double", |n: u64| n * 2)
        .respond("name", |n: u64| format!("number {n}"))
        .start()?;
    let client = ServiceClient::builder(&broker, "gateway")
        // Over RabbitMQ, calls that wait to be sent at the same moment share a message.
        .coalesce(BatchLimits::new())
        .build()?;
    thread::scope(|scope| {
        for n in 0..8 {
            let client = &client;
            scope.spawn(move || client.call::<u64>("math", "double", &n));
        }
    });
    // 500 calls a message, which the service's workers share.
    let mut batch = client.batch("math");
    let double = batch.add::<u64>("double", &21);
    let name = batch.add::<String>("name", &7);
    // Blocks until all have ended, or until the deadline.
    let mut replies = batch.call();
    println!("{}, {}", replies.take(double)?, replies.take(name)?);
    Ok(())
}
