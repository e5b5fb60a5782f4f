use std::time::Instant;

use crate::message::{Headers, ServiceMessage};

/// What a handler is asked, be it a message of its own or part of one.
pub(super) struct Request<'a> {
    pub(super) message_id: &'a str,
    pub(super) source_service: &'a str,
    pub(super) action: &'a str,
    pub(super) timestamp: i64,
    pub(super) headers: Headers<'a>,
    /// JSON.
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

/// What is known of the delivery it came in.
#[derive(Clone, Copy)]
pub(super) struct DeliveryInfo {
    pub(super) redelivered: bool,
    /// How many attempts have failed.
    pub(super) failed: usize,
    /// The moment when it arrived in this process.
    pub(super) arrived: Instant,
    /// It was moved from queue to queue.
    pub(super) is_copy: bool,
}
