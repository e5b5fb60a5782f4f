use parking_lot::Mutex;

/// What the stream saw that amiquip's errors do not tell.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    server_close: Mutex<Option<(u16, String)>>,
    channel_close: Mutex<Option<(u16, String)>>,
    violation: Mutex<Option<String>>,
}

impl Evidence {
    /// The code and text of the broker's `connection.close`, if it sent one.
    pub(super) fn server_close(&self) -> Option<(u16, String)> {
        self.server_close.lock().clone()
    }

    /// The first channel that the broker closed, and its reason, if it did: what
    /// was published there may be what it objected to.
    pub(super) fn channel_close(&self) -> Option<(u16, String)> {
        self.channel_close.lock().clone()
    }

    /// It was one that harms nobody, and no reason for what comes later.
    pub(super) fn forget_channel_close(&self) {
        *self.channel_close.lock() = None;
    }

    /// Why the guard refused what came in, if it did.
    pub(super) fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    pub(super) fn record_violation(&self, text: String) {
        self.violation.lock().get_or_insert(text);
    }

    pub(super) fn record_channel_close(&self, channel: u16, reason: String) {
        self.channel_close.lock().get_or_insert((channel, reason));
    }

    pub(super) fn record_server_close(&self, code: u16, text: String) {
        self.server_close.lock().get_or_insert((code, text));
    }
}
