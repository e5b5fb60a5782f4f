//! The reasons why messages are dead-lettered.

use crate::base::name::shown;
use crate::message::ServiceMessage;
use crate::transport::Message;

/// The reason of a dead-lettering, a word in `x-death`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The handler ruled out a retry.
    Rejected,
    RetriesExhausted,
    Undecodable,
    NoHandler,
    DeliveryLimit,
    TooLarge,
}

/// All reasons with their words in `x-death`: RabbitMQ's own where it has one.
const REASONS: [(Reason, &str); 6] = [
    (Reason::Rejected, "rejected"),
    (Reason::RetriesExhausted, "retries_exhausted"),
    (Reason::Undecodable, "undecodable"),
    (Reason::NoHandler, "no_handler"),
    (Reason::DeliveryLimit, "delivery_limit"),
    (Reason::TooLarge, "too_large"),
];

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        let named = REASONS.iter().find(|(reason, _)| *reason == self);
        named.map_or("rejected", |(_, name)| name)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let named = REASONS.iter().find(|(_, name)| *name == text);
        named.map(|(reason, _)| *reason)
    }
}

/// The reason why a message is dead-lettered, and the error text.
pub(super) struct MessageFailure {
    pub(super) reason: Reason,
    pub(super) error: String,
}

impl MessageFailure {
    pub(super) fn new(reason: Reason, error: impl Into<String>) -> Self {
        Self {
            reason,
            error: error.into(),
        }
    }
}

/// Describes a message by its action and id, for logs. Decodes the envelope, so it is not for the
/// hot path.
pub(super) fn describe(message: &Message) -> String {
    match ServiceMessage::decode(&message.body) {
        Ok(envelope) => format!(
            "{} ({})",
            shown(&envelope.action),
            shown(&envelope.message_id)
        ),
        Err(_) => {
            let id = message.properties.message_id.as_deref();
            format!("an undecodable message ({})", shown(id.unwrap_or("no id")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name() {
        for (reason, name) in REASONS {
            assert_eq!(reason.as_str(), name);
            assert_eq!(Reason::parse(name), Some(reason));
        }
        assert_eq!(Reason::parse("x"), None);
    }
}
