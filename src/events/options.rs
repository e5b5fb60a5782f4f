//! The options of a publication.

use std::time::Duration;

use crate::client::RequestOptions;

/// The options of one event.
///
/// ```
/// use coney::PublishOptions;
///
/// let options = PublishOptions::new().message_id("order-4711-created");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options have no effect until an event gets them"]
pub struct PublishOptions {
    pub(super) request: RequestOptions,
}

impl PublishOptions {
    /// Creates options with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the longest time from now to the publisher confirm. Defaults to the publisher's
    /// [timeout](crate::EventPublisher::with_timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout = Some(timeout);
        self
    }

    /// Adds a header to the envelope; handlers read it by
    /// [`Context::header`](crate::Context::header).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.add_header(name, value);
        self
    }

    /// Sets whether the broker keeps the event on disk until it is handled. Defaults to true.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.request.persistent = Some(persistent);
        self
    }

    /// Sets whether the event may be delivered twice. If so, it is sent again by itself after
    /// the connection was lost before the confirm, over the next one, until the deadline, with
    /// the same message id. Defaults to false: publishing fails with
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost).
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.request.idempotent = idempotent;
        self
    }

    /// Sets the message id, by which a subscriber that
    /// [deduplicates](crate::events::EventSubscriberBuilder::deduplicate) recognises a repeated
    /// event. At most 255 bytes. Defaults to a new id for each event.
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.request.message_id = Some(id.into());
        self
    }
}
