//! The calls of handlers to their own service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::Sender;

/// The number of handlers that wait for a reply of their own service: their workers serve no
/// other request meanwhile.
pub(crate) struct OwnServiceCalls {
    service: String,
    waiting: AtomicUsize,
    /// Receives a message when another handler begins to wait.
    changed: Sender<()>,
}

/// A call to the own service, which is counted until it is dropped.
pub(super) struct OwnServiceCall<'a>(&'a OwnServiceCalls);

impl OwnServiceCalls {
    /// Creates a count of the calls to `service`, which sends a message to `changed` when it grows.
    pub(crate) fn new(service: &str, changed: Sender<()>) -> Arc<Self> {
        Arc::new(Self {
            service: service.to_owned(),
            waiting: AtomicUsize::new(0),
            changed,
        })
    }

    /// Returns the number of handlers that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Counts a blocking call, if it is one to the own service.
    pub(super) fn begin(&self, service: &str) -> Option<OwnServiceCall<'_>> {
        if service != self.service {
            return None;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _ = self.changed.try_send(());
        Some(OwnServiceCall(self))
    }
}

impl Drop for OwnServiceCall<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
