use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use super::evidence::Evidence;
use super::sanitize;
use super::swallow::{Swallowed, Swallows};

/// What both sides must not exceed; RabbitMQ's own default.
pub(super) const FRAME_MAX: u32 = 131_072;

/// What a peer may send before limits are negotiated: RabbitMQ's first frame
/// is under 1 kB; something that is not AMQP could announce gigabytes.
const FRAME_MAX_BEFORE_TUNE: usize = 8_192;

/// Frame type, channel, payload size.
const HEADER: usize = 7;
const FRAME_END: u8 = 0xce;
const READ_CHUNK: usize = 32 << 10;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

const CONNECTION_TUNE: [u8; 4] = [0, 10, 0, 30];
const CONNECTION_CLOSE: [u8; 4] = [0, 10, 0, 50];
const CONNECTION_BLOCKED: [u8; 4] = [0, 10, 0, 60];
const CONNECTION_UNBLOCKED: [u8; 4] = [0, 10, 0, 61];
const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];

/// Nothing, for amiquip, but a sign of life.
const HEARTBEAT_FRAME: [u8; 8] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];

/// Validates incoming frames and passes on complete, sanitized ones.
///
/// A message whose body is larger than the limit is passed on without it, when all of the
/// body has been read: its content header then says that it is empty.
///
/// Holds at most one frame and two reads' worth of bytes, and one large body.
///
/// In the buffer, from the start: bytes handed on, up to `taken`; checked ones
/// ready to be, up to `checked`; unchecked ones, up to `filled`; free room,
/// which is never cleared, as that would cost more than the reading.
pub(super) struct Guard {
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
    checked: usize,
    frame_max: usize,
    max_body: u64,
    swallows: Swallows,
}

/// Why what came in was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Violation {
    NotAmqp { start: String },
    OtherVersion,
    FrameTooLarge { size: usize, max: usize },
    BadFrameEnd,
    BadFrame,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAmqp { start } => {
                write!(f, "the server does not speak AMQP 0-9-1: it sent {start:?}")
            }
            Self::OtherVersion => f.write_str("the server speaks another version of AMQP"),
            Self::FrameTooLarge { size, max } => {
                write!(
                    f,
                    "a frame of {size} bytes came in; at most {max} are allowed"
                )
            }
            Self::BadFrameEnd => f.write_str("a frame came in without its end mark"),
            Self::BadFrame => f.write_str("a malformed frame came in"),
        }
    }
}

impl std::error::Error for Violation {}

impl Guard {
    /// Bodies over `max_body` are not passed on; of those up to `max_large` one at a time is
    /// kept.
    pub(super) fn new(max_body: usize, max_large: usize) -> Self {
        Self {
            buffer: Vec::new(),
            filled: 0,
            taken: 0,
            checked: 0,
            frame_max: FRAME_MAX_BEFORE_TUNE,
            max_body: max_body as u64,
            swallows: Swallows::new(max_large as u64),
        }
    }

    /// Hands on checked bytes.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let ready = &self.buffer[self.taken..self.checked];
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        count
    }

    /// Reads once from the socket; 0 means it has been closed.
    pub(super) fn fill(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.checked -= self.taken;
        self.taken = 0;
        if self.buffer.len() < self.filled + READ_CHUNK {
            self.buffer.resize(self.filled + READ_CHUNK, 0);
        }
        let read = socket.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        Ok(read)
    }

    /// Checks the whole frames that have come in.
    pub(super) fn check(&mut self, evidence: &Evidence) -> Result<(), Violation> {
        while let Some(frame) = self.next_frame()? {
            let kind = self.buffer[frame.start];
            let channel = [self.buffer[frame.start + 1], self.buffer[frame.start + 2]];
            let channel = u16::from_be_bytes(channel);
            let content = frame.start + HEADER..frame.end - 1;
            let payload = &mut self.buffer[content.clone()];
            match kind {
                METHOD => {
                    sanitize::method(payload).map_err(|_| Violation::BadFrame)?;
                    self.swallows.method(channel, payload);
                    if payload.starts_with(&CONNECTION_TUNE) {
                        self.frame_max = FRAME_MAX as usize;
                        if let Some(offered) = payload.get(6..10) {
                            let offered = offered.try_into().map_or(0, u32::from_be_bytes);
                            evidence.record_frame_max(negotiated(offered));
                        }
                    } else if payload.starts_with(&CONNECTION_BLOCKED) {
                        evidence.record_blocked(true);
                    } else if payload.starts_with(&CONNECTION_UNBLOCKED) {
                        evidence.record_blocked(false);
                    } else if payload.starts_with(&CONNECTION_CLOSE) {
                        if let Some((code, text)) = reason(&payload[4..]) {
                            evidence.record_server_close(code, text);
                        }
                    } else if payload.starts_with(&CHANNEL_CLOSE)
                        && let Some((code, text)) = reason(&payload[4..])
                    {
                        evidence.record_channel_close(channel, format!("{text} ({code})"));
                    }
                }
                CONTENT_HEADER => {
                    let size = payload.get(4..12).and_then(|bytes| bytes.try_into().ok());
                    let size = u64::from_be_bytes(size.ok_or(Violation::BadFrame)?);
                    sanitize::content_header(payload).map_err(|_| Violation::BadFrame)?;
                    if size > self.max_body {
                        payload[4..12].fill(0);
                        let header = self.buffer[frame.clone()].to_vec();
                        self.swallows.begin(channel, size, header);
                        self.checked = self.replace(frame, &[]);
                        continue;
                    }
                }
                BODY => match self.swallows.body(channel, payload) {
                    None => {}
                    Some(Swallowed::Some) => {
                        self.checked = self.replace(frame, &[]);
                        continue;
                    }
                    // amiquip counts as life only what it sees.
                    Some(Swallowed::AnotherMebibyte) => {
                        self.checked = self.replace(frame, &HEARTBEAT_FRAME);
                        continue;
                    }
                    Some(Swallowed::All {
                        header,
                        tag,
                        oversized,
                    }) => {
                        // Before amiquip can pass the message on.
                        evidence.record_oversized(channel, tag, oversized);
                        self.checked = self.replace(frame, &header);
                        continue;
                    }
                },
                _ => {}
            }
            self.checked = frame.end;
        }
        Ok(())
    }

    /// Puts other bytes in place of a frame; returns where they end.
    fn replace(&mut self, frame: Range<usize>, with: &[u8]) -> usize {
        let end = frame.start + with.len();
        let filled = end + (self.filled - frame.end);
        if self.buffer.len() < filled {
            self.buffer.resize(filled, 0);
        }
        self.buffer.copy_within(frame.end..self.filled, end);
        self.buffer[frame.start..end].copy_from_slice(with);
        self.filled = filled;
        end
    }

    /// The next unchecked frame, if it is there as a whole.
    fn next_frame(&self) -> Result<Option<Range<usize>>, Violation> {
        let rest = &self.buffer[self.checked..self.filled];
        let Some(&kind) = rest.first() else {
            return Ok(None);
        };
        if !matches!(kind, METHOD | CONTENT_HEADER | BODY | HEARTBEAT) {
            return Err(not_amqp(rest));
        }
        let Some(size) = rest.get(3..HEADER).and_then(|bytes| bytes.try_into().ok()) else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(size) as usize;
        let whole = HEADER + size + 1;
        if whole > self.frame_max {
            let max = self.frame_max;
            return Err(Violation::FrameTooLarge { size: whole, max });
        }
        if rest.len() < whole {
            return Ok(None);
        }
        if rest[whole - 1] != FRAME_END {
            return Err(Violation::BadFrameEnd);
        }
        Ok(Some(self.checked..self.checked + whole))
    }
}

/// The frame size that both sides agree on: 0 means no limit.
fn negotiated(offered: u32) -> u32 {
    match offered {
        0 => FRAME_MAX,
        offered => offered.min(FRAME_MAX),
    }
}

fn not_amqp(bytes: &[u8]) -> Violation {
    if bytes.starts_with(b"AMQP") {
        return Violation::OtherVersion;
    }
    let line = bytes.split(|&b| b == b'\r' || b == b'\n').next();
    let start = String::from_utf8_lossy(line.unwrap_or_default());
    Violation::NotAmqp {
        start: start.chars().take(40).collect(),
    }
}

/// The arguments of `close`: a code, a short string, and what we do not need.
fn reason(arguments: &[u8]) -> Option<(u16, String)> {
    let [high, low, length, rest @ ..] = arguments else {
        return None;
    };
    let text = rest.get(..usize::from(*length)).unwrap_or(rest);
    let text = String::from_utf8_lossy(text).into_owned();
    Some((u16::from_be_bytes([*high, *low]), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limited(max_body: usize) -> Guard {
        Guard::new(max_body, 3 << 20)
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

    /// Feeds the bytes in chunks and collects what is let through.
    fn pass(guard: &mut Guard, bytes: &[u8], chunk: usize) -> Result<Vec<u8>, Violation> {
        pass_with(guard, bytes, chunk, &Evidence::default())
    }

    fn pass_with(
        guard: &mut Guard,
        bytes: &[u8],
        chunk: usize,
        evidence: &Evidence,
    ) -> Result<Vec<u8>, Violation> {
        let mut out = Vec::new();
        for mut part in bytes.chunks(chunk) {
            while guard.fill(&mut part).unwrap() > 0 {
                guard.check(evidence)?;
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
    fn something_else_on_the_port_is_recognised() {
        let http = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        let violation = pass(&mut limited(100), http, 9).unwrap_err();
        assert!(violation.to_string().contains("HTTP/1.1"), "{violation}");
        let amqp1 = pass(&mut limited(100), b"AMQP\x03\x01\x00\x00", 8);
        assert_eq!(amqp1, Err(Violation::OtherVersion));
    }

    #[test]
    fn frames_are_small_until_tune_has_come() {
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
        // Nor does what never comes.
        let mut endless = limited(1_000);
        assert_eq!(
            pass(&mut endless, &content_header(u64::MAX), 50),
            Ok(vec![])
        );
        assert!(endless.buffer.len() <= 2 * READ_CHUNK);
        let fits = content_header(1_000);
        assert_eq!(pass(&mut limited(1_000), &fits, 3), Ok(fits));
    }

    /// `basic.deliver` with a delivery tag.
    fn deliver(tag: u64) -> Vec<u8> {
        [&[0, 60, 0, 60, 1, b't'][..], &tag.to_be_bytes(), &[0, 0, 0]].concat()
    }

    /// A message in frames of 100,000 bytes, on channel 1, with another on channel 2 in
    /// between, and what is to be left of both.
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
        let mut swallowed = 0;
        for (n, part) in frames.iter().enumerate() {
            sent.extend(frame(BODY, part));
            let is_last = n + 1 == frames.len();
            if !is_last && (swallowed + part.len()) >> 20 > swallowed >> 20 {
                wanted.extend(HEARTBEAT_FRAME);
            }
            swallowed += part.len();
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
            for chunk in [999, 40_000] {
                let evidence = Evidence::default();
                let mut guard = limited(1_000);
                let passed = pass_with(&mut guard, &sent, chunk, &evidence).unwrap();
                assert!(passed == wanted, "{size} in chunks of {chunk}");
                let found = evidence.take_oversized(1, 5).unwrap();
                assert_eq!(found.bytes(), size as u64);
                let body = found.body().map(|body| body.bytes.len());
                assert_eq!(body, is_kept.then_some(size));
                assert!(evidence.take_oversized(1, 5).is_none());
                assert!(guard.buffer.len() <= FRAME_MAX as usize + 2 * READ_CHUNK);
            }
        }
    }

    #[test]
    fn one_large_body_is_kept_at_a_time() {
        let evidence = Evidence::default();
        let mut guard = limited(1_000);
        pass_with(&mut guard, &interleaved(2_000, 1).0, 999, &evidence).unwrap();
        pass_with(&mut guard, &interleaved(2_000, 2).0, 999, &evidence).unwrap();
        let first = evidence.take_oversized(1, 1).unwrap();
        assert!(first.body().is_some());
        assert!(evidence.take_oversized(1, 2).unwrap().body().is_none());
        drop(first);
        pass_with(&mut guard, &interleaved(2_000, 3).0, 999, &evidence).unwrap();
        assert!(evidence.take_oversized(1, 3).unwrap().body().is_some());
    }

    #[test]
    fn what_the_broker_says_of_itself_is_noted() {
        let mut tune = CONNECTION_TUNE.to_vec();
        tune.extend([7, 0xff, 0, 0, 0x20, 0, 0, 60]);
        let evidence = Evidence::default();
        let mut sent = frame(METHOD, &tune);
        sent.extend(frame(
            METHOD,
            &[&CONNECTION_BLOCKED[..], b"\x03low"].concat(),
        ));
        pass_with(&mut limited(100), &sent, 7, &evidence).unwrap();
        assert_eq!(evidence.frame_max(), 8_192);
        assert!(evidence.is_blocked());
        let unblocked = frame(METHOD, &CONNECTION_UNBLOCKED);
        pass_with(&mut limited(100), &unblocked, 7, &evidence).unwrap();
        assert!(!evidence.is_blocked());
    }

    #[test]
    fn the_brokers_reason_for_closing_is_kept() {
        let mut payload = CONNECTION_CLOSE.to_vec();
        payload.extend([0x01, 0x93, 7]);
        payload.extend(b"REFUSED\0\0\0\0");
        let evidence = Evidence::default();
        let mut guard = limited(100);
        guard.fill(&mut &frame(METHOD, &payload)[..]).unwrap();
        guard.check(&evidence).unwrap();
        assert_eq!(evidence.server_close(), Some((403, "REFUSED".to_owned())));
    }

    proptest! {
        #[test]
        fn lets_valid_frames_through_unchanged_however_they_are_cut(
            payloads in proptest::collection::vec((prop_oneof![Just(METHOD), Just(BODY), Just(HEARTBEAT)], proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
            chunk in 1usize..700,
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|(kind, p)| frame(*kind, p)).collect();
            prop_assert_eq!(pass(&mut limited(1_000), &bytes, chunk), Ok(bytes));
        }

        #[test]
        fn never_panics_and_never_hoards(
            noise in proptest::collection::vec(any::<u8>(), 0..5_000), chunk in 1usize..5_000,
        ) {
            let mut guard = limited(1_000);
            let _ = pass(&mut guard, &noise, chunk);
            prop_assert!(guard.buffer.len() <= FRAME_MAX_BEFORE_TUNE + 2 * READ_CHUNK);
        }
    }
}
