//! The encoder and the decoder against amiquip's codec, and against arbitrary bytes.

use std::borrow::Cow;

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::{AMQPMethod, Deliver};
use proptest::prelude::*;

use super::cursor::{MAX_NESTING, Malformed};
use super::decode::{DeliverMethod, content_header, deliver};
use super::encode::publish;
use super::reference_tests as reference;
use super::reply_queue_name::ReplyQueueName;
use super::strategies_tests::{Case, amqp_properties, case, properties, short};
use crate::transport::amqp::stream::{sanitize_content_header, sanitize_method};
use crate::transport::{HeaderValue, Properties, Publication};

fn encode(case: &Case) -> Vec<u8> {
    let mut out = Vec::new();
    let queue = ReplyQueueName::new(case.queue.clone());
    publish(
        &mut out,
        case.channel,
        case.frame_max,
        &case.publication,
        Some(&queue),
    );
    out
}

fn reply_to(case: &Case) -> Option<&str> {
    if case.publication.body.wants_reply_queue() {
        Some(&case.queue)
    } else {
        case.publication.properties.reply_to.as_deref()
    }
}

/// Returns the payload of a frame.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[7..frame.len() - 1]
}

/// Encodes properties alone, to compare them bit by bit: numbers that are none are not equal.
fn bits(properties: &Properties) -> Vec<u8> {
    let publication = Publication {
        properties: properties.clone(),
        ..Publication::new("", "", Vec::new())
    };
    let mut out = Vec::new();
    publish(&mut out, 1, 0, &publication, None);
    out
}

fn deliver_frame(method: &DeliverMethod, consumer_tag: &str) -> Vec<u8> {
    let method = AMQPMethod::Deliver(Deliver {
        consumer_tag: consumer_tag.to_owned(),
        delivery_tag: method.tag,
        redelivered: method.redelivered,
        exchange: method.exchange.to_string(),
        routing_key: method.routing_key.clone(),
    });
    reference::generate(&AMQPFrame::Method(1, AMQPClass::Basic(method)))
}

/// Decodes a content header in the way of amiquip: sanitizes it, parses it, converts it.
fn decode_by_amiquip(payload: &[u8]) -> Result<(u64, Properties), Malformed> {
    let mut frame = vec![2, 0, 1];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    sanitize_content_header(&mut frame[7..])?;
    frame.push(0xce);
    match reference::parse(&frame).as_slice() {
        [AMQPFrame::Header(_, _, header)] => {
            Ok((header.body_size, reference::from_amqp(&header.properties)))
        }
        other => panic!("not a content header: {other:?}"),
    }
}

fn check_content_header(payload: &[u8]) {
    match (content_header(payload), decode_by_amiquip(payload)) {
        (Ok(ours), Ok((body_size, properties))) => {
            assert_eq!(ours.body_size, body_size);
            assert_eq!(bits(&ours.properties), bits(&properties));
        }
        (Err(ours), Err(theirs)) => assert_eq!(ours, theirs),
        (ours, theirs) => panic!("{ours:?}, by amiquip {theirs:?}"),
    }
}

fn check_deliver(payload: &[u8]) {
    let mut sanitized = payload.to_vec();
    let theirs = sanitize_method(&mut sanitized);
    if !payload.starts_with(&[0, 60, 0, 60]) || theirs.is_err() {
        assert_eq!(deliver(payload), Err(Malformed));
        return;
    }
    let mut frame = vec![1, 0, 1];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(sanitized);
    frame.push(0xce);
    let frames = reference::parse(&frame);
    let [AMQPFrame::Method(_, AMQPClass::Basic(AMQPMethod::Deliver(theirs)))] = &*frames else {
        panic!("not a delivery: {frames:?}");
    };
    let ours = deliver(payload).unwrap();
    assert_eq!(
        (
            ours.tag,
            ours.redelivered,
            &*ours.exchange,
            &*ours.routing_key
        ),
        (
            theirs.delivery_tag,
            theirs.redelivered,
            &*theirs.exchange,
            &*theirs.routing_key
        ),
    );
}

/// Changes some bytes, and cuts off the end or not.
fn mutate(
    bytes: &mut Vec<u8>,
    changes: &[(prop::sample::Index, u8)],
    cut: Option<prop::sample::Index>,
) {
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len() + 1));
    }
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(&b"VtbBsuUIifDlLdTxSAF\0\x01\xff"[..])
    ];
    prop::collection::vec((any::<prop::sample::Index>(), byte), 0..4)
}

/// Builds a content header with one header, a text in so many lists.
fn nested(depth: usize) -> Vec<u8> {
    let long = |kind: u8, content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&[kind], &length[..], content].concat()
    };
    let value = (0..depth).fold(long(b'S', b"deep"), |inner, _| long(b'A', &inner));
    let table = long(0, &[&b"\x01d"[..], &value].concat());
    [&[0; 12], &[0x20, 0][..], &table[1..]].concat()
}

#[test]
fn a_value_nested_too_deeply_becomes_bytes() {
    for depth in [0, 1, MAX_NESTING - 1, MAX_NESTING, MAX_NESTING + 1] {
        let payload = nested(depth);
        check_content_header(&payload);
        let decoded = content_header(&payload).unwrap().properties;
        let mut value = decoded.headers.get("d").unwrap();
        let mut levels = 0;
        while let HeaderValue::List(list) = value {
            value = &list[0];
            levels += 1;
        }
        assert_eq!(levels, depth.min(MAX_NESTING - 1));
        assert_eq!(matches!(value, HeaderValue::Bytes(_)), depth >= MAX_NESTING);
    }
    // A depth at which unbounded recursion would overflow the stack.
    assert!(content_header(&nested(20_000)).is_ok());
}

#[test]
fn a_length_beyond_the_payload_is_refused() {
    let header = |flags: u16, rest: &[u8]| [&[0; 12], &flags.to_be_bytes()[..], rest].concat();
    for (flags, rest) in [
        (0x8000, &b"\xffshort"[..]),                   // content type
        (0x2000, b"\xff\xff\xff\xff"),                 // headers
        (0x2000, b"\0\0\0\x07\x01aS\xff\xff\xff\xff"), // a text in them
        (0x2000, b"\0\0\0\x07\x01aA\xff\xff\xff\xff"), // a list
        (0x2000, b"\0\0\0\x03\x01a?"),                 // an unknown type
        (0x1000, b""),                                 // delivery mode
        (0x0040, b"\0\0\0\0\0\0\0"),                   // timestamp
    ] {
        let payload = header(flags, rest);
        assert_eq!(content_header(&payload), Err(Malformed), "{rest:?}");
        check_content_header(&payload);
    }
    assert_eq!(deliver(b"\0\x3c\0\x3c\xc8"), Err(Malformed));
    let other_method = b"\0\x3c\0\x3d\x00\0\0\0\0\0\0\0\x01\0\0\0";
    assert_eq!(deliver(other_method), Err(Malformed));
}

#[test]
fn invalid_texts_are_sanitized() {
    let payload = [
        &[0; 12],
        &b"\x24\0\0\0\0\x09\x02k\xffS\0\0\0\x01\xff\x03i\xe5\xbc"[..],
    ]
    .concat();
    check_content_header(&payload);
    let properties = content_header(&payload).unwrap().properties;
    assert_eq!(properties.correlation_id.as_deref(), Some("i??"));
    let value = properties.headers.get("k?");
    assert_eq!(value, Some(&HeaderValue::Bytes(vec![0xff])));
}

#[test]
fn usual_texts_are_decoded_without_an_allocation() {
    for exchange in ["", "service.exchange", "event.exchange"] {
        let method = DeliverMethod {
            tag: 1,
            redelivered: true,
            exchange: exchange.into(),
            routing_key: "k".to_owned(),
        };
        let frame = deliver_frame(&method, "c");
        let decoded = deliver(payload(&frame)).unwrap();
        assert!(matches!(decoded.exchange, Cow::Borrowed(_)), "{exchange}");
    }
    let encoded = bits(&Properties::json());
    let decoded = content_header(&encoded[24..]).unwrap();
    let content_type = decoded.properties.content_type;
    assert!(matches!(
        content_type,
        Some(Cow::Borrowed("application/json"))
    ));
}

proptest! {
    #[test]
    fn a_message_is_encoded_byte_for_byte_as_by_amiquip(case in case()) {
        let Case { channel, publication, filled, .. } = &case;
        let expected = reference::publish(
            *channel, case.max_payload(), publication, reply_to(&case), filled,
        );
        prop_assert_eq!(encode(&case), expected);
    }

    #[test]
    fn a_message_is_parsed_by_amiquip(case in case()) {
        let mut frames = reference::parse(&encode(&case)).into_iter();
        let Some(AMQPFrame::Method(channel, AMQPClass::Basic(AMQPMethod::Publish(method)))) = frames.next()
        else { panic!("no method") };
        prop_assert_eq!(channel, case.channel);
        prop_assert_eq!(&*method.exchange, &*case.publication.exchange);
        prop_assert_eq!(&method.routing_key, &case.publication.routing_key);
        prop_assert_eq!((method.mandatory, method.immediate), (case.publication.mandatory, false));
        let Some(AMQPFrame::Header(_, _, header)) = frames.next() else { panic!("no header") };
        prop_assert_eq!(header.body_size, case.filled.len() as u64);
        let properties = reference::to_amqp(&case.publication.properties, reply_to(&case));
        prop_assert_eq!(header.properties, properties);
        let mut body = Vec::new();
        for frame in frames {
            let AMQPFrame::Body(_, payload) = frame else { panic!("no body") };
            prop_assert!((1..=case.max_payload()).contains(&payload.len()));
            body.extend(payload);
        }
        prop_assert_eq!(body, case.filled);
    }

    #[test]
    fn properties_of_other_programs_are_decoded_as_by_amiquip(
        theirs in amqp_properties(), body_size in any::<u64>(),
    ) {
        let frame = reference::header_frame(1, body_size, theirs.clone());
        let ours = content_header(payload(&frame)).unwrap();
        prop_assert_eq!(ours.body_size, body_size);
        prop_assert_eq!(ours.properties, reference::from_amqp(&theirs));
        check_content_header(payload(&frame));
    }

    #[test]
    fn a_delivery_is_decoded_as_by_amiquip(
        tag in any::<u64>(), redelivered in any::<bool>(), consumer_tag in short(),
        exchange in prop_oneof![short(), Just("event.exchange".to_owned())],
        routing_key in short(),
    ) {
        let method = DeliverMethod { tag, redelivered, exchange: exchange.into(), routing_key };
        let frame = deliver_frame(&method, &consumer_tag);
        prop_assert_eq!(deliver(payload(&frame)), Ok(method));
    }

    #[test]
    fn what_is_encoded_is_decoded(properties in properties(), size in 0..10usize) {
        let publication = Publication {
            properties: properties.clone(),
            ..Publication::new("", "", vec![0; size])
        };
        let mut out = Vec::new();
        publish(&mut out, 1, 0, &publication, None);
        let header = &out[17..]; // after the method
        let length = u32::from_be_bytes(header[3..7].try_into().unwrap()) as usize;
        let decoded = content_header(&header[7..7 + length]).unwrap();
        prop_assert_eq!(decoded.body_size, size as u64);
        prop_assert_eq!(&decoded.properties, &properties);
    }

    #[test]
    fn mutated_content_headers_are_decoded_as_by_amiquip(
        properties in amqp_properties(), changes in changes(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let frame = reference::header_frame(1, 7, properties);
        let mut payload = payload(&frame).to_vec();
        mutate(&mut payload, &changes, cut);
        check_content_header(&payload);
    }

    #[test]
    fn mutated_deliveries_are_decoded_as_by_amiquip(
        exchange in short(), routing_key in short(), changes in changes(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let method = DeliverMethod { tag: 7, redelivered: false, exchange: exchange.into(), routing_key };
        let frame = deliver_frame(&method, "c");
        let mut payload = payload(&frame).to_vec();
        mutate(&mut payload, &changes, cut);
        check_deliver(&payload);
    }

    #[test]
    fn arbitrary_bytes_are_decoded_as_by_amiquip(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        check_content_header(&noise);
        check_deliver(&noise);
        check_deliver(&[&[0, 60, 0, 60], &*noise].concat());
        // All properties but the two texts that noise seldom passes.
        check_content_header(&[&[0; 12], &[0x3b, 0xfc][..], &*noise].concat());
        // A table of just this size.
        let length = u32::try_from(noise.len()).unwrap().to_be_bytes();
        check_content_header(&[&[0; 12], &[0x20, 0][..], &length, &*noise].concat());
    }
}
