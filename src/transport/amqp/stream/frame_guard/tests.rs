//! Unit tests of the frame guard.

use super::*;
use crate::transport::amqp::coalesce_buffer::CoalesceBuffer;
use crate::transport::amqp::command::RegisteredLink;
use crate::transport::amqp::delivery_route::DeliveryRoute;
use crate::transport::amqp::frame_max::FRAME_MAX;
use crate::transport::amqp::frame_writer;
use crate::transport::amqp::link_outlet::{LinkOutlet, OpenChannel};
use crate::transport::amqp::routes::Registration;
use crate::transport::{Disposition, LinkSpec, NoSink, PartialReply, Publication, Settler};
use proptest::prelude::*;

fn limited(max_body: usize) -> FrameGuard {
    FrameGuard::new(max_body, 3 << 20, Arc::default())
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame_on(1, kind, payload)
}

fn frame_on(channel: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, channel];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame.push(FRAME_END);
    frame
}

fn content_header(size: u64) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend(size.to_be_bytes());
    payload.extend([0, 0]);
    frame(CONTENT_HEADER, &payload)
}

/// Feeds the bytes in reads of `size` bytes and collects what is passed on.
fn pass(guard: &mut FrameGuard, bytes: &[u8], size: usize) -> Result<Vec<u8>, Violation> {
    pass_with(guard, bytes, size, &Observed::default())
}

fn pass_with(
    guard: &mut FrameGuard,
    bytes: &[u8],
    size: usize,
    observed: &Observed,
) -> Result<Vec<u8>, Violation> {
    let mut out = Vec::new();
    for mut part in bytes.chunks(size) {
        while guard.fill(&mut part).unwrap() > 0 {
            guard.check(observed)?;
            let mut piece = [0; 100];
            loop {
                match guard.take(&mut piece) {
                    0 => break,
                    n => out.extend(&piece[..n]),
                }
            }
        }
    }
    Ok(out)
}

#[test]
fn a_peer_without_amqp_0_9_1_is_recognised() {
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    let violation = pass(&mut limited(100), http, 9).unwrap_err();
    assert!(violation.to_string().contains("HTTP/1.1"), "{violation}");
    let amqp1 = pass(&mut limited(100), b"AMQP\x03\x01\x00\x00", 8);
    assert_eq!(amqp1, Err(Violation::OtherVersion));
}

#[test]
fn frames_are_small_before_tune() {
    let big = frame(BODY, &vec![0; 10_000]);
    let mut guard = limited(100_000);
    assert!(matches!(
        pass(&mut guard, &big, 1_000),
        Err(Violation::FrameTooLarge { size: 10_008, .. })
    ));
    let mut tuned = frame(METHOD, &CONNECTION_TUNE);
    tuned.extend(&big);
    assert_eq!(pass(&mut limited(100_000), &tuned, 999), Ok(tuned));
}

#[test]
fn an_announced_size_takes_no_memory() {
    let mut guard = limited(1_000);
    let huge = [BODY, 0, 1, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(
        pass(&mut guard, &huge, 7),
        Err(Violation::FrameTooLarge { .. })
    ));
    // Nor does an announced body.
    let mut endless = limited(1_000);
    assert_eq!(
        pass(&mut endless, &content_header(u64::MAX), 50),
        Ok(vec![])
    );
    assert!(endless.buffer.len() <= 2 * READ_SIZE);
    let fits = content_header(1_000);
    assert_eq!(pass(&mut limited(1_000), &fits, 3), Ok(fits));
}

/// Builds a `basic.deliver` with a delivery tag.
fn deliver(tag: u64) -> Vec<u8> {
    [&[0, 60, 0, 60, 1, b't'][..], &tag.to_be_bytes(), &[0, 0, 0]].concat()
}

/// Builds a message in frames of 100,000 bytes on channel 1, interleaved with another on
/// channel 2, and the bytes expected to be passed on.
fn interleaved(size: usize, tag: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut wanted) = (Vec::new(), Vec::new());
    let mut both = |bytes: Vec<u8>| {
        wanted.extend(&bytes);
        sent.extend(bytes);
    };
    both(frame(METHOD, &CONNECTION_TUNE));
    both(frame(METHOD, &deliver(tag)));
    sent.extend(content_header(size as u64));
    let body = vec![7; size];
    let frames: Vec<&[u8]> = body.chunks(100_000).collect();
    let mut read = 0;
    for (n, part) in frames.iter().enumerate() {
        sent.extend(frame(BODY, part));
        let is_last = n + 1 == frames.len();
        if !is_last && (read + part.len()) >> 20 > read >> 20 {
            wanted.extend(HEARTBEAT_FRAME);
        }
        read += part.len();
        if is_last {
            wanted.extend(content_header(0));
        }
        let other = frame_on(2, BODY, b"other");
        wanted.extend(&other);
        sent.extend(other);
    }
    (sent, wanted)
}

#[test]
fn a_body_over_the_limit_is_left_out_and_nothing_else() {
    for (size, is_kept) in [(1_001, true), (2_500_000, true), (4_000_000, false)] {
        let (sent, wanted) = interleaved(size, 5);
        for read_size in [999, 40_000] {
            let observed = Observed::default();
            let mut guard = limited(1_000);
            let passed = pass_with(&mut guard, &sent, read_size, &observed).unwrap();
            assert!(passed == wanted, "{size} in reads of {read_size}");
            let found = observed.take_oversized(1, 5).unwrap();
            assert_eq!(found.bytes(), size as u64);
            let body = found.body().map(|body| body.bytes.len());
            assert_eq!(body, is_kept.then_some(size));
            assert!(observed.take_oversized(1, 5).is_none());
            assert!(guard.buffer.len() <= FRAME_MAX as usize + 2 * READ_SIZE);
        }
    }
}

#[test]
fn one_large_body_is_kept_at_a_time() {
    let observed = Observed::default();
    let mut guard = limited(1_000);
    pass_with(&mut guard, &interleaved(2_000, 1).0, 999, &observed).unwrap();
    pass_with(&mut guard, &interleaved(2_000, 2).0, 999, &observed).unwrap();
    let first = observed.take_oversized(1, 1).unwrap();
    assert!(first.body().is_some());
    assert!(observed.take_oversized(1, 2).unwrap().body().is_none());
    drop(first);
    pass_with(&mut guard, &interleaved(2_000, 3).0, 999, &observed).unwrap();
    assert!(observed.take_oversized(1, 3).unwrap().body().is_some());
}

#[test]
fn frame_max_and_blocked_are_recorded() {
    let mut tune = CONNECTION_TUNE.to_vec();
    tune.extend([7, 0xff, 0, 0, 0x20, 0, 0, 60]);
    let observed = Observed::default();
    let mut sent = frame(METHOD, &tune);
    sent.extend(frame(
        METHOD,
        &[&CONNECTION_BLOCKED[..], b"\x03low"].concat(),
    ));
    pass_with(&mut limited(100), &sent, 7, &observed).unwrap();
    assert_eq!(observed.frame_max(), 8_192);
    assert!(observed.is_blocked());
    let unblocked = frame(METHOD, &CONNECTION_UNBLOCKED);
    pass_with(&mut limited(100), &unblocked, 7, &observed).unwrap();
    assert!(!observed.is_blocked());
}

#[test]
fn the_brokers_reason_for_closing_is_recorded() {
    let mut payload = CONNECTION_CLOSE.to_vec();
    payload.extend([0x01, 0x93, 7]);
    payload.extend(b"REFUSED\0\0\0\0");
    let observed = Observed::default();
    let mut guard = limited(100);
    guard.fill(&mut &frame(METHOD, &payload)[..]).unwrap();
    guard.check(&observed).unwrap();
    assert_eq!(observed.server_close(), Some((403, "REFUSED".to_owned())));
}

proptest! {
    #[test]
    fn valid_frames_pass_unchanged_however_they_are_split(
        payloads in proptest::collection::vec(
            (
                prop_oneof![Just(METHOD), Just(BODY), Just(HEARTBEAT)],
                proptest::collection::vec(any::<u8>(), 0..300),
            ),
            0..20,
        ),
        read_size in 1usize..700,
    ) {
        let bytes: Vec<u8> = payloads.iter().flat_map(|(kind, p)| frame(*kind, p)).collect();
        prop_assert_eq!(pass(&mut limited(1_000), &bytes, read_size), Ok(bytes));
    }

    #[test]
    fn noise_does_not_panic_or_fill_the_buffer(
        noise in proptest::collection::vec(any::<u8>(), 0..5_000), read_size in 1usize..5_000,
    ) {
        let mut guard = limited(1_000);
        let _ = pass(&mut guard, &noise, read_size);
        prop_assert!(guard.buffer.len() <= FRAME_MAX_BEFORE_TUNE + 2 * READ_SIZE);
    }
}

/// A route whose deliveries a test takes.
fn routed(channel: u16) -> (FrameGuard, Arc<DeliveryRoute>, Registration) {
    let (commands, _) = crossbeam_channel::unbounded();
    let registered = RegisteredLink {
        spec: LinkSpec::default().reply_queue().coalesces(true),
        sink: Arc::new(NoSink),
        settler: Arc::new(NoSettler),
        outlet: Arc::default(),
        commands,
        coalesce_buffer: Arc::new(CoalesceBuffer::new(1_000)),
        refusal: Arc::default(),
        opening: None,
    };
    let routes = Arc::<Routes>::default();
    let route = Arc::new(DeliveryRoute::new((1, &registered), 1, Arc::default()));
    let outlet = Arc::clone(&registered.outlet);
    let registration = Registration::new(&routes, channel, outlet, Some(Arc::clone(&route)));
    let mut guard = FrameGuard::new(1_000, 3 << 20, routes);
    guard.next_sign_of_life += Duration::from_secs(3_600); // not before a test wants it
    let tuned = frame(METHOD, &CONNECTION_TUNE);
    assert_eq!(pass(&mut guard, &tuned, 100), Ok(tuned));
    (guard, route, registration)
}

struct NoSettler;

impl Settler for NoSettler {
    fn settle(&self, _: u64, _: u64, _: Disposition) {}
    fn reply(&self, _: u64, _: u64, _: PartialReply<'_>) {}
}

/// The frames of a message with the routing key `key` and this body, in frames of `size` bytes.
fn delivery(channel: u8, tag: u64, body: &[u8], size: usize) -> Vec<u8> {
    let mut method = vec![0, 60, 0, 60, 1, b't'];
    method.extend(tag.to_be_bytes());
    method.extend([0, 0, 3]);
    method.extend(b"key");
    let mut header = vec![0, 60, 0, 0];
    header.extend((body.len() as u64).to_be_bytes());
    header.extend([0, 0]);
    let mut out = frame_on(channel, METHOD, &method);
    out.extend(frame_on(channel, CONTENT_HEADER, &header));
    for piece in body.chunks(size) {
        out.extend(frame_on(channel, BODY, piece));
    }
    out
}

#[test]
fn deliveries_with_a_route_leave_the_stream() {
    let (mut guard, route, _registration) = routed(1);
    let other = delivery(2, 1, b"other", 9);
    let flow = frame_on(1, METHOD, &[0, 20, 0, 20, 1]);
    let large = delivery(1, 3, &[7; 2_000], 500);
    let bytes = [
        delivery(1, 2, b"body", 3),
        other.clone(),
        large,
        flow.clone(),
    ]
    .concat();
    let passed = pass(&mut guard, &bytes, 50).unwrap();
    assert_eq!(passed, [other, flow].concat());
    let arrived: Vec<_> = route.by_io_thread().unwrap().try_iter().collect();
    assert_eq!(arrived.len(), 2);
    assert_eq!((arrived[0].tag, arrived[1].tag), (2, 3));
    assert_eq!(arrived[0].message.body, b"body");
    assert_eq!(arrived[0].message.routing_key, "key");
    let oversized = arrived[1].message.oversized().unwrap();
    assert_eq!(oversized.bytes(), 2_000);
    assert!(arrived[1].message.body.is_empty());
}

#[test]
fn a_body_longer_than_announced_is_refused() {
    let (mut guard, _route, _registration) = routed(1);
    let mut bytes = delivery(1, 1, b"body", 9);
    let longer = bytes.len() - 4 - 8;
    bytes.truncate(longer);
    bytes.extend(frame(BODY, b"longer"));
    assert_eq!(pass(&mut guard, &bytes, 50), Err(Violation::BadFrame));
}

/// Checks the sign of life: amiquip ends a connection on which it reads nothing.
#[test]
fn amiquip_gets_heartbeats_for_the_deliveries_that_it_does_not_see() {
    let (mut guard, _route, _registration) = routed(1);
    let one = delivery(1, 1, b"body", 9);
    assert_eq!(pass(&mut guard, &one, 50), Ok(Vec::new()));
    guard.next_sign_of_life = Instant::now();
    assert_eq!(pass(&mut guard, &one, 500), Ok(HEARTBEAT_FRAME.to_vec()));
    assert_eq!(pass(&mut guard, &one, 50), Ok(Vec::new()));
}

#[test]
fn nothing_more_is_sent_on_a_channel_that_the_broker_has_closed() {
    let (mut guard, _route, registration) = routed(1);
    let open = |outlet: &LinkOutlet| outlet.publish(&Publication::new("", "q", Vec::new()), None);
    let (writer, _peer) = frame_writer::connected();
    registration.outlet.open(OpenChannel {
        session: 1,
        channel: 1,
        frame_max: 0,
        reply_queue: None,
        is_numbered: false,
        writer: Arc::clone(writer.writer()),
        observed: Arc::default(),
        unsettled: Arc::default(),
    });
    assert!(open(&registration.outlet).is_ok());
    let close = frame(
        METHOD,
        &[0, 20, 0, 40, 1, 148, 3, b'b', b'a', b'd', 0, 0, 0, 0],
    );
    pass(&mut guard, &close, 50).unwrap();
    assert!(open(&registration.outlet).is_err());
}

proptest! {
    #[test]
    fn deliveries_are_the_same_however_the_bytes_are_split(
        bodies in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 1..200usize), 0..8),
        cut in 1..400usize,
    ) {
        let (mut guard, route, _registration) = routed(1);
        let mut bytes = Vec::new();
        for (tag, (body, size)) in bodies.iter().enumerate() {
            bytes.extend(delivery(1, tag as u64, body, *size));
        }
        prop_assert_eq!(pass(&mut guard, &bytes, cut), Ok(Vec::new()));
        let arrived = route.by_io_thread().unwrap().try_iter().map(|it| it.message.body.clone());
        let sent = bodies.into_iter().map(|(body, _)| body);
        prop_assert_eq!(arrived.collect::<Vec<_>>(), sent.collect::<Vec<_>>());
    }
}
