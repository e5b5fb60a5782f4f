//! An event: published once, handled by every subscription that matches its name.

use std::time::Duration;

use coney::{Broker, EventPublisher, EventSubscriber, Subscription};

fn main() -> coney::Result<()> {
    let broker = Broker::memory();
    let subscriber = EventSubscriber::builder(&broker, "notification-service")
        .listen("order.created", |order: u64| {
            println!("thank you for {order}")
        })
        .subscribe(
            Subscription::listen("order.*", |order: u64| println!("{order}"))
                .named("history")
                .ordered_by(|order: &u64| *order), // or .broadcast(), or .singleton()
        )
        .start()?;
    let publisher = EventPublisher::new(&broker, "order-service")?;
    // Returns when the broker has the event in the queue of each subscription.
    publisher.publish("order.created", &4711)?;
    // Handles the events in the queues, then stops.
    subscriber.drain(Duration::from_secs(10))
}
