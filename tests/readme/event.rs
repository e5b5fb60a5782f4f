//! A program of the README.

use std::time::Duration;

use coney::{Broker, EventPublisher, EventSubscriber, HandlerError, Subscription};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let subscriber = EventSubscriber::builder(&broker, "notification-service")
        .on("order.created", |order: u64| -> Result<(), HandlerError> {
            println!("thank you for {order}");
            Ok(())
        })
        .subscribe(
            Subscription::to("order.*", write_down)
                .named("history")
                .ordered_by(|order: &u64| *order), // or .broadcast(), .singleton()
        )
        .start()?;
    let publisher = EventPublisher::new(&broker, "order-service")?;
    publisher.publish("order.created", &4711)?; // the broker has it, for every group that listens
    subscriber.drain(Duration::from_secs(10)) // handles what is queued, then stops
}

fn write_down(order: u64) -> Result<(), HandlerError> {
    println!("{order}");
    Ok(())
}
