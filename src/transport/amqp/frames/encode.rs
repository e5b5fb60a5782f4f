//! The encoder of outgoing messages, acknowledgements and rejections.

use super::long_prefix::{LONG_PREFIX, put_prefixed};
use super::properties::put_properties;
use super::reply_queue_name::ReplyQueueName;
use super::short_text::put_short;
use crate::transport::Publication;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;

/// The bytes of a frame beside its payload: type, channel, length and end.
const OVERHEAD: usize = 1 + 2 + LONG_PREFIX + 1;

/// Class and method, as method frames begin.
const BASIC_PUBLISH: [u8; 4] = [0, 60, 0, 40];
const BASIC_ACK: [u8; 4] = [0, 60, 0, 80];
const BASIC_REJECT: [u8; 4] = [0, 60, 0, 90];
/// Class and weight, as content headers begin.
const BASIC_CONTENT: [u8; 4] = [0, 60, 0, 0];

const MANDATORY: u8 = 1;

/// Appends a message to `out`: method, content header, and the body in frames of at most
/// `frame_max` bytes, or in one frame if that is 0, AMQP's value for no limit.
///
/// If the body has a placeholder for the reply queue, it is filled with `reply_queue`, which
/// becomes the message's reply-to. The caller has checked the publication with
/// `Publication::check`.
pub(in crate::transport::amqp) fn publish(
    out: &mut Vec<u8>,
    channel: u16,
    frame_max: usize,
    publication: &Publication,
    reply_queue: Option<&ReplyQueueName>,
) {
    let properties = &publication.properties;
    let (quoted, reply_to) = if publication.body.wants_reply_queue() {
        (
            reply_queue.map_or("\"\"", ReplyQueueName::quoted),
            reply_queue.map(ReplyQueueName::as_str),
        )
    } else {
        ("", properties.reply_to.as_deref())
    };
    let body = publication.body.pieces(quoted);
    let length: usize = body.iter().map(|piece| piece.len()).sum();
    let max_payload = max_payload(frame_max);
    out.reserve(most_bytes(publication, length, max_payload));

    put_frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&BASIC_PUBLISH);
        out.extend_from_slice(&[0; 2]); // reserved, once a ticket
        put_short(out, &publication.exchange);
        put_short(out, &publication.routing_key);
        out.push(if publication.mandatory { MANDATORY } else { 0 });
    });
    put_frame(out, CONTENT_HEADER, channel, |out| {
        out.extend_from_slice(&BASIC_CONTENT);
        out.extend_from_slice(&(length as u64).to_be_bytes());
        put_properties(out, properties, reply_to);
    });
    put_body(out, channel, max_payload, body);
}

/// Appends the acknowledgement of one delivery.
pub(in crate::transport::amqp) fn ack(out: &mut Vec<u8>, channel: u16, tag: u64) {
    const MULTIPLE: u8 = 0;
    put_settlement(out, channel, BASIC_ACK, tag, MULTIPLE);
}

/// Appends the rejection of one delivery, which is requeued with `requeue`, else dropped or
/// dead-lettered.
pub(in crate::transport::amqp) fn reject(out: &mut Vec<u8>, channel: u16, tag: u64, requeue: bool) {
    put_settlement(out, channel, BASIC_REJECT, tag, requeue.into());
}

fn put_settlement(out: &mut Vec<u8>, channel: u16, method: [u8; 4], tag: u64, flags: u8) {
    put_frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&method);
        out.extend_from_slice(&tag.to_be_bytes());
        out.push(flags);
    });
}

fn put_frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    put_start(out, kind, channel);
    put_prefixed(out, payload);
    out.push(FRAME_END);
}

fn put_start(out: &mut Vec<u8>, kind: u8, channel: u16) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
}

/// Appends the body: every frame but the last is full, whatever piece the bytes come from.
fn put_body(out: &mut Vec<u8>, channel: u16, max_payload: u32, body: [&[u8]; 3]) {
    let mut left: usize = body.iter().map(|piece| piece.len()).sum();
    let mut room = 0; // in the frame that has been started
    for mut piece in body {
        while !piece.is_empty() {
            if room == 0 {
                let payload = u32::try_from(left).unwrap_or(u32::MAX).min(max_payload);
                put_start(out, BODY, channel);
                out.extend_from_slice(&payload.to_be_bytes());
                room = payload as usize;
                left -= room;
            }
            let (now, later) = piece.split_at(piece.len().min(room));
            out.extend_from_slice(now);
            piece = later;
            room -= now.len();
            if room == 0 {
                out.push(FRAME_END);
            }
        }
    }
}

/// Returns the largest payload of a frame.
fn max_payload(frame_max: usize) -> u32 {
    match frame_max {
        0 => u32::MAX,
        // At least one byte, so that a body ends; the smallest limit of AMQP is 4,096.
        _ => u32::try_from(frame_max.saturating_sub(OVERHEAD).max(1)).unwrap_or(u32::MAX),
    }
}

/// Returns the most bytes that a message can take, to reserve them at once. Only headers may
/// take more: they are rare, and counting them costs as much as writing them.
fn most_bytes(publication: &Publication, body: usize, max_payload: u32) -> usize {
    let properties = &publication.properties;
    let texts = [
        Some(&*publication.exchange),
        Some(&*publication.routing_key),
        properties.content_type.as_deref(),
        properties.message_id.as_deref(),
        properties.correlation_id.as_deref(),
        properties.reply_to.as_deref(),
    ];
    let texts: usize = texts.iter().flatten().map(|text| text.len()).sum();
    let frames = 3 + body / max_payload as usize;
    const OTHER: usize = 128; // a reply queue, and the numbers and lengths
    texts + OTHER + frames * OVERHEAD + body
}
