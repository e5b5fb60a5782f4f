//! The bytes that have been handed to amiquip and not been written to the socket yet.
//!
//! amiquip takes what it is given into queues of a bounded number of frames, and the thread
//! that finds one full is blocked. While the broker reads nothing that would be the I/O thread,
//! which then does not learn that the broker has said so. So it hands over no more than a
//! budget, and the stream, which sees every frame on its way out, counts what has left.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// The bytes that may be under way, and the number of messages and acknowledgements. One message
/// more is let through, so that there is progress with large ones.
const MOST_BYTES: usize = 256 << 10;
const MOST_FRAMES: usize = 128;

/// For a message's frames beside its body.
const OVERHEAD: usize = 512;

/// What is under way, seen by the I/O thread and by the stream.
pub(super) struct Transit {
    handed: Mutex<Handed>,
    /// The I/O thread waits for room.
    is_waited_for: AtomicBool,
    wake: Sender<()>,
    woken: Receiver<()>,
}

#[derive(Default)]
struct Handed {
    /// The sizes of those under way on each channel, in their order.
    sizes: HashMap<u16, VecDeque<usize>>,
    bytes: usize,
    count: usize,
}

impl Transit {
    pub(super) fn new() -> Self {
        let (wake, woken) = bounded(1);
        Self {
            handed: Mutex::default(),
            is_waited_for: AtomicBool::new(false),
            wake,
            woken,
        }
    }

    /// A message with a body of so many bytes is handed over, or an acknowledgement.
    pub(super) fn handing(&self, channel: u16, bytes: usize) {
        let mut handed = self.handed.lock();
        let size = bytes + OVERHEAD;
        handed.sizes.entry(channel).or_default().push_back(size);
        handed.bytes += size;
        handed.count += 1;
    }

    /// A channel is closed: what was under way on it may never be written.
    pub(super) fn forget(&self, channel: u16) {
        let mut handed = self.handed.lock();
        let sizes = handed.sizes.remove(&channel).unwrap_or_default();
        handed.bytes -= sizes.iter().sum::<usize>();
        handed.count -= sizes.len();
        drop(handed);
        self.signal_room();
    }

    /// May another be handed over? If not, [`woken`](Transit::woken) is ready when it may.
    pub(super) fn has_room(&self) -> bool {
        if self.is_below(MOST_BYTES, MOST_FRAMES) {
            return true;
        }
        self.is_waited_for.store(true, Ordering::SeqCst);
        // Written meanwhile: no wake-up comes for that.
        self.is_below(MOST_BYTES, MOST_FRAMES)
    }

    fn is_below(&self, bytes: usize, frames: usize) -> bool {
        let handed = self.handed.lock();
        handed.bytes < bytes && handed.count < frames
    }

    /// Becomes ready when there may be room again.
    pub(super) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// A message or an acknowledgement has been written on each of these channels.
    fn wrote(&self, channels: &[u16]) {
        if channels.is_empty() {
            return;
        }
        let mut handed = self.handed.lock();
        for channel in channels {
            let sizes = handed.sizes.get_mut(channel);
            // None if the channel has been closed meanwhile.
            if let Some(size) = sizes.and_then(VecDeque::pop_front) {
                handed.bytes -= size;
                handed.count -= 1;
            }
        }
        drop(handed);
        self.signal_room();
    }

    fn signal_room(&self) {
        if self.is_waited_for.swap(false, Ordering::SeqCst) {
            let _ = self.wake.try_send(());
        }
    }
}

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_HEADER: usize = 7;

/// Enough of a frame to know what it is: its header, and a content header up to its size.
const LOOKED_AT: usize = FRAME_HEADER + 12;

/// Follows the frames that are written, and counts the messages and acknowledgements that
/// are complete.
pub(super) struct Meter {
    /// The beginning of the present frame.
    start: [u8; LOOKED_AT],
    known: usize,
    /// The part of the present frame that is still to come, once its header is known.
    left: usize,
    /// What is still to come of the contents of channels.
    contents: HashMap<u16, u64>,
    /// The protocol header has been passed over.
    began: bool,
    /// On which channels something has been written in one go.
    complete: Vec<u16>,
}

/// The bytes before the first frame.
const PROTOCOL_HEADER: usize = 8;

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            start: [0; LOOKED_AT],
            known: 0,
            left: PROTOCOL_HEADER,
            contents: HashMap::new(),
            began: false,
            complete: Vec::new(),
        }
    }

    /// Bytes have been written.
    pub(super) fn wrote(&mut self, mut bytes: &[u8], transit: &Transit) {
        while !bytes.is_empty() {
            if !self.began {
                let count = self.left.min(bytes.len());
                bytes = &bytes[count..];
                self.left -= count;
                self.began = self.left == 0;
                continue;
            }
            if self.known < FRAME_HEADER {
                let count = (FRAME_HEADER - self.known).min(bytes.len());
                self.start[self.known..self.known + count].copy_from_slice(&bytes[..count]);
                self.known += count;
                bytes = &bytes[count..];
                if self.known == FRAME_HEADER {
                    let [_, _, _, a, b, c, d, ..] = self.start;
                    // And the end mark.
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                }
                continue;
            }
            let count = self.left.min(bytes.len());
            let look = (LOOKED_AT - self.known).min(count);
            self.start[self.known..self.known + look].copy_from_slice(&bytes[..look]);
            self.known += look;
            self.left -= count;
            bytes = &bytes[count..];
            if self.left == 0 {
                self.note_if_complete();
                self.known = 0;
                self.start = [0; LOOKED_AT];
            }
        }
        transit.wrote(&self.complete);
        self.complete.clear();
    }

    /// A frame is out: is with it a message, or an acknowledgement?
    fn note_if_complete(&mut self) {
        let [kind, high, low, a, b, c, d, payload @ ..] = self.start;
        let channel = u16::from_be_bytes([high, low]);
        let size = u64::from(u32::from_be_bytes([a, b, c, d]));
        let is_complete = match kind {
            // basic.ack, reject and nack.
            METHOD => matches!(payload[..4], [0, 60, 0, 80 | 90 | 120]),
            CONTENT_HEADER => {
                let [_, _, _, _, body @ ..] = payload;
                let body = u64::from_be_bytes(body);
                self.contents.insert(channel, body);
                body == 0
            }
            BODY => {
                let left = self.contents.get_mut(&channel);
                left.is_some_and(|left| {
                    *left = left.saturating_sub(size);
                    *left == 0
                })
            }
            _ => false,
        };
        if is_complete {
            self.complete.push(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, channel];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    fn message(channel: u8, body: &[usize]) -> Vec<u8> {
        let mut out = frame(METHOD, channel, &[0, 60, 0, 40, 0, 0, 0, 1, b'q', 0]);
        let size: usize = body.iter().sum();
        let mut header = vec![0, 60, 0, 0];
        header.extend((size as u64).to_be_bytes());
        header.extend([0, 0]);
        out.extend(frame(CONTENT_HEADER, channel, &header));
        for &part in body {
            out.extend(frame(BODY, channel, &vec![1; part]));
        }
        out
    }

    #[test]
    fn room_is_bounded_and_comes_back() {
        let transit = Transit::new();
        let mut handed = 0;
        while transit.has_room() {
            transit.handing(1, 100_000);
            handed += 1;
        }
        assert_eq!(handed, 3);
        assert!(transit.woken().is_empty());
        let mut meter = Meter::new();
        meter.wrote(b"AMQP\0\0\x09\x01", &transit);
        meter.wrote(&message(1, &[60_000, 40_000]), &transit);
        assert!(transit.woken().try_recv().is_ok());
        assert!(transit.has_room());
    }

    #[test]
    fn acknowledgements_count_too() {
        let transit = Transit::new();
        for _ in 0..MOST_FRAMES {
            assert!(transit.has_room());
            transit.handing(1, 0);
        }
        assert!(!transit.has_room());
        let mut meter = Meter::new();
        meter.wrote(b"AMQP\0\0\x09\x01", &transit);
        meter.wrote(&frame(METHOD, 1, &[0, 60, 0, 20, 0]), &transit);
        assert!(!transit.has_room(), "something else");
        meter.wrote(
            &frame(METHOD, 1, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
            &transit,
        );
        assert!(transit.has_room());
    }

    /// What amiquip drops with a channel is never written.
    #[test]
    fn a_closed_channel_takes_nothing_with_it() {
        let transit = Transit::new();
        for channel in [7, 8] {
            transit.handing(channel, MOST_BYTES);
        }
        transit.forget(7);
        assert!(!transit.has_room());
        let mut meter = Meter::new();
        meter.wrote(b"AMQP\0\0\x09\x01", &transit);
        meter.wrote(&message(7, &[10]), &transit); // it was on its way
        assert!(!transit.has_room());
        meter.wrote(&message(8, &[MOST_BYTES]), &transit);
        assert!(transit.has_room());
    }

    proptest! {
        #[test]
        fn counts_right_however_the_bytes_are_cut(
            bodies in prop::collection::vec((1..3u8, prop::collection::vec(1..50usize, 0..4)), 0..20),
            cut in 1..40usize,
        ) {
            let transit = Transit::new();
            for (channel, body) in &bodies {
                transit.handing((*channel).into(), body.iter().sum());
            }
            let mut bytes = b"AMQP\0\0\x09\x01".to_vec();
            for (channel, body) in &bodies {
                bytes.extend(message(*channel, body));
                bytes.extend(frame(8, 0, &[]));
            }
            let mut meter = Meter::new();
            for part in bytes.chunks(cut) {
                meter.wrote(part, &transit);
            }
            let handed = transit.handed.lock();
            prop_assert_eq!((handed.bytes, handed.count), (0, 0));
        }
    }
}
