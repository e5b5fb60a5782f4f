//! The parts of a request that handlers see.

use std::time::Instant;

use crate::message::{Headers, ServiceMessage};

/// A request to a handler: a message of its own, or an item of a batch.
pub(super) struct Request<'a> {
    pub(super) message_id: &'a str,
    pub(super) source_service: &'a str,
    pub(super) action: &'a str,
    pub(super) timestamp: i64,
    pub(super) headers: Headers<'a>,
    /// The payload as JSON text.
    pub(super) payload: &'a str,
}

impl<'a> Request<'a> {
    pub(super) fn of(message: &'a ServiceMessage<'a>) -> Self {
        Self {
            message_id: &message.message_id,
            source_service: &message.source_service,
            action: &message.action,
            timestamp: message.timestamp,
            headers: Headers::of(message.headers.as_str()),
            payload: message.payload.as_str(),
        }
    }
}

/// The properties of the delivery that carried a request.
#[derive(Clone, Copy)]
pub(super) struct DeliveryInfo {
    pub(super) redelivered: bool,
    /// The number of failed attempts.
    pub(super) failed: usize,
    /// The moment when the delivery arrived in this process.
    pub(super) arrived: Instant,
    /// True if the message is a republished copy.
    pub(super) is_copy: bool,
    /// True for one request of each message.
    pub(super) opens_message: bool,
    /// True if the rate limits have admitted the request already.
    pub(super) is_admitted: bool,
}
