//! Publishers, subscribers and handlers for the tests of events.

use std::time::Duration;

use coney::events::EventSubscriberBuilder;
use coney::{Broker, DeadLetters, EventPublisher, EventSubscriber};
use crossbeam_channel::{Receiver, Sender};

use super::{PATIENCE, unique};

const MS: Duration = Duration::from_millis(1);

pub fn publisher(broker: &Broker) -> EventPublisher {
    let publisher = EventPublisher::new(broker, "order-service").unwrap();
    publisher.with_timeout(PATIENCE)
}

/// Returns a subscriber's builder with short retry delays.
pub fn subscriber(broker: &Broker, service: &str) -> EventSubscriberBuilder {
    EventSubscriber::builder(broker, service).retry_delays([20 * MS, 40 * MS])
}

/// Returns a handler that sends each event into a channel.
pub fn sending_to<T: Send + 'static>(
    channel: &Sender<T>,
) -> impl Fn(T) -> Result<(), String> + use<T> {
    let channel = channel.clone();
    move |event| channel.send(event).map_err(|_| "disconnected".to_owned())
}

pub fn recv_n<T>(events: &Receiver<T>, count: usize) -> Vec<T> {
    let next = |_| events.recv_timeout(PATIENCE).expect("another event");
    (0..count).map(next).collect()
}

pub fn sorted(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers
}

/// Asserts that no event is left. Call it when no handler can run any more: after a drain or a
/// shutdown.
pub fn assert_no_more<T: std::fmt::Debug>(events: &Receiver<T>) {
    let more: Vec<T> = events.try_iter().collect();
    assert!(more.is_empty(), "{more:?}");
}

/// Returns an event name that no other test and no example subscribes to.
pub fn unique_event() -> String {
    unique("happened").replace('-', ".")
}

/// Returns the dead letters of a queue.
pub fn letters(broker: &Broker, queue: &str) -> Vec<coney::dead_letters::DeadLetter> {
    let dead = DeadLetters::open(broker).unwrap();
    let mut letters = dead.list(usize::MAX).unwrap();
    letters.retain(|letter| letter.queue() == queue);
    letters
}
