//! Looking for dead letters in a queue that all tests share.

use std::time::Instant;

use coney::{Broker, DeadLetter, DeadLetters};

use super::{PATIENCE, eventually};

/// Waits for a dead letter of a service, and takes it away.
pub fn dead_letter(broker: &Broker, service: &str) -> DeadLetter {
    let dead = DeadLetters::open(broker).unwrap();
    let queue = format!("service.{service}.request");
    let mut found = None;
    eventually("a dead letter", || {
        found = dead
            .list(usize::MAX)
            .unwrap()
            .into_iter()
            .find(|letter| letter.queue() == queue);
        found.is_some()
    });
    eventually("it is purged", || {
        let mut picked = false;
        let purged =
            dead.purge(|letter| letter.queue() == queue && !std::mem::replace(&mut picked, true));
        purged.unwrap() == 1
    });
    found.unwrap()
}

/// Several looks, because a test that looks at the same time hides letters.
pub fn no_dead_letter(broker: &Broker, service: &str) {
    let dead = DeadLetters::open(broker).unwrap();
    let queue = format!("service.{service}.request");
    let end = Instant::now() + PATIENCE / 100;
    while Instant::now() < end {
        let letters = dead.list(usize::MAX).unwrap();
        let found = letters.iter().find(|letter| letter.queue() == queue);
        assert!(found.is_none(), "{found:?}");
    }
}
