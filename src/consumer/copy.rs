//! The copies of messages that are republished.

use std::borrow::Cow;

use super::failure::describe;
use super::republisher::{DELIVERY_COUNT, MAX_ERROR_BYTES, Republisher};
use crate::transport::x_death::{ATTEMPTS, COPIES, GIVEN_UP, LEFT_OUT, REDELIVERIES};
use crate::transport::{Delivery, HeaderTable, Properties, Publication};

impl Republisher {
    /// Copies a message for another queue: persistent, without an expiration, with the count of its
    /// copies in the headers.
    pub(super) fn copy(
        &self,
        delivery: &Delivery,
        exchange: impl Into<Cow<'static, str>>,
        key: String,
    ) -> Publication {
        let message = delivery.message();
        let mut properties = Properties {
            persistent: true,
            expiration: None,
            ..message.properties.clone()
        };
        properties.remove_delay();
        let are_sendable = properties.has_sendable_headers();
        let headers = &mut properties.headers;
        // A quorum queue counts its own deliveries only.
        headers.remove(DELIVERY_COUNT);
        let copies = headers.int(COPIES).unwrap_or(0).saturating_add(1);
        let most = self
            .broker
            .max_headers()
            .saturating_sub(self.added_headers());
        if headers.size() > most || !are_sendable {
            log::warn!(
                target: "coney::worker",
                "{}: republishes {} without its headers, which are too large or invalid",
                self.queue.owner, describe(message)
            );
            let kept = [ATTEMPTS, GIVEN_UP, REDELIVERIES];
            let kept = kept.map(|name| (name, headers.get(name).cloned()));
            *headers = HeaderTable::new();
            headers.insert(
                LEFT_OUT,
                "the message's own headers, too large or too many to be copied",
            );
            for (name, value) in kept {
                if let Some(value) = value {
                    headers.insert(name, value);
                }
            }
        }
        headers.insert(COPIES, copies);
        properties.drop_unsendable();
        Publication {
            properties,
            mandatory: true,
            ..Publication::new(exchange, key, message.body.clone())
        }
    }

    /// Returns the room for the headers that republishing adds, in bytes: two errors, and 1,500
    /// bytes for the headers of fixed size.
    fn added_headers(&self) -> usize {
        2 * self.max_error_bytes() + 1_500
    }

    /// Returns the largest part of an error that fits next to the message's own headers, in bytes.
    pub(super) fn max_error_bytes(&self) -> usize {
        MAX_ERROR_BYTES.min(self.broker.max_headers() / 8)
    }
}
