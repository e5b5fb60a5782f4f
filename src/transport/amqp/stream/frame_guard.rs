//! The guard that validates incoming frames.

use super::frame::FRAME_MAX;
use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use super::observed::Observed;
use super::oversized_body::{BodyProgress, OversizedBodies};
use super::sanitize;

/// The largest frame before limits are negotiated, in bytes. RabbitMQ's first frame is under
/// 1 kB; a peer that does not speak AMQP could announce gigabytes.
const FRAME_MAX_BEFORE_TUNE: usize = 8_192;

/// The bytes of a frame header: type, channel, payload size.
const HEADER: usize = 7;
const FRAME_END: u8 = 0xce;
/// The free room for one read, in bytes.
const READ_SIZE: usize = 32 << 10;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

const CONNECTION_TUNE: [u8; 4] = [0, 10, 0, 30];
const CONNECTION_CLOSE: [u8; 4] = [0, 10, 0, 50];
const CONNECTION_BLOCKED: [u8; 4] = [0, 10, 0, 60];
const CONNECTION_UNBLOCKED: [u8; 4] = [0, 10, 0, 61];
const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];

/// A frame that amiquip ignores but counts as a sign of life.
const HEARTBEAT_FRAME: [u8; 8] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];

/// A validator of incoming frames that passes on complete, sanitized ones.
///
/// A message whose body is larger than the limit is passed on without it, once the whole body
/// has been read; its content header then states a size of 0.
///
/// Holds at most one frame and the bytes of two reads, and one large body.
///
/// The buffer holds, from its start: bytes passed on, up to `taken`; checked bytes, up to
/// `checked`; unchecked bytes, up to `filled`; and free room, which is never cleared, as that
/// would cost more than the reading.
pub(super) struct FrameGuard {
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
    checked: usize,
    frame_max: usize,
    max_body: u64,
    oversized_bodies: OversizedBodies,
}

/// The reason for refusing the incoming bytes.
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
                    "a frame of {size} bytes arrived; at most {max} are allowed"
                )
            }
            Self::BadFrameEnd => f.write_str("a frame without the frame-end octet arrived"),
            Self::BadFrame => f.write_str("a malformed frame arrived"),
        }
    }
}

impl std::error::Error for Violation {}

impl FrameGuard {
    /// Creates a guard that does not pass on bodies over `max_body`; of those up to `max_large`,
    /// it keeps one at a time.
    pub(super) fn new(max_body: usize, max_large: usize) -> Self {
        Self {
            buffer: Vec::new(),
            filled: 0,
            taken: 0,
            checked: 0,
            frame_max: FRAME_MAX_BEFORE_TUNE,
            max_body: max_body as u64,
            oversized_bodies: OversizedBodies::new(max_large as u64),
        }
    }

    /// Moves checked bytes to `out`, and returns their number.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let ready = &self.buffer[self.taken..self.checked];
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        count
    }

    /// Reads once from the socket and returns the number of bytes; 0 means that the peer has
    /// closed it.
    pub(super) fn fill(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.checked -= self.taken;
        self.taken = 0;
        if self.buffer.len() < self.filled + READ_SIZE {
            self.buffer.resize(self.filled + READ_SIZE, 0);
        }
        let read = socket.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        Ok(read)
    }

    /// Checks the complete frames that have arrived.
    pub(super) fn check(&mut self, observed: &Observed) -> Result<(), Violation> {
        while let Some(frame) = self.next_frame()? {
            let kind = self.buffer[frame.start];
            let channel = [self.buffer[frame.start + 1], self.buffer[frame.start + 2]];
            let channel = u16::from_be_bytes(channel);
            let content = frame.start + HEADER..frame.end - 1;
            let payload = &mut self.buffer[content.clone()];
            match kind {
                METHOD => {
                    sanitize::method(payload).map_err(|_| Violation::BadFrame)?;
                    self.oversized_bodies.method(channel, payload);
                    if payload.starts_with(&CONNECTION_TUNE) {
                        self.frame_max = FRAME_MAX as usize;
                        if let Some(offered) = payload.get(6..10) {
                            let offered = offered.try_into().map_or(0, u32::from_be_bytes);
                            observed.record_frame_max(negotiated(offered));
                        }
                    } else if payload.starts_with(&CONNECTION_BLOCKED) {
                        observed.record_blocked(true);
                    } else if payload.starts_with(&CONNECTION_UNBLOCKED) {
                        observed.record_blocked(false);
                    } else if payload.starts_with(&CONNECTION_CLOSE) {
                        if let Some((code, text)) = reason(&payload[4..]) {
                            observed.record_server_close(code, text);
                        }
                    } else if payload.starts_with(&CHANNEL_CLOSE)
                        && let Some((code, text)) = reason(&payload[4..])
                    {
                        observed.record_channel_close(channel, format!("{text} ({code})"));
                    }
                }
                CONTENT_HEADER => {
                    let size = payload.get(4..12).and_then(|bytes| bytes.try_into().ok());
                    let size = u64::from_be_bytes(size.ok_or(Violation::BadFrame)?);
                    sanitize::content_header(payload).map_err(|_| Violation::BadFrame)?;
                    if size > self.max_body {
                        payload[4..12].fill(0);
                        let header = self.buffer[frame.clone()].to_vec();
                        self.oversized_bodies.begin(channel, size, header);
                        self.checked = self.replace(frame, &[]);
                        continue;
                    }
                }
                BODY => match self.oversized_bodies.body(channel, payload) {
                    None => {}
                    Some(BodyProgress::Some) => {
                        self.checked = self.replace(frame, &[]);
                        continue;
                    }
                    // amiquip counts only bytes that it receives as a sign of life.
                    Some(BodyProgress::AnotherMebibyte) => {
                        self.checked = self.replace(frame, &HEARTBEAT_FRAME);
                        continue;
                    }
                    Some(BodyProgress::All {
                        header,
                        tag,
                        oversized,
                    }) => {
                        // Recorded before amiquip can pass the message on.
                        observed.record_oversized(channel, tag, oversized);
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

    /// Replaces a frame with other bytes, and returns the position of their end.
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

    /// Returns the range of the next unchecked frame, if it has arrived completely.
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

/// Returns the frame size that results from the peer's offer, in which 0 means no limit.
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

/// Parses the code and the text from the arguments of `close`; the others are not needed.
fn reason(arguments: &[u8]) -> Option<(u16, String)> {
    let [high, low, length, rest @ ..] = arguments else {
        return None;
    };
    let text = rest.get(..usize::from(*length)).unwrap_or(rest);
    let text = String::from_utf8_lossy(text).into_owned();
    Some((u16::from_be_bytes([*high, *low]), text))
}

#[cfg(test)]
mod tests;
