//! The exact bytes of small frames, and where bodies are cut.

use super::encode::{ack, publish, reject};
use super::reply_queue_name::ReplyQueueName;
use crate::transport::{Properties, Publication};

/// Encodes a message without properties on channel 3.
fn bare(body: &[u8], frame_max: usize) -> Vec<u8> {
    let publication = Publication {
        properties: Properties::default(),
        ..Publication::new("", "q", body.to_vec())
    };
    let mut out = Vec::new();
    publish(&mut out, 3, frame_max, &publication, None);
    out
}

const BARE_METHOD: &[u8] = b"\x01\0\x03\0\0\0\x0a\0\x3c\0\x28\0\0\0\x01q\0\xce";
const BARE_HEADER: &[u8] = b"\x02\0\x03\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0";

#[test]
fn an_ack_is_21_bytes() {
    let mut out = b"before".to_vec();
    ack(&mut out, 0x0102, 0x0304_0506_0708_090a);
    let bytes = b"\x01\x01\x02\0\0\0\x0d\0\x3c\0\x50\x03\x04\x05\x06\x07\x08\x09\x0a\0\xce";
    assert_eq!(out, [&b"before"[..], bytes].concat());
}

#[test]
fn a_reject_has_the_flag_requeue() {
    for (requeue, flag) in [(false, 0), (true, 1)] {
        let mut out = Vec::new();
        reject(&mut out, 1, 2, requeue);
        let mut bytes = b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x5a\0\0\0\0\0\0\0\x02".to_vec();
        bytes.extend([flag, 0xce]);
        assert_eq!(out, bytes);
    }
}

#[test]
fn an_empty_message_is_two_frames() {
    let bytes = [BARE_METHOD, BARE_HEADER, b"\0\0\0\xce"].concat();
    assert_eq!(bare(b"", 4_096), bytes);
}

#[test]
fn a_body_is_cut_at_the_frame_limit() {
    let header = |length: u8| {
        let rest: &[u8] = &[length, 0, 0, 0xce];
        [BARE_METHOD, BARE_HEADER, rest].concat()
    };
    // A frame of 11 bytes has a payload of 3.
    for (body, frames) in [
        (&b"abc"[..], &b"\x03\0\x03\0\0\0\x03abc\xce"[..]),
        (
            b"abcd",
            b"\x03\0\x03\0\0\0\x03abc\xce\x03\0\x03\0\0\0\x01d\xce",
        ),
    ] {
        let length = u8::try_from(body.len()).unwrap();
        assert_eq!(bare(body, 11), [&header(length), frames].concat());
    }
    let unlimited = bare(&[7; 200_000], 0);
    assert_eq!(unlimited.len(), header(0).len() + 200_000 + 8);
}

#[test]
fn a_mandatory_message_has_the_flag() {
    let mut publication = Publication::new("x", "q", Vec::new());
    publication.mandatory = true;
    let mut out = Vec::new();
    publish(&mut out, 1, 4_096, &publication, None);
    assert!(out.starts_with(b"\x01\0\x01\0\0\0\x0b\0\x3c\0\x28\0\0\x01x\x01q\x01\xce"));
}

#[test]
fn a_usual_message_is_reserved_at_once() {
    let queue = ReplyQueueName::new("amq.gen-0123456789abcdefghijkl".to_owned());
    for size in [0, 200, 100_000] {
        let mut publication = Publication::new("service.exchange", "user.request", vec![7; size]);
        publication.properties.message_id = Some("0123456789abcdef".repeat(2));
        publication.properties.correlation_id = Some("0123456789abcdef".repeat(2));
        publication.properties.expiration = Some(std::time::Duration::from_secs(30));
        let mut out = Vec::new();
        publish(&mut out, 1, 131_072, &publication, Some(&queue));
        let needed = out.len();
        // Growing step by step doubles the capacity instead.
        assert!(
            out.capacity() <= needed + 256,
            "{} for {needed}",
            out.capacity()
        );
    }
}
