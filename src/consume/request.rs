use std::time::Instant;

use crate::deadline;
use crate::message::{DEADLINE_HEADER, Headers, ServiceMessage};

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

    /// When its caller stops waiting, if it says.
    pub(super) fn deadline(&self) -> Option<Instant> {
        deadline_in(&self.headers)
    }
}

/// When the caller of a request with these headers stops waiting, if it says.
pub(super) fn deadline_in(headers: &Headers<'_>) -> Option<Instant> {
    let at = headers.get::<u64>(DEADLINE_HEADER)?;
    Some(deadline::after(deadline::until_unix_millis(at)))
}

/// What is known of the delivery it came in.
#[derive(Clone, Copy)]
pub(super) struct Circumstances {
    pub(super) redelivered: bool,
    /// How many attempts have failed.
    pub(super) failed: usize,
}
