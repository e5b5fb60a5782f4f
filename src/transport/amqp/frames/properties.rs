//! The properties of a message in its content header.

use std::io::Write;
use std::time::Duration;

use super::cursor::{Cursor, Malformed};
use super::short_text::{put_short, to_known_text, to_text};
use super::table::{put_table, take_table};
use crate::transport::{Properties, RareProperties};

/// The flags of the properties, which follow in the order of their flags.
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const KIND: u16 = 1 << 5;
const USER_ID: u16 = 1 << 4;
const APP_ID: u16 = 1 << 3;
const CLUSTER_ID: u16 = 1 << 2;

/// The delivery mode of a persistent message; any other is transient.
const PERSISTENT: u8 = 2;

/// The media types that are decoded without an allocation.
const KNOWN_CONTENT_TYPES: &[&str] = &["application/json"];

/// Appends the flags and the properties, with `reply_to` in place of their own.
pub(super) fn put_properties(out: &mut Vec<u8>, properties: &Properties, reply_to: Option<&str>) {
    let at = out.len();
    out.extend_from_slice(&[0; 2]);
    let mut writer = Writer { out, flags: 0 };
    let rare = properties.rare.as_deref();
    writer.text(CONTENT_TYPE, properties.content_type.as_deref());
    writer.text(
        CONTENT_ENCODING,
        rare.and_then(|rare| rare.content_encoding.as_deref()),
    );
    if !properties.headers.is_empty() {
        put_table(writer.with(HEADERS), &properties.headers);
    }
    if properties.persistent {
        writer.with(DELIVERY_MODE).push(PERSISTENT);
    }
    if let Some(priority) = rare.and_then(|rare| rare.priority) {
        writer.with(PRIORITY).push(priority);
    }
    writer.text(CORRELATION_ID, properties.correlation_id.as_deref());
    writer.text(REPLY_TO, reply_to);
    if let Some(after) = properties.expiration {
        put_millis(writer.with(EXPIRATION), after);
    }
    writer.text(MESSAGE_ID, properties.message_id.as_deref());
    if let Some(seconds) = rare.and_then(|rare| rare.timestamp) {
        let out = writer.with(TIMESTAMP);
        out.extend_from_slice(&seconds.to_be_bytes());
    }
    writer.text(KIND, rare.and_then(|rare| rare.kind.as_deref()));
    writer.text(APP_ID, rare.and_then(|rare| rare.app_id.as_deref()));
    let flags = writer.flags;
    out[at..at + 2].copy_from_slice(&flags.to_be_bytes());
}

/// A writer of properties that collects their flags.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    flags: u16,
}

impl Writer<'_> {
    /// Sets a flag and returns the buffer for its property.
    fn with(&mut self, flag: u16) -> &mut Vec<u8> {
        self.flags |= flag;
        self.out
    }

    fn text(&mut self, flag: u16, text: Option<&str>) {
        if let Some(text) = text {
            put_short(self.with(flag), text);
        }
    }
}

/// Appends a time in milliseconds as a short text of digits.
fn put_millis(out: &mut Vec<u8>, time: Duration) {
    let at = out.len();
    out.push(0);
    // Writing to a vector does not fail, and no number of milliseconds has 255 digits.
    let _ = write!(out, "{}", time.as_millis());
    out[at] = u8::try_from(out.len() - at - 1).unwrap_or(u8::MAX);
}

/// Decodes the flags and the properties. As coney does not use the user id and the cluster id,
/// they are skipped.
pub(super) fn take_properties(cursor: &mut Cursor<'_>) -> Result<Properties, Malformed> {
    let flags = u16::from_be_bytes(cursor.array()?);
    let has = |flag| flags & flag != 0;
    let mut properties = Properties::default();
    // Few messages have any of these, so their box is made only then.
    let mut rare = None::<Box<RareProperties>>;
    if has(CONTENT_TYPE) {
        properties.content_type = Some(to_known_text(cursor.short()?, KNOWN_CONTENT_TYPES));
    }
    if has(CONTENT_ENCODING) {
        rare.get_or_insert_default().content_encoding = Some(to_text(cursor.short()?));
    }
    if has(HEADERS) {
        properties.headers = take_table(cursor.long()?, 1)?;
    }
    properties.persistent = has(DELIVERY_MODE) && cursor.octet()? == PERSISTENT;
    if has(PRIORITY) {
        rare.get_or_insert_default().priority = Some(cursor.octet()?);
    }
    if has(CORRELATION_ID) {
        properties.correlation_id = Some(to_text(cursor.short()?));
    }
    if has(REPLY_TO) {
        properties.reply_to = Some(to_text(cursor.short()?));
    }
    if has(EXPIRATION) {
        properties.expiration = to_millis(cursor.short()?);
    }
    if has(MESSAGE_ID) {
        properties.message_id = Some(to_text(cursor.short()?));
    }
    if has(TIMESTAMP) {
        rare.get_or_insert_default().timestamp = Some(u64::from_be_bytes(cursor.array()?));
    }
    if has(KIND) {
        rare.get_or_insert_default().kind = Some(to_text(cursor.short()?));
    }
    if has(USER_ID) {
        cursor.short()?;
    }
    if has(APP_ID) {
        rare.get_or_insert_default().app_id = Some(to_text(cursor.short()?));
    }
    if has(CLUSTER_ID) {
        cursor.short()?;
    }
    properties.rare = rare;
    Ok(properties)
}

/// Decodes an expiration; another program may send one that is not a number.
fn to_millis(digits: &[u8]) -> Option<Duration> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits.parse().ok().map(Duration::from_millis)
}
