//! Unit tests of the frame guard.

use super::*;
use crate::transport::amqp::stream::FRAME_MAX;
use proptest::prelude::*;

fn limited(max_body: usize) -> FrameGuard {
    FrameGuard::new(max_body, 3 << 20)
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
