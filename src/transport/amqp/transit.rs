//! The bytes that amiquip has accepted and not written to the socket yet.
//!
//! amiquip puts frames into queues of a bounded length, and blocks the thread that finds one
//! full. While the broker reads nothing, that would be the I/O thread, which then would not
//! receive the broker's `connection.blocked`. So the I/O thread hands over no more than a
//! budget, and the stream, through which every frame leaves, counts what has been written.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// The bytes that may be in transit. One message may exceed them, so that large ones make
/// progress.
const MOST_BYTES: usize = 256 << 10;

/// The number of messages and acknowledgements that may be in transit.
const MOST_ITEMS: usize = 128;

/// The bytes counted for the frames of a message other than those of its body.
const OVERHEAD: usize = 512;

/// The messages and acknowledgements in transit, counted by the I/O thread and the stream.
pub(super) struct Transit {
    items: Mutex<Items>,
    /// True if the I/O thread waits for room.
    is_waited_for: AtomicBool,
    wake: Sender<()>,
    woken: Receiver<()>,
}

#[derive(Default)]
struct Items {
    /// The sizes of the items on each channel, in their order.
    sizes: HashMap<u16, VecDeque<usize>>,
    bytes: usize,
    count: usize,
}

impl Transit {
    pub(super) fn new() -> Self {
        let (wake, woken) = bounded(1);
        Self {
            items: Mutex::default(),
            is_waited_for: AtomicBool::new(false),
            wake,
            woken,
        }
    }

    /// Counts a message with a body of `bytes`, or an acknowledgement, which has none.
    pub(super) fn add(&self, channel: u16, bytes: usize) {
        let mut items = self.items.lock();
        let size = bytes + OVERHEAD;
        items.sizes.entry(channel).or_default().push_back(size);
        items.bytes += size;
        items.count += 1;
    }

    /// Removes the items of a closed channel, as they may never be written.
    pub(super) fn forget(&self, channel: u16) {
        let mut items = self.items.lock();
        let sizes = items.sizes.remove(&channel).unwrap_or_default();
        items.bytes -= sizes.iter().sum::<usize>();
        items.count -= sizes.len();
        drop(items);
        self.signal_room();
    }

    /// Returns true if another item may be handed over. If not, [`woken`](Transit::woken)
    /// becomes ready when one may.
    pub(super) fn has_room(&self) -> bool {
        if self.is_below(MOST_BYTES, MOST_ITEMS) {
            return true;
        }
        self.is_waited_for.store(true, Ordering::SeqCst);
        // Checked again: what was written in between has sent no wake-up.
        self.is_below(MOST_BYTES, MOST_ITEMS)
    }

    fn is_below(&self, bytes: usize, count: usize) -> bool {
        let items = self.items.lock();
        items.bytes < bytes && items.count < count
    }

    /// Returns a receiver that becomes ready when there may be room again.
    pub(super) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Removes one written message or acknowledgement from each of `channels`.
    fn remove(&self, channels: &[u16]) {
        if channels.is_empty() {
            return;
        }
        let mut items = self.items.lock();
        for channel in channels {
            let sizes = items.sizes.get_mut(channel);
            // None if the channel has been closed meanwhile.
            if let Some(size) = sizes.and_then(VecDeque::pop_front) {
                items.bytes -= size;
                items.count -= 1;
            }
        }
        drop(items);
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

/// The bytes of a frame that identify it: its header, and a content header up to the body
/// size.
const PREFIX: usize = FRAME_HEADER + 12;

/// A parser of the written bytes that counts the messages and acknowledgements that are
/// complete.
pub(super) struct Meter {
    /// The first bytes of the present frame.
    start: [u8; PREFIX],
    known: usize,
    /// The bytes of the present frame that are still to come, once its header is known.
    left: usize,
    /// The bytes of each channel's present body that are still to come.
    contents: HashMap<u16, u64>,
    /// True if the protocol header has been written.
    began: bool,
    /// The channels of the items that one call has completed.
    complete: Vec<u16>,
}

/// The number of bytes before the first frame.
const PROTOCOL_HEADER: usize = 8;

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            start: [0; PREFIX],
            known: 0,
            left: PROTOCOL_HEADER,
            contents: HashMap::new(),
            began: false,
            complete: Vec::new(),
        }
    }

    /// Parses `bytes`, which have been written, and removes the messages and acknowledgements
    /// that they complete from `transit`.
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
                    // Plus the frame-end octet.
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                }
                continue;
            }
            let count = self.left.min(bytes.len());
            let look = (PREFIX - self.known).min(count);
            self.start[self.known..self.known + look].copy_from_slice(&bytes[..look]);
            self.known += look;
            self.left -= count;
            bytes = &bytes[count..];
            if self.left == 0 {
                self.note_if_complete();
                self.known = 0;
                self.start = [0; PREFIX];
            }
        }
        transit.remove(&self.complete);
        self.complete.clear();
    }

    /// Notes the channel if the frame just written completes a message or an acknowledgement.
    fn note_if_complete(&mut self) {
        let [kind, high, low, a, b, c, d, payload @ ..] = self.start;
        let channel = u16::from_be_bytes([high, low]);
        let size = u64::from(u32::from_be_bytes([a, b, c, d]));
        let is_complete = match kind {
            // basic.ack, basic.reject and basic.nack.
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
    fn room_is_limited_and_freed_by_writing() {
        let transit = Transit::new();
        let mut handed = 0;
        while transit.has_room() {
            transit.add(1, 100_000);
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
    fn acknowledgements_take_room() {
        let transit = Transit::new();
        for _ in 0..MOST_ITEMS {
            assert!(transit.has_room());
            transit.add(1, 0);
        }
        assert!(!transit.has_room());
        let mut meter = Meter::new();
        meter.wrote(b"AMQP\0\0\x09\x01", &transit);
        meter.wrote(&frame(METHOD, 1, &[0, 60, 0, 20, 0]), &transit);
        assert!(!transit.has_room(), "a method that is no acknowledgement");
        meter.wrote(
            &frame(METHOD, 1, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
            &transit,
        );
        assert!(transit.has_room());
    }

    /// Frames that amiquip drops with a closed channel are never written.
    #[test]
    fn closing_a_channel_frees_its_room() {
        let transit = Transit::new();
        for channel in [7, 8] {
            transit.add(channel, MOST_BYTES);
        }
        transit.forget(7);
        assert!(!transit.has_room());
        let mut meter = Meter::new();
        meter.wrote(b"AMQP\0\0\x09\x01", &transit);
        meter.wrote(&message(7, &[10]), &transit); // already in the socket's buffer
        assert!(!transit.has_room());
        meter.wrote(&message(8, &[MOST_BYTES]), &transit);
        assert!(transit.has_room());
    }

    proptest! {
        #[test]
        fn counts_are_right_however_the_bytes_are_split(
            bodies in prop::collection::vec(
                (1..3u8, prop::collection::vec(1..50usize, 0..4)),
                0..20,
            ),
            cut in 1..40usize,
        ) {
            let transit = Transit::new();
            for (channel, body) in &bodies {
                transit.add((*channel).into(), body.iter().sum());
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
            let items = transit.items.lock();
            prop_assert_eq!((items.bytes, items.count), (0, 0));
        }
    }
}
