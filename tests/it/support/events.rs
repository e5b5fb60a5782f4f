//! What the tests of events have in common.

use std::time::Duration;

use coney::{Broker, DeadLetters, EventPublisher, EventSubscriber, EventSubscriberBuilder};
use crossbeam_channel::{Receiver, Sender};

use super::{PATIENCE, unique};

const MS: Duration = Duration::from_millis(1);

pub fn publisher(broker: &Broker) -> EventPublisher {
    let publisher = EventPublisher::new(broker, "order-service").unwrap();
    publisher.with_timeout(PATIENCE)
}

/// A subscriber's builder that tries again soon.
pub fn subscriber(broker: &Broker, service: &str) -> EventSubscriberBuilder {
    EventSubscriber::builder(broker, service).retry_delays([20 * MS, 40 * MS])
}

/// A handler that passes on what it gets.
pub fn tell<T: Send + 'static>(told: &Sender<T>) -> impl Fn(T) -> Result<(), String> + use<T> {
    let told = told.clone();
    move |event| told.send(event).map_err(|_| "nobody listens".to_owned())
}

pub fn take<T>(events: &Receiver<T>, count: usize) -> Vec<T> {
    let next = |_| events.recv_timeout(PATIENCE).expect("another event");
    (0..count).map(next).collect()
}

pub fn sorted(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers
}

/// Nothing more comes.
pub fn is_all<T: std::fmt::Debug>(events: &Receiver<T>) {
    let more = events.recv_timeout(150 * MS);
    assert!(more.is_err(), "{more:?}");
}

/// Event names that no other test hears, nor an example.
pub fn unique_event() -> String {
    unique("happened").replace('-', ".")
}

/// The dead letters of a queue.
pub fn letters(broker: &Broker, queue: &str) -> Vec<coney::DeadLetter> {
    let dead = DeadLetters::open(broker).unwrap();
    let mut letters = dead.list(usize::MAX).unwrap();
    letters.retain(|letter| letter.queue() == queue);
    letters
}
