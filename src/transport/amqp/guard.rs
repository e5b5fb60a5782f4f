use std::fmt;
use std::io::{self, Read};

use super::evidence::Evidence;
use super::sanitize;

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
const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];

/// Lets whole, plausible frames through, made harmless, and nothing else.
///
/// Holds at most one frame and two reads' worth of bytes.
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
}

/// Why what came in was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Violation {
    NotAmqp { start: String },
    OtherVersion,
    FrameTooLarge { size: usize, max: usize },
    BodyTooLarge { size: u64, max: u64 },
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
            Self::BodyTooLarge { size, max } => write!(
                f,
                "a message of {size} bytes came in; at most {max} are allowed (max_body)"
            ),
            Self::BadFrameEnd => f.write_str("a frame came in without its end mark"),
            Self::BadFrame => f.write_str("a malformed frame came in"),
        }
    }
}

impl std::error::Error for Violation {}

impl Guard {
    pub(super) fn new(max_body: usize) -> Self {
        Self {
            buffer: Vec::new(),
            filled: 0,
            taken: 0,
            checked: 0,
            frame_max: FRAME_MAX_BEFORE_TUNE,
            max_body: max_body as u64,
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
            let payload = &mut self.buffer[frame.start + HEADER..frame.end - 1];
            match kind {
                METHOD => {
                    sanitize::method(payload).map_err(|_| Violation::BadFrame)?;
                    if payload.starts_with(&CONNECTION_TUNE) {
                        self.frame_max = FRAME_MAX as usize;
                    } else if payload.starts_with(&CONNECTION_CLOSE) {
                        if let Some((code, text)) = reason(&payload[4..]) {
                            evidence.record_server_close(code, text);
                        }
                    } else if payload.starts_with(&CHANNEL_CLOSE)
                        && let Some((code, text)) = reason(&payload[4..])
                    {
                        let channel = u16::from_be_bytes(channel);
                        evidence.record_channel_close(channel, format!("{text} ({code})"));
                    }
                }
                CONTENT_HEADER => {
                    let size = payload.get(4..12).and_then(|bytes| bytes.try_into().ok());
                    let size = u64::from_be_bytes(size.ok_or(Violation::BadFrame)?);
                    if size > self.max_body {
                        let max = self.max_body;
                        return Err(Violation::BodyTooLarge { size, max });
                    }
                    sanitize::content_header(payload).map_err(|_| Violation::BadFrame)?;
                }
                _ => {}
            }
            self.checked = frame.end;
        }
        Ok(())
    }

    /// The next unchecked frame, if it is there as a whole.
    fn next_frame(&self) -> Result<Option<std::ops::Range<usize>>, Violation> {
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

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
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
        let evidence = Evidence::default();
        let mut out = Vec::new();
        for mut part in bytes.chunks(chunk) {
            while guard.fill(&mut part).unwrap() > 0 {
                guard.check(&evidence)?;
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
        let violation = pass(&mut Guard::new(100), http, 9).unwrap_err();
        assert!(violation.to_string().contains("HTTP/1.1"), "{violation}");
        let amqp1 = pass(&mut Guard::new(100), b"AMQP\x03\x01\x00\x00", 8);
        assert_eq!(amqp1, Err(Violation::OtherVersion));
    }

    #[test]
    fn frames_are_small_until_tune_has_come() {
        let big = frame(BODY, &vec![0; 10_000]);
        let mut guard = Guard::new(100_000);
        assert!(matches!(
            pass(&mut guard, &big, 1_000),
            Err(Violation::FrameTooLarge { size: 10_008, .. })
        ));
        let mut tuned = frame(METHOD, &CONNECTION_TUNE);
        tuned.extend(&big);
        assert_eq!(pass(&mut Guard::new(100_000), &tuned, 999), Ok(tuned));
    }

    #[test]
    fn an_announced_size_takes_no_memory() {
        let mut guard = Guard::new(1_000);
        let huge = [BODY, 0, 1, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(
            pass(&mut guard, &huge, 7),
            Err(Violation::FrameTooLarge { .. })
        ));
        assert!(matches!(
            pass(&mut Guard::new(1_000), &content_header(u64::MAX), 50),
            Err(Violation::BodyTooLarge {
                size: u64::MAX,
                max: 1_000
            })
        ));
        let fits = content_header(1_000);
        assert_eq!(pass(&mut Guard::new(1_000), &fits, 3), Ok(fits));
    }

    #[test]
    fn the_brokers_reason_for_closing_is_kept() {
        let mut payload = CONNECTION_CLOSE.to_vec();
        payload.extend([0x01, 0x93, 7]);
        payload.extend(b"REFUSED\0\0\0\0");
        let evidence = Evidence::default();
        let mut guard = Guard::new(100);
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
            prop_assert_eq!(pass(&mut Guard::new(1_000), &bytes, chunk), Ok(bytes));
        }

        #[test]
        fn never_panics_and_never_hoards(
            noise in proptest::collection::vec(any::<u8>(), 0..5_000), chunk in 1usize..5_000,
        ) {
            let mut guard = Guard::new(1_000);
            let _ = pass(&mut guard, &noise, chunk);
            prop_assert!(guard.buffer.len() <= FRAME_MAX_BEFORE_TUNE + 2 * READ_CHUNK);
        }
    }
}
