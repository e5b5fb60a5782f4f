//! The decoder of incoming messages: the delivery's method and the content header.
//!
//! It decodes what any peer may send. Every length is checked against the bytes that are there
//! before anything is allocated, so the memory taken grows with the payload, at most a frame.

use std::borrow::Cow;

use super::cursor::{Cursor, Malformed};
use super::properties::take_properties;
use super::short_text::{to_known_text, to_text};
use crate::topology::{DEAD_EXCHANGE, EVENT_EXCHANGE, RETURN_EXCHANGE, SERVICE_EXCHANGE};
use crate::transport::Properties;

/// Class and method, as the method's payload begins.
const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];

/// The exchanges that are decoded without an allocation. Replies and retries come from the default
/// exchange.
const KNOWN_EXCHANGES: &[&str] = &[
    "",
    SERVICE_EXCHANGE,
    EVENT_EXCHANGE,
    RETURN_EXCHANGE,
    DEAD_EXCHANGE,
];

/// A delivery's method, the first frame of a message.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::transport::amqp) struct DeliverMethod {
    pub(in crate::transport::amqp) tag: u64,
    pub(in crate::transport::amqp) redelivered: bool,
    pub(in crate::transport::amqp) exchange: Cow<'static, str>,
    pub(in crate::transport::amqp) routing_key: String,
}

/// A message's content header, the second frame.
#[derive(Debug, PartialEq)]
pub(in crate::transport::amqp) struct ContentHeader {
    /// The announced size of the body in bytes, which need not be true.
    pub(in crate::transport::amqp) body_size: u64,
    pub(in crate::transport::amqp) properties: Properties,
}

/// Decodes the payload of a method frame, which must be `basic.deliver`.
///
/// In texts, each byte that is not UTF-8 becomes a question mark.
///
/// # Errors
///
/// Fails if it is another method, or a length in it exceeds the payload. Bytes after it are
/// ignored.
pub(in crate::transport::amqp) fn deliver(payload: &[u8]) -> Result<DeliverMethod, Malformed> {
    let mut cursor = Cursor::new(payload);
    if cursor.array()? != BASIC_DELIVER {
        return Err(Malformed);
    }
    cursor.short()?; // the consumer tag
    Ok(DeliverMethod {
        tag: u64::from_be_bytes(cursor.array()?),
        redelivered: cursor.octet()? & 1 != 0,
        exchange: to_known_text(cursor.short()?, KNOWN_EXCHANGES),
        routing_key: to_text(cursor.short()?),
    })
}

/// Decodes the payload of a content header frame.
///
/// In short texts, each byte that is not UTF-8 becomes a question mark; a header's text that is
/// not UTF-8 becomes bytes, as do lists and tables nested deeper than 100 levels.
///
/// # Errors
///
/// Fails if a length in it exceeds the payload, or a header has an unknown type. Bytes after the
/// properties are ignored.
pub(in crate::transport::amqp) fn content_header(
    payload: &[u8],
) -> Result<ContentHeader, Malformed> {
    let mut cursor = Cursor::new(payload);
    cursor.take(4)?; // class and weight
    Ok(ContentHeader {
        body_size: u64::from_be_bytes(cursor.array()?),
        properties: take_properties(&mut cursor)?,
    })
}
