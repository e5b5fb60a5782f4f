//! The reference for tests: amiquip's codec, and the conversion of its types.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame};
use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::{AMQPMethod, AMQPProperties, Publish};
use amq_protocol::types::{AMQPValue, FieldTable};

pub(super) use crate::transport::amqp::convert::from_amqp;
use crate::transport::{HeaderTable, HeaderValue, Properties, Publication};

const CLASS_BASIC: u16 = 60;

/// Generates a frame.
pub(super) fn generate(frame: &AMQPFrame) -> Vec<u8> {
    let mut out = vec![0; 1 << 20];
    let (_, length) = gen_frame((&mut out, 0), frame).unwrap();
    out.truncate(length);
    out
}

/// Generates the frame of a content header.
pub(super) fn header_frame(channel: u16, body_size: u64, properties: AMQPProperties) -> Vec<u8> {
    let header = AMQPContentHeader {
        class_id: CLASS_BASIC,
        weight: 0,
        body_size,
        properties,
    };
    generate(&AMQPFrame::Header(channel, CLASS_BASIC, Box::new(header)))
}

/// Generates the frames of a message as amiquip does.
pub(super) fn publish(
    channel: u16,
    max_payload: usize,
    publication: &Publication,
    reply_to: Option<&str>,
    body: &[u8],
) -> Vec<u8> {
    let method = AMQPMethod::Publish(Publish {
        ticket: 0,
        exchange: publication.exchange.to_string(),
        routing_key: publication.routing_key.clone(),
        mandatory: publication.mandatory,
        immediate: false,
    });
    let mut out = generate(&AMQPFrame::Method(channel, AMQPClass::Basic(method)));
    let properties = to_amqp(&publication.properties, reply_to);
    out.extend(header_frame(channel, body.len() as u64, properties));
    for frame in body.chunks(max_payload) {
        out.extend(generate(&AMQPFrame::Body(channel, frame.to_vec())));
    }
    out
}

/// Parses whole frames.
pub(super) fn parse(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).unwrap();
        frames.push(frame);
        bytes = rest;
    }
    frames
}

/// Converts the properties of a message, with `reply_to` in place of their own.
pub(super) fn to_amqp(properties: &Properties, reply_to: Option<&str>) -> AMQPProperties {
    let mut out = AMQPProperties::default();
    let mut set = |value: Option<&str>, with: fn(AMQPProperties, String) -> AMQPProperties| {
        if let Some(value) = value {
            out = with(std::mem::take(&mut out), value.to_owned());
        }
    };
    let rare = properties.rare.as_deref().cloned().unwrap_or_default();
    let expiration = properties.expiration.map(|it| it.as_millis().to_string());
    set(
        properties.content_type.as_deref(),
        AMQPProperties::with_content_type,
    );
    set(
        properties.message_id.as_deref(),
        AMQPProperties::with_message_id,
    );
    set(
        properties.correlation_id.as_deref(),
        AMQPProperties::with_correlation_id,
    );
    set(reply_to, AMQPProperties::with_reply_to);
    set(expiration.as_deref(), AMQPProperties::with_expiration);
    set(
        rare.content_encoding.as_deref(),
        AMQPProperties::with_content_encoding,
    );
    set(rare.kind.as_deref(), AMQPProperties::with_type_);
    set(rare.app_id.as_deref(), AMQPProperties::with_app_id);
    if properties.persistent {
        out = out.with_delivery_mode(2);
    }
    if !properties.headers.is_empty() {
        out = out.with_headers(table_to_amqp(&properties.headers));
    }
    if let Some(priority) = rare.priority {
        out = out.with_priority(priority);
    }
    if let Some(seconds) = rare.timestamp {
        out = out.with_timestamp(seconds);
    }
    out
}

fn table_to_amqp(headers: &HeaderTable) -> FieldTable {
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.to_owned(), value_to_amqp(value)))
        .collect()
}

fn value_to_amqp(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Void => AMQPValue::Void,
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Float(value) => AMQPValue::Double(*value),
        HeaderValue::Text(text) => AMQPValue::LongString(text.clone()),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(bytes.clone()),
        HeaderValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        HeaderValue::List(values) => {
            AMQPValue::FieldArray(values.iter().map(value_to_amqp).collect())
        }
        HeaderValue::Table(table) => AMQPValue::FieldTable(table_to_amqp(table)),
    }
}
