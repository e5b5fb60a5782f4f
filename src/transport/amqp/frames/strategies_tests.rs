//! Arbitrary messages for the property tests.

use std::borrow::Cow;
use std::time::Duration;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, DecimalValue};
use proptest::option;
use proptest::prelude::*;

use crate::base::moment::Moment;
use crate::message::{Body, Json, ServiceMessage};
use crate::transport::{HeaderTable, HeaderValue, Properties, Publication, RareProperties};

/// The frame limits to try, in bytes: tiny ones, AMQP's smallest, RabbitMQ's default, and none.
const FRAME_LIMITS: [usize; 5] = [9, 40, 4_096, 131_072, 0];

/// Generates short texts, up to the longest.
pub(super) fn short() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        prop::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter),
        prop::collection::vec(any::<char>(), 63).prop_map(String::from_iter),
        Just("k".repeat(255)),
    ]
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    let leaf = prop_oneof![
        Just(HeaderValue::Void),
        any::<bool>().prop_map(HeaderValue::Bool),
        any::<i64>().prop_map(HeaderValue::Int),
        prop::num::f64::NORMAL.prop_map(HeaderValue::Float),
        any::<u64>().prop_map(HeaderValue::Timestamp),
        ".{0,300}".prop_map(HeaderValue::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(HeaderValue::Bytes),
    ];
    leaf.prop_recursive(5, 30, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(HeaderValue::List),
            prop::collection::vec((short(), inner), 0..4)
                .prop_map(|fields| HeaderValue::Table(fields.into_iter().collect())),
        ]
    })
}

/// Generates properties in the form in which they are decoded: whole milliseconds, and no empty
/// box of rare ones.
pub(super) fn properties() -> impl Strategy<Value = Properties> {
    let headers = prop::collection::vec((short(), header_value()), 0..5)
        .prop_map(|fields| fields.into_iter().collect::<HeaderTable>());
    let expiration = any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()));
    let content_type = prop_oneof![Just("application/json".to_owned()), short()];
    let rare = (
        option::of(short()),
        option::of(any::<u8>()),
        option::of(any::<u64>()),
        option::of(short()),
        option::of(short()),
    );
    let rare = rare.prop_map(|(content_encoding, priority, timestamp, kind, app_id)| {
        let rare = RareProperties {
            content_encoding,
            priority,
            timestamp,
            kind,
            app_id,
        };
        (rare != RareProperties::default()).then(|| Box::new(rare))
    });
    let common = (
        option::of(content_type),
        any::<bool>(),
        option::of(short()),
        option::of(short()),
        option::of(short()),
        option::of(expiration),
    );
    (common, headers, rare).prop_map(|(common, headers, rare)| {
        let (content_type, persistent, message_id, correlation_id, reply_to, expiration) = common;
        Properties {
            content_type: content_type.map(Cow::Owned),
            persistent,
            message_id,
            correlation_id,
            reply_to,
            expiration,
            headers,
            rare,
        }
    })
}

/// A body, and the same with the name of the reply queue in its place.
#[derive(Clone, Debug)]
pub(super) struct FilledBody {
    pub(super) body: Body,
    pub(super) filled: Vec<u8>,
}

/// Generates bodies of some `length` near multiples of a frame's payload, with or without a
/// placeholder for `queue`.
fn body(max_payload: usize, queue: String) -> impl Strategy<Value = FilledBody> {
    let multiple = max_payload.min(1_000) * 3;
    let length = prop_oneof![
        Just(0),
        Just(1),
        (0..=3usize, 0..3usize).prop_map(move |(frames, more)| (frames * max_payload.min(70_000)
            + more)
            .saturating_sub(1)),
        0..multiple,
    ];
    (length, any::<bool>()).prop_map(move |(length, is_request)| {
        if !is_request {
            let bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
            return FilledBody {
                body: bytes.clone().into(),
                filled: bytes,
            };
        }
        let payload = "p".repeat(length);
        let request = ServiceMessage::with_ids(Moment::now(), "m", "c", "s", "t", "a", &*payload);
        let body = request.encode_awaiting_reply_queue().unwrap();
        let filled = body.clone().fill(&queue);
        assert!(String::from_utf8_lossy(&filled).contains(&Json::quote(&queue)));
        FilledBody {
            body,
            filled: filled.to_vec(),
        }
    })
}

/// A message to encode, and all that belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) channel: u16,
    pub(super) frame_max: usize,
    pub(super) queue: String,
    pub(super) publication: Publication,
    pub(super) filled: Vec<u8>,
}

impl Case {
    pub(super) fn max_payload(&self) -> usize {
        max_payload(self.frame_max)
    }
}

fn max_payload(frame_max: usize) -> usize {
    if frame_max == 0 {
        usize::MAX
    } else {
        frame_max - 8
    }
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let limit = prop::sample::select(&FRAME_LIMITS[..]);
    (limit, short()).prop_flat_map(|(frame_max, queue)| {
        let body = body(max_payload(frame_max), queue.clone());
        let rest = (any::<u16>(), short(), short(), any::<bool>(), properties());
        (rest, body).prop_map(move |(rest, body)| {
            let (channel, exchange, routing_key, mandatory, properties) = rest;
            Case {
                channel,
                frame_max,
                queue: queue.clone(),
                publication: Publication {
                    properties,
                    mandatory,
                    ..Publication::new(exchange, routing_key, body.body)
                },
                filled: body.filled,
            }
        })
    })
}

fn amqp_value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        Just(AMQPValue::Void),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        prop::num::f32::NORMAL.prop_map(AMQPValue::Float),
        prop::num::f64::NORMAL.prop_map(AMQPValue::Double),
        (any::<u8>(), any::<u32>())
            .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        ".{0,300}".prop_map(AMQPValue::LongString),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(AMQPValue::ByteArray),
    ];
    leaf.prop_recursive(5, 30, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(AMQPValue::FieldArray),
            prop::collection::btree_map(short(), inner, 0..4).prop_map(AMQPValue::FieldTable),
        ]
    })
}

/// Generates properties as other programs send them.
pub(super) fn amqp_properties() -> impl Strategy<Value = AMQPProperties> {
    type With = fn(AMQPProperties, String) -> AMQPProperties;
    const TEXTS: [With; 9] = [
        AMQPProperties::with_content_type,
        AMQPProperties::with_content_encoding,
        AMQPProperties::with_correlation_id,
        AMQPProperties::with_reply_to,
        AMQPProperties::with_message_id,
        AMQPProperties::with_type_,
        AMQPProperties::with_user_id,
        AMQPProperties::with_app_id,
        AMQPProperties::with_cluster_id,
    ];
    let texts = prop::collection::vec(option::of(short()), TEXTS.len());
    let expiration = prop_oneof![
        short(),
        "[+-]?[0-9]{0,25}",
        any::<u64>().prop_map(|n| n.to_string())
    ];
    let headers = prop::collection::btree_map(short(), amqp_value(), 0..6);
    let rest = (
        option::of(expiration),
        option::of(headers),
        option::of(0..4u8),
        option::of(any::<u8>()),
        option::of(any::<u64>()),
    );
    (texts, rest).prop_map(|(texts, rest)| {
        let mut out = AMQPProperties::default();
        for (with, text) in TEXTS.iter().zip(texts) {
            out = match text {
                Some(text) => with(out, text),
                None => out,
            };
        }
        let (expiration, headers, delivery_mode, priority, timestamp) = rest;
        if let Some(text) = expiration {
            out = out.with_expiration(text);
        }
        if let Some(headers) = headers {
            out = out.with_headers(headers);
        }
        if let Some(mode) = delivery_mode {
            out = out.with_delivery_mode(mode);
        }
        if let Some(priority) = priority {
            out = out.with_priority(priority);
        }
        if let Some(seconds) = timestamp {
            out = out.with_timestamp(seconds);
        }
        out
    })
}
