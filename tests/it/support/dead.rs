//! Looking for dead letters in a queue that all tests share.

use std::time::Instant;

use coney::{Broker, DeadLetter, DeadLetters};

use super::{PATIENCE, eventually};

/// Those of a service now.
pub fn letters_of(broker: &Broker, service: &str) -> Vec<DeadLetter> {
    let dead = DeadLetters::open(broker).unwrap();
    dead.find(|letter| letter.is_of(service), usize::MAX)
        .unwrap()
}

/// Waits for a dead letter of a service, and takes it away.
pub fn dead_letter(broker: &Broker, service: &str) -> DeadLetter {
    let dead = DeadLetters::open(broker).unwrap();
    let mut found = None;
    eventually("a dead letter", || {
        let mut letters = dead.find(|letter| letter.is_of(service), 1).unwrap();
        found = letters.pop();
        found.is_some()
    });
    let mut picked = false;
    let purged =
        dead.purge(|letter| letter.is_of(service) && !std::mem::replace(&mut picked, true));
    assert_eq!(purged.unwrap(), 1);
    found.unwrap()
}

/// Several looks: what would be one may still be on its way.
pub fn no_dead_letter(broker: &Broker, service: &str) {
    let end = Instant::now() + PATIENCE / 100;
    while Instant::now() < end {
        let found = letters_of(broker, service);
        assert!(found.is_empty(), "{found:?}");
    }
}
