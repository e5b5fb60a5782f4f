//! The state of a registration, shared with the heartbeat thread.

use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

/// The state of a [`Registration`](super::Registration), as far as it is known.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// The instance is not in the registry, or its last heartbeat failed, for the given reason.
    /// It is retried.
    Pending(String),
    /// The instance is in the registry, and its last heartbeat succeeded.
    Registered,
    /// The instance was deregistered, here or by another program.
    Deregistered,
}

/// The state that a registration and the heartbeat thread share.
pub(super) struct RegistrationStatus {
    pub(super) state: Mutex<RegistrationState>,
    /// The reason for which the instance is unhealthy.
    pub(super) fault: Mutex<Option<String>>,
    /// The reason for which it stays unhealthy for good: its connection is lost.
    pub(super) lost: Mutex<Option<String>>,
    /// True if one of the reasons has changed and a command for it is queued.
    pub(super) has_changed: AtomicBool,
}

impl Default for RegistrationStatus {
    fn default() -> Self {
        let reason = "the registry has not answered yet".to_owned();
        Self {
            state: Mutex::new(RegistrationState::Pending(reason)),
            fault: Mutex::default(),
            lost: Mutex::default(),
            has_changed: AtomicBool::new(false),
        }
    }
}
