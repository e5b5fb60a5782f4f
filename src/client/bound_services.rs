//! The services to which commands can return from a delay.

use std::collections::HashSet;

use parking_lot::Mutex;

/// The largest number of services that are remembered as bound; beyond it they are bound anew.
const MOST_BOUND: usize = 1_024;

/// The services whose queues this client has bound, so that commands return to them from a delay.
#[derive(Default)]
pub(super) struct BoundServices(Mutex<HashSet<String>>);

impl BoundServices {
    pub(super) fn contains(&self, service: &str) -> bool {
        self.0.lock().contains(service)
    }

    pub(super) fn insert(&self, service: &str) {
        let mut bound = self.0.lock();
        if bound.len() >= MOST_BOUND {
            bound.clear();
        }
        bound.insert(service.to_owned());
    }
}
