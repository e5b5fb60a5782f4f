//! The copy of a message that goes elsewhere.

use super::failure::describe;
use super::republisher::{DELIVERY_COUNT, LONGEST_ERROR, Republisher};
use crate::transport::x_death::{ATTEMPTS, COPIES, GIVEN_UP, LEFT_OUT, REDELIVERIES};
use crate::transport::{Delivery, HeaderTable, Properties, Publication};

impl Republisher {
    /// The message as it is, but kept on disk and without an expiry of its own.
    pub(super) fn copy(
        &self,
        delivery: &Delivery,
        exchange: &'static str,
        key: String,
    ) -> Publication {
        let message = delivery.message();
        let mut properties = Properties {
            persistent: true,
            expiration: None,
            ..message.properties.clone()
        };
        let are_sendable = properties.has_sendable_headers();
        let headers = &mut properties.headers;
        // A quorum queue's count is of one queue alone.
        headers.remove(DELIVERY_COUNT);
        let copies = headers.int(COPIES).unwrap_or(0).saturating_add(1);
        let most = self.broker.max_headers().saturating_sub(self.our_headers());
        if headers.size() > most || !are_sendable {
            log::warn!(
                target: "coney::worker",
                "{}: the headers of {} are too large or too many to be copied, and are left out",
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

    /// Room for the headers that a move adds: two errors, and what is of fixed size.
    fn our_headers(&self) -> usize {
        2 * self.longest_error() + 1_500
    }

    /// The part of an error that fits beside a message's own headers, in bytes.
    pub(super) fn longest_error(&self) -> usize {
        LONGEST_ERROR.min(self.broker.max_headers() / 8)
    }
}
