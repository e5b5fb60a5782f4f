//! The state of a registration, shared with the thread that renews its heartbeat.

use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

/// Whether an instance is in the registry.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not yet, or not any more as far as is known, and why. It is tried again.
    Pending(String),
    /// It is, and was heard of at its last beat.
    Registered,
    /// It was deregistered, here or by somebody else.
    Deregistered,
}

/// What a registration and the thread tell each other.
pub(super) struct RegistrationStatus {
    pub(super) state: Mutex<RegistrationState>,
    /// What the instance is not well of.
    pub(super) fault: Mutex<Option<String>>,
    /// The reason why it cannot be well any more.
    pub(super) lost: Mutex<Option<String>>,
    /// That has changed, and an order is on its way.
    pub(super) has_changed: AtomicBool,
}

impl Default for RegistrationStatus {
    fn default() -> Self {
        let because = "the registry has not answered yet".to_owned();
        Self {
            state: Mutex::new(RegistrationState::Pending(because)),
            fault: Mutex::default(),
            lost: Mutex::default(),
            has_changed: AtomicBool::new(false),
        }
    }
}
