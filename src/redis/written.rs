//! The entries of instances as this process last wrote them.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::registry::Instance;

/// The entry of an instance: its JSON in Redis, and what that says.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) instance: Instance,
    pub(super) json: Vec<u8>,
}

impl Written {
    pub(super) fn of(instance: &Instance) -> Self {
        Self {
            instance: instance.clone(),
            json: instance.to_json().into_bytes(),
        }
    }

    /// Returns this entry with the heartbeat and the health of `newer`.
    pub(super) fn renewed(&self, newer: &Instance) -> Self {
        let mut instance = self.instance.clone();
        instance.renew_from(newer);
        Self::of(&instance)
    }
}

/// The entries that this process wrote last, by service and id.
#[derive(Default)]
pub(super) struct WrittenEntries(Mutex<HashMap<(String, String), Written>>);

impl WrittenEntries {
    pub(super) fn insert(&self, written: Written) {
        self.0.lock().insert(key(&written.instance), written);
    }

    pub(super) fn remove(&self, service: &str, id: &str) {
        let key = (service.to_owned(), id.to_owned());
        self.0.lock().remove(&key);
    }

    /// Returns the entry that Redis should have for an instance, and the one to replace it.
    pub(super) fn renewal(&self, newer: &Instance) -> (Written, Written) {
        match self.0.lock().get(&key(newer)) {
            Some(old) => (old.clone(), old.renewed(newer)),
            // No entry is ever empty: the script returns what Redis has instead.
            None => {
                let json = Vec::new();
                let instance = newer.clone();
                (Written { instance, json }, Written::of(newer))
            }
        }
    }
}

fn key(instance: &Instance) -> (String, String) {
    (instance.service().to_owned(), instance.id().to_owned())
}
