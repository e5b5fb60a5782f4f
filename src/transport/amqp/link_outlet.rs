//! The way of a link's messages and settlements to the broker, open to every thread.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

use super::frame_writer::{FrameWriter, Priority};
use super::frames::{self, ReplyQueueName};
use super::observed::Observed;
use super::unsettled::Unsettled;
use crate::transport::{Disposition, Publication, is_large};

/// The outlet of a link: while the link's channel is open, any thread publishes and settles through
/// it without another thread's help.
///
/// It belongs to the link and outlives the sessions. Frames are appended under its read lock, so
/// when the lock could be taken for writing, everything that counts as sent has been appended, and
/// no frame follows on a channel that is closed.
#[derive(Default)]
pub(super) struct LinkOutlet {
    open: RwLock<Option<OpenChannel>>,
}

/// The channel of a link in one session.
pub(super) struct OpenChannel {
    pub(super) session: u64,
    pub(super) channel: u16,
    /// The largest frame, in bytes.
    pub(super) frame_max: usize,
    pub(super) reply_queue: Option<ReplyQueueName>,
    /// True if only the I/O thread publishes: it numbers the messages for their confirms.
    pub(super) is_numbered: bool,
    pub(super) writer: Arc<FrameWriter>,
    pub(super) observed: Arc<Observed>,
    pub(super) unsettled: Arc<Unsettled>,
}

/// The end of an attempt to settle a delivery.
pub(super) enum Settled {
    /// Settled, or not to be settled any more.
    Done,
    /// Settled, and there may be room for deliveries that wait.
    MakesRoom,
    /// Left to the I/O thread: the broker is blocked, the writer is full, or the reply is
    /// large.
    NotNow(Disposition),
}

/// The error of a channel that is closed, or whose connection is lost.
#[derive(Debug)]
pub(super) struct ChannelClosed;

impl LinkOutlet {
    /// Opens the outlet, for any thread.
    pub(super) fn open(&self, channel: OpenChannel) {
        *self.open.write() = Some(channel);
    }

    /// Closes the outlet. After it returns nothing more is sent on the channel.
    pub(super) fn close(&self) {
        *self.open.write() = None;
    }

    /// Sets the name of the link's reply queue.
    pub(super) fn set_reply_queue(&self, queue: Option<ReplyQueueName>) {
        if let Some(open) = &mut *self.open.write() {
            open.reply_queue = queue;
        }
    }

    /// Returns the name of the link's reply queue in this session.
    pub(super) fn reply_queue(&self) -> Option<ReplyQueueName> {
        let open = self.open.read();
        open.as_ref()?.reply_queue.clone()
    }

    /// Publishes a message at once, if nothing stands against it: returns false if the channel is
    /// closed, the broker is blocked, the writer is full, or the link has publisher confirms. A
    /// message that its owner has abandoned is dropped.
    pub(super) fn try_publish(&self, publication: &mut Publication) -> bool {
        let open = self.open.read();
        let Some(channel) = open.as_ref() else {
            return false;
        };
        let lacks_queue = publication.body.wants_reply_queue() && channel.reply_queue.is_none();
        let may_publish = !channel.is_numbered && !lacks_queue && channel.writer.is_open_to_all();
        if !may_publish || channel.observed.is_blocked() {
            return false;
        }
        let priority = Some(Priority::Message);
        let appended = channel.writer.append(priority, |out| {
            if publication.start_sending() {
                channel.encode(out, publication, None);
            }
        });
        flush(open);
        appended
    }

    /// Returns true if the channel is open and the connection is not lost, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        let open = self.open.read();
        open.as_ref().is_some_and(|it| !it.writer.has_failed())
    }

    /// Publishes a message, for the I/O thread, which has checked that it may. `reply_queue` is
    /// that of another link, for which this channel publishes.
    pub(super) fn publish(
        &self,
        publication: &Publication,
        reply_queue: Option<&ReplyQueueName>,
    ) -> Result<(), ChannelClosed> {
        self.append(|channel, out| channel.encode(out, publication, reply_queue))
    }

    /// Encodes a message, for the I/O thread, which [appends](Self::try_append) it in pieces.
    pub(super) fn encode(
        &self,
        publication: &Publication,
        reply_queue: Option<&ReplyQueueName>,
    ) -> Result<Vec<u8>, ChannelClosed> {
        let open = self.open.read();
        let channel = open.as_ref().ok_or(ChannelClosed)?;
        let mut frames = Vec::new();
        channel.encode(&mut frames, publication, reply_queue);
        Ok(frames)
    }

    /// Appends whole frames; returns false if there is no room for them now.
    pub(super) fn try_append(&self, frames: &[u8]) -> Result<bool, ChannelClosed> {
        let open = self.open.read();
        let channel = open.as_ref().ok_or(ChannelClosed)?;
        let priority = Some(Priority::Message);
        let writer = &channel.writer;
        let appended = writer.append(priority, |out| out.extend_from_slice(frames));
        let is_alive = appended || !writer.has_failed();
        flush(open);
        match is_alive {
            true => Ok(appended),
            false => Err(ChannelClosed),
        }
    }

    /// Settles a delivery at once, if it is one of this session and nothing stands against it.
    pub(super) fn try_settle(&self, session: u64, tag: u64, outcome: Disposition) -> Settled {
        let open = self.open.read();
        // None if the broker has requeued the delivery, with its channel.
        let Some(channel) = open.as_ref().filter(|it| it.session == session) else {
            return Settled::Done;
        };
        let is_large_reply = match &outcome {
            Disposition::Ack { reply: Some(reply) } => is_large(reply.body.len()),
            _ => false,
        };
        if is_large_reply || channel.observed.is_blocked() {
            return Settled::NotNow(outcome);
        }
        let mut outcome = Some(outcome);
        let priority = Some(Priority::Settlement);
        channel.writer.append(priority, |out| {
            let outcome = outcome.take();
            outcome
                .into_iter()
                .for_each(|it| channel.settle(out, tag, it));
        });
        if let Some(outcome) = outcome {
            return Settled::NotNow(outcome);
        }
        let makes_room = channel.unsettled.has_waiting();
        flush(open);
        match makes_room {
            true => Settled::MakesRoom,
            false => Settled::Done,
        }
    }

    /// Settles a delivery of this session, for the I/O thread, which has checked that it may.
    pub(super) fn settle(&self, tag: u64, outcome: Disposition) -> Result<(), ChannelClosed> {
        self.append(|channel, out| channel.settle(out, tag, outcome))
    }

    /// Requeues a delivery that has been taken out of the unsettled ones, for the I/O thread.
    pub(super) fn requeue(&self, tag: u64) -> Result<(), ChannelClosed> {
        self.append(|channel, out| frames::reject(out, channel.channel, tag, true))
    }

    fn append(&self, encode: impl FnOnce(&OpenChannel, &mut Vec<u8>)) -> Result<(), ChannelClosed> {
        let open = self.open.read();
        let channel = open.as_ref().ok_or(ChannelClosed)?;
        let appended = channel.writer.append(None, |out| encode(channel, out));
        flush(open);
        appended.then_some(()).ok_or(ChannelClosed)
    }
}

/// Writes what was appended, without the lock: a thread that closes the channel waits for it.
fn flush(open: RwLockReadGuard<'_, Option<OpenChannel>>) {
    let writer = open.as_ref().map(|channel| Arc::clone(&channel.writer));
    drop(open);
    if let Some(writer) = writer {
        writer.flush_frames();
    }
}

impl OpenChannel {
    fn encode(
        &self,
        out: &mut Vec<u8>,
        publication: &Publication,
        reply_queue: Option<&ReplyQueueName>,
    ) {
        let reply_queue = reply_queue.or(self.reply_queue.as_ref());
        frames::publish(out, self.channel, self.frame_max, publication, reply_queue);
    }

    /// Settles a delivery once; the reply and the acknowledgement leave in one piece.
    fn settle(&self, out: &mut Vec<u8>, tag: u64, outcome: Disposition) {
        if let Disposition::Hold = outcome {
            return self.unsettled.hold(tag);
        }
        if !self.unsettled.take(tag) {
            return;
        }
        match outcome {
            Disposition::Ack { reply } => {
                if let Some(reply) = reply {
                    self.encode(out, &reply, None);
                }
                frames::ack(out, self.channel, tag);
            }
            Disposition::Reject { requeue } => frames::reject(out, self.channel, tag, requeue),
            Disposition::Hold => {}
        }
    }
}

#[cfg(test)]
#[path = "link_outlet_tests.rs"]
mod tests;
