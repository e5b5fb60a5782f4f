//! The name of a reply queue, ready for encoding.

use crate::message::Json;

/// The name of a link's reply queue, as text and as a JSON string.
///
/// Created once per queue, since every request contains both.
#[derive(Clone, Debug)]
pub(in crate::transport::amqp) struct ReplyQueueName {
    name: String,
    quoted: String,
}

impl ReplyQueueName {
    pub(in crate::transport::amqp) fn new(name: String) -> Self {
        let quoted = Json::quote(&name);
        Self { name, quoted }
    }

    /// Returns the name.
    pub(in crate::transport::amqp) fn as_str(&self) -> &str {
        &self.name
    }

    /// Returns the name as a JSON string, in quotes.
    pub(super) fn quoted(&self) -> &str {
        &self.quoted
    }
}
