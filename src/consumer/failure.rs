//! The reason why a message is dead-lettered.

use crate::base::name::shown;
use crate::message::ServiceMessage;
use crate::transport::Message;

/// The reason in a word, as `x-death` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its handler said so.
    Rejected,
    RetriesExhausted,
    Undecodable,
    NoHandler,
    DeliveryLimit,
    TooLarge,
}

/// All of them, with RabbitMQ's own words where it has some.
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

/// The reason why a message is given up, and what there is to say about it.
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) error: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, error: impl Into<String>) -> Self {
        Self {
            reason,
            error: error.into(),
        }
    }
}

/// A message by its action and id, for logs. Not for the hot path: reads the envelope.
pub(super) fn describe(message: &Message) -> String {
    match ServiceMessage::decode(&message.body) {
        Ok(envelope) => format!(
            "{} ({})",
            shown(&envelope.action),
            shown(&envelope.message_id)
        ),
        Err(_) => {
            let id = message.properties.message_id.as_deref();
            format!("an unreadable message ({})", shown(id.unwrap_or("no id")))
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
