//! A program of the README.

use coney::batch::BatchLimits;
use coney::{Broker, ServiceClient, ServiceServer};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let _server = ServiceServer::builder(&broker, "math")
        .respond("double", |n: u64| n * 2)
        .respond("name", |n: u64| format!("number {n}"))
        .start()?;
    let client = ServiceClient::builder(&broker, "gateway")
        .coalesce(BatchLimits::new()) // over RabbitMQ, calls that wait at the same moment share
        .build()?;
    std::thread::scope(|scope| {
        for n in 0..8 {
            let client = &client;
            scope.spawn(move || client.call::<u64>("math", "double", &n)); // as ever
        }
    });
    let mut batch = client.batch("math"); // 500 calls a message, workers share them
    let double = batch.add::<u64>("double", &21);
    let name = batch.add::<String>("name", &7);
    let mut replies = batch.call(); // blocks until all have ended, or the deadline
    println!("{}, {}", replies.take(double)?, replies.take(name)?);
    Ok(())
}
