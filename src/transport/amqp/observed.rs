//! The facts that the stream records for the threads that use the connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

use super::frame_max::FRAME_MAX;
use crate::transport::Oversized;

/// The facts that the stream has seen and amiquip does not report.
#[derive(Debug)]
pub(super) struct Observed {
    server_close: Mutex<Option<(u16, String)>>,
    /// The channels that the broker closed, with its reasons.
    channel_closes: Mutex<HashMap<u16, String>>,
    violation: Mutex<Option<String>>,
    frame_max: AtomicU32,
    blocked: AtomicBool,
    /// The records of bodies over the limit, by channel and delivery tag, until their messages
    /// are taken.
    oversized: Mutex<HashMap<(u16, u64), Oversized>>,
    has_oversized: AtomicBool,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            server_close: Mutex::default(),
            channel_closes: Mutex::default(),
            violation: Mutex::default(),
            frame_max: AtomicU32::new(FRAME_MAX),
            blocked: AtomicBool::new(false),
            oversized: Mutex::default(),
            has_oversized: AtomicBool::new(false),
        }
    }
}

impl Observed {
    /// Returns the code and text of the broker's `connection.close`, if it sent one.
    pub(super) fn server_close(&self) -> Option<(u16, String)> {
        self.server_close.lock().clone()
    }

    /// Returns the broker's reason for closing a channel, if it closed it.
    pub(super) fn channel_close(&self, channel: u16) -> Option<String> {
        self.channel_closes.lock().get(&channel).cloned()
    }

    /// Returns a channel that the broker closed, with its reason, if it closed any.
    pub(super) fn any_channel_close(&self) -> Option<(u16, String)> {
        let closes = self.channel_closes.lock();
        closes
            .iter()
            .next()
            .map(|(&channel, reason)| (channel, reason.clone()))
    }

    /// Removes the record of a closed channel once it has been handled, so that it is not taken
    /// for the cause of a later loss.
    pub(super) fn forget_channel_close(&self, channel: u16) {
        self.channel_closes.lock().remove(&channel);
    }

    /// Returns the reason for which the guard refused the incoming bytes, if it did.
    pub(super) fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    /// Returns the negotiated frame size, in bytes.
    pub(super) fn frame_max(&self) -> u32 {
        self.frame_max.load(Ordering::Relaxed)
    }

    /// Returns true if the broker is blocked: short of memory or disk, it reads nothing that is
    /// published.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst)
    }

    /// Takes the record of a body that was left out because of its size.
    pub(super) fn take_oversized(&self, channel: u16, tag: u64) -> Option<Oversized> {
        if !self.has_oversized.load(Ordering::Acquire) {
            return None;
        }
        let mut oversized = self.oversized.lock();
        let found = oversized.remove(&(channel, tag));
        self.has_oversized
            .store(!oversized.is_empty(), Ordering::Release);
        found
    }

    pub(super) fn record_violation(&self, text: String) {
        self.violation.lock().get_or_insert(text);
    }

    pub(super) fn record_channel_close(&self, channel: u16, reason: String) {
        self.channel_closes.lock().insert(channel, reason);
    }

    pub(super) fn record_server_close(&self, code: u16, text: String) {
        self.server_close.lock().get_or_insert((code, text));
    }

    pub(super) fn record_frame_max(&self, bytes: u32) {
        self.frame_max.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn record_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::SeqCst);
    }

    pub(super) fn record_oversized(&self, channel: u16, tag: u64, oversized: Oversized) {
        self.oversized.lock().insert((channel, tag), oversized);
        self.has_oversized.store(true, Ordering::Release);
    }
}
