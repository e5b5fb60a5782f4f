//! The guard that validates incoming frames.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::content_collector::ContentCollector;
use super::oversized_body::{BodyProgress, OversizedBodies};
use super::sanitize;
use crate::transport::amqp::frame_max::FRAME_MAX;
use crate::transport::amqp::frames::Malformed;
use crate::transport::amqp::observed::Observed;
use crate::transport::amqp::routes::Routes;

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
const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];

/// A frame that amiquip ignores but counts as a sign of life.
const HEARTBEAT_FRAME: [u8; 8] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];

/// The interval at which amiquip gets a heartbeat for the frames that are taken out of its stream: it
/// counts only bytes that it receives as a sign of life, and heartbeats are at least a second apart.
const SIGN_OF_LIFE_INTERVAL: Duration = Duration::from_millis(250);

/// A validator of incoming frames, which takes the deliveries out of the stream and passes on the
/// other frames, complete and sanitized.
///
/// A message whose body is larger than the limit is passed on without it, once the whole body
/// has been read; its content header then states a size of 0.
///
/// Holds at most one frame and the bytes of two reads, and one large body, beside the deliveries
/// that are not complete.
pub(super) struct FrameGuard {
    /// The bytes read: those up to `checked` have been checked, those up to `filled` have not, and
    /// behind them is free room, which is never cleared, as that would cost more than the reading.
    buffer: Vec<u8>,
    checked: usize,
    filled: usize,
    /// The checked frames for amiquip, of which it has `taken` bytes.
    passed: Vec<u8>,
    taken: usize,
    frame_max: usize,
    max_body: u64,
    oversized_bodies: OversizedBodies,
    collector: ContentCollector,
    next_sign_of_life: Instant,
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
    /// it keeps one at a time. Deliveries on channels with a route go there.
    pub(super) fn new(max_body: usize, max_large: usize, routes: Arc<Routes>) -> Self {
        Self {
            buffer: Vec::new(),
            checked: 0,
            filled: 0,
            passed: Vec::new(),
            taken: 0,
            frame_max: FRAME_MAX_BEFORE_TUNE,
            max_body: max_body as u64,
            oversized_bodies: OversizedBodies::new(max_large as u64),
            collector: ContentCollector::new(routes),
            next_sign_of_life: Instant::now() + SIGN_OF_LIFE_INTERVAL,
        }
    }

    /// Moves checked bytes to `out`, and returns their number.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let ready = &self.passed[self.taken..];
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        if self.taken == self.passed.len() {
            self.passed.clear();
            self.taken = 0;
        }
        count
    }

    /// Reads once from the socket and returns the number of bytes; 0 means that the peer has
    /// closed it.
    pub(super) fn fill(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.checked..self.filled, 0);
        self.filled -= self.checked;
        self.checked = 0;
        if self.buffer.len() < self.filled + READ_SIZE {
            self.buffer.resize(self.filled + READ_SIZE, 0);
        }
        let read = socket.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        Ok(read)
    }

    /// Checks the complete frames that have arrived.
    pub(super) fn check(&mut self, observed: &Observed) -> Result<(), Violation> {
        let mut has_taken_out = false;
        while let Some(frame) = self.next_frame()? {
            self.checked = frame.end;
            match self.buffer[frame.start] {
                METHOD => self.method(frame, observed)?,
                CONTENT_HEADER => self.content_header(frame)?,
                BODY => self.body(frame, observed)?,
                _ => self.pass_on(frame),
            }
            has_taken_out |= self.passed.is_empty();
        }
        if has_taken_out && self.passed.is_empty() && self.next_sign_of_life <= Instant::now() {
            self.give_sign_of_life();
        }
        Ok(())
    }

    fn method(&mut self, frame: Range<usize>, observed: &Observed) -> Result<(), Violation> {
        let channel = self.channel(&frame);
        let payload = &mut self.buffer[payload_of(&frame)];
        self.oversized_bodies.method(channel, payload);
        if payload.starts_with(&BASIC_DELIVER) && self.collector.deliver(channel, payload)? {
            return Ok(());
        }
        sanitize::method(payload)?;
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
            self.collector.channel_closed(channel);
        }
        self.pass_on(frame);
        Ok(())
    }

    fn content_header(&mut self, frame: Range<usize>) -> Result<(), Violation> {
        let channel = self.channel(&frame);
        let payload = &mut self.buffer[payload_of(&frame)];
        let size = payload.get(4..12).and_then(|bytes| bytes.try_into().ok());
        let size = u64::from_be_bytes(size.ok_or(Violation::BadFrame)?);
        if size > self.max_body {
            sanitize::content_header(payload)?;
            payload[4..12].fill(0);
            let header = self.buffer[frame].to_vec();
            self.oversized_bodies.begin(channel, size, header);
        } else if self.collector.collects(channel) {
            self.collector.header(channel, payload)?;
        } else {
            sanitize::content_header(payload)?;
            self.pass_on(frame);
        }
        Ok(())
    }

    fn body(&mut self, frame: Range<usize>, observed: &Observed) -> Result<(), Violation> {
        let channel = self.channel(&frame);
        let payload = &self.buffer[payload_of(&frame)];
        match self.oversized_bodies.body(channel, payload) {
            None if self.collector.collects(channel) => self.collector.body(channel, payload)?,
            None => self.pass_on(frame),
            Some(BodyProgress::Some) => {}
            Some(BodyProgress::AnotherMebibyte) => self.give_sign_of_life(),
            Some(BodyProgress::All {
                header,
                tag,
                oversized,
            }) => {
                if self.collector.collects(channel) {
                    let payload = &header[payload_of(&(0..header.len()))];
                    self.collector.oversized(channel, payload, oversized)?;
                } else {
                    // Recorded before amiquip can pass the message on.
                    observed.record_oversized(channel, tag, oversized);
                    self.passed.extend_from_slice(&header);
                }
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, frame: Range<usize>) {
        self.passed.extend_from_slice(&self.buffer[frame]);
    }

    fn give_sign_of_life(&mut self) {
        self.passed.extend_from_slice(&HEARTBEAT_FRAME);
        self.next_sign_of_life = Instant::now() + SIGN_OF_LIFE_INTERVAL;
    }

    fn channel(&self, frame: &Range<usize>) -> u16 {
        let [high, low] = [1, 2].map(|at| self.buffer[frame.start + at]);
        u16::from_be_bytes([high, low])
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

/// Returns the range of a frame's payload.
fn payload_of(frame: &Range<usize>) -> Range<usize> {
    frame.start + HEADER..frame.end - 1
}

impl From<Malformed> for Violation {
    fn from(_: Malformed) -> Self {
        Self::BadFrame
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
