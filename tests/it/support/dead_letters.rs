//! Looks for the dead letters of one service.

use coney::dead_letters::DeadLetter;
use coney::{Broker, DeadLetters};

use super::eventually;

/// Returns the dead letters of a service.
pub fn letters_of(broker: &Broker, service: &str) -> Vec<DeadLetter> {
    let dead = DeadLetters::open(broker).unwrap();
    dead.find(|letter| letter.is_of(service), usize::MAX)
        .unwrap()
}

/// Waits for a dead letter of a service, and removes it.
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

/// Asserts that a service has no dead letter. Call it when none of its messages is on its way:
/// after a drain.
pub fn no_dead_letter(broker: &Broker, service: &str) {
    let found = letters_of(broker, service);
    assert!(found.is_empty(), "{found:?}");
}
