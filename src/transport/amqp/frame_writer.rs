//! The connection's one way out: whole frames that any thread appends, written without blocking.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use mio::{Events, Poll, PollOpt, Ready, Token};
use parking_lot::Mutex;

use crate::base::deadline;
use crate::base::thread::NamedThread;

/// The bytes above which no more messages are appended. One message may exceed them. What a lost
/// connection has not written is lost with it, so the bound is small: a few milliseconds' worth.
const MOST_FOR_MESSAGES: usize = 256 << 10;

/// The bytes above which no more settlements and replies are appended: they may pass where
/// messages have to wait, as the broker delivers more only after them.
const MOST_FOR_SETTLEMENTS: usize = 1 << 20;

/// The writes that one call makes before it leaves the rest to the writer's own thread. A caller
/// writes what others append meanwhile, but must not do so for ever: its deadline may pass.
const MOST_WRITES: usize = 16;

/// The capacity in bytes up to which an emptied buffer is kept.
const KEPT_CAPACITY: usize = 1 << 20;

/// The longest time for which the thread waits for room in the socket's buffer before it looks
/// whether it is still needed.
const LONGEST_POLL: Duration = Duration::from_secs(1);

/// The time for which closing waits for the thread.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A writer of whole frames to the socket of one connection.
///
/// Any thread may append, and nothing here blocks: the thread that finds no other one writing
/// writes, together with its own frames, what others append meanwhile. When the socket's buffer is
/// full, the writer's own thread waits until there is room and goes on. Frames leave in the order
/// in which they were appended, and the frames of one message in one piece.
pub(super) struct FrameWriter {
    queue: Mutex<Queue>,
    /// The bytes being written, by the one thread that `Queue::turn` names.
    present: Mutex<Present>,
    /// The number of bytes that are appended and not written.
    unwritten: AtomicUsize,
    socket: TcpStream,
    /// True once the messages that a new session sends first have been appended.
    is_open_to_all: AtomicBool,
    /// True if the I/O thread waits for room.
    is_waited_for: AtomicBool,
    wake: Sender<()>,
    woken: Receiver<()>,
    /// Passes the writing on to the writer's own thread.
    hand_over: Sender<()>,
    is_closed: AtomicBool,
}

#[derive(Default)]
struct Queue {
    frames: Vec<u8>,
    turn: Turn,
    /// True after a failed write: what is appended is dropped.
    has_failed: bool,
}

/// Frames that are being appended. A part of a message is taken back if its encoder panics: the
/// next message would be read as its rest.
struct WholeFrames<'a> {
    frames: &'a mut Vec<u8>,
    before: usize,
}

impl Drop for WholeFrames<'_> {
    fn drop(&mut self) {
        self.frames.truncate(self.before);
    }
}

/// The thread whose turn it is to write.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    /// None: the next to append writes.
    #[default]
    Free,
    /// One that has appended.
    Appender,
    /// The writer's own.
    Thread,
}

#[derive(Default)]
struct Present {
    bytes: Vec<u8>,
    written: usize,
}

/// The kind of an appended message, which decides how many bytes may wait before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Message,
    Settlement,
}

/// The end of a series of writes.
#[derive(PartialEq, Eq)]
enum Written {
    All,
    /// The socket's buffer is full, or there were too many writes for one turn.
    Some,
}

impl FrameWriter {
    /// Creates the writer of a socket and starts its thread. The number is the connection's.
    pub(super) fn start(number: u64, socket: TcpStream) -> io::Result<RunningWriter> {
        let (hand_over, stalled) = bounded(1);
        let (wake, woken) = bounded(1);
        let polled = mio::net::TcpStream::from_stream(socket.try_clone()?)?;
        let poll = Poll::new()?;
        // Level-triggered, and only polled when there is something to write.
        poll.register(&polled, Token(0), Ready::writable(), PollOpt::level())?;
        let writer = Arc::new(Self {
            queue: Mutex::default(),
            present: Mutex::default(),
            unwritten: AtomicUsize::new(0),
            socket,
            is_open_to_all: AtomicBool::new(false),
            is_waited_for: AtomicBool::new(false),
            wake,
            woken,
            hand_over,
            is_closed: AtomicBool::new(false),
        });
        let run = {
            let writer = Arc::clone(&writer);
            move || {
                let _polled = polled;
                writer.run(&poll, &stalled);
            }
        };
        let thread = NamedThread::spawn(format!("coney-write-{number}"), run)?;
        Ok(RunningWriter {
            writer,
            thread: Some(thread),
        })
    }

    /// Returns true if there is room for another message or settlement.
    pub(super) fn has_room(&self, priority: Priority) -> bool {
        let most = match priority {
            Priority::Message => MOST_FOR_MESSAGES,
            Priority::Settlement => MOST_FOR_SETTLEMENTS,
        };
        self.unwritten.load(Ordering::SeqCst) < most
    }

    /// Returns true after a failed write.
    pub(super) fn has_failed(&self) -> bool {
        self.queue.lock().has_failed
    }

    /// Returns true if any thread may append messages.
    pub(super) fn is_open_to_all(&self) -> bool {
        self.is_open_to_all.load(Ordering::SeqCst)
    }

    /// Allows every thread to append messages.
    pub(super) fn open_to_all(&self) {
        self.is_open_to_all.store(true, Ordering::SeqCst);
    }

    /// Returns true as [`has_room`](Self::has_room) for a message; if not,
    /// [`woken`](Self::woken) becomes ready when there is.
    pub(super) fn has_room_or_wakes(&self) -> bool {
        if self.has_room(Priority::Message) {
            return true;
        }
        self.is_waited_for.store(true, Ordering::SeqCst);
        // Checked again: what was written in between has sent no wake-up.
        self.has_room(Priority::Message)
    }

    /// Returns a receiver that becomes ready when there may be room again.
    pub(super) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Appends the whole frames that `encode` writes. They leave with the next
    /// [`flush_frames`](Self::flush_frames), which the caller owes. Returns false, without a call of
    /// `encode`, if the connection is lost, or there is no room for a message of this priority.
    pub(super) fn append(
        &self,
        priority: Option<Priority>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let mut queue = self.queue.lock();
        let has_room = priority.is_none_or(|priority| self.has_room(priority));
        if queue.has_failed || !has_room {
            return false;
        }
        let mut whole = WholeFrames {
            before: queue.frames.len(),
            frames: &mut queue.frames,
        };
        encode(whole.frames);
        let added = whole.frames.len() - std::mem::replace(&mut whole.before, whole.frames.len());
        self.unwritten.fetch_add(added, Ordering::SeqCst);
        true
    }

    /// Writes what was appended, unless another thread does.
    pub(super) fn flush_frames(&self) {
        let mut queue = self.queue.lock();
        if queue.turn != Turn::Free || queue.frames.is_empty() {
            return;
        }
        queue.turn = Turn::Appender;
        drop(queue);
        if self.write_some() == Written::Some {
            self.queue.lock().turn = Turn::Thread;
            let _ = self.hand_over.try_send(());
        }
    }

    /// Ends the writing: what was appended and not written is dropped, and the socket is shut
    /// down, as any clone of it would keep the connection open.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.fail();
        let _ = self.hand_over.try_send(());
    }

    fn fail(&self) {
        let mut queue = self.queue.lock();
        queue.has_failed = true;
        queue.frames = Vec::new();
        self.unwritten.store(0, Ordering::SeqCst);
        drop(queue);
        let _ = self.socket.shutdown(Shutdown::Both);
        self.signal_room();
    }

    /// Writes up to [`MOST_WRITES`] times. Called by the thread whose turn it is; the turn ends
    /// when everything is written.
    fn write_some(&self) -> Written {
        let mut present = self.present.lock();
        for _ in 0..MOST_WRITES {
            if present.is_written() && !self.take_next(&mut present) {
                return Written::All;
            }
            match (&self.socket).write(present.rest()) {
                Ok(count) if count > 0 => {
                    present.written += count;
                    self.wrote(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Written::Some,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    *present = Present::default();
                    self.fail(); // amiquip finds its socket shut down
                }
            }
        }
        Written::Some
    }

    /// Takes the frames that are written next. Returns false if there are none, and the turn
    /// has ended.
    fn take_next(&self, present: &mut Present) -> bool {
        present.written = 0;
        present.bytes.clear();
        if present.bytes.capacity() > KEPT_CAPACITY {
            present.bytes = Vec::new();
        }
        let mut queue = self.queue.lock();
        if queue.frames.is_empty() {
            queue.turn = Turn::Free;
            return false;
        }
        std::mem::swap(&mut queue.frames, &mut present.bytes);
        true
    }

    fn wrote(&self, count: usize) {
        // After a failed write the number is 0 already.
        let subtract = |unwritten: usize| Some(unwritten.saturating_sub(count));
        let _ = self
            .unwritten
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, subtract);
        self.signal_room();
    }

    fn signal_room(&self) {
        if self.is_waited_for.load(Ordering::SeqCst)
            && self.has_room(Priority::Message)
            && self.is_waited_for.swap(false, Ordering::SeqCst)
        {
            let _ = self.wake.try_send(());
        }
    }

    /// Runs the thread, which goes on writing where another one could not.
    fn run(&self, poll: &Poll, stalled: &Receiver<()>) {
        let mut events = Events::with_capacity(1);
        while stalled.recv().is_ok() && !self.is_closed.load(Ordering::SeqCst) {
            while self.queue.lock().turn == Turn::Thread && !self.is_closed.load(Ordering::SeqCst) {
                if poll.poll(&mut events, Some(LONGEST_POLL)).is_err() {
                    return self.fail();
                }
                if self.write_some() == Written::All {
                    break;
                }
            }
        }
    }
}

impl Present {
    fn is_written(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }
}

/// A writer and its thread; both end when it is dropped.
pub(super) struct RunningWriter {
    writer: Arc<FrameWriter>,
    thread: Option<NamedThread>,
}

impl RunningWriter {
    pub(super) fn writer(&self) -> &Arc<FrameWriter> {
        &self.writer
    }
}

impl Drop for RunningWriter {
    fn drop(&mut self) {
        self.writer.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join_deadline(deadline::after(JOIN_TIMEOUT));
        }
    }
}

/// Writes amiquip's own frames: it writes whole ones, and few of them.
impl Write for &FrameWriter {
    fn write(&mut self, frames: &[u8]) -> io::Result<usize> {
        if !self.append(None, |out| out.extend_from_slice(frames)) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.flush_frames();
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "frame_writer_tests.rs"]
mod tests;
#[cfg(test)]
pub(super) use self::tests::connected;
