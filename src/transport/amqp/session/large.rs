//! The messages with large bodies: those that wait to be sent, and the one in flight.
//!
//! They are published one at a time, with publisher confirms, over a channel of their own: a
//! broker that finds a message too large closes its channel, and with this one nothing else is
//! lost.

use std::collections::VecDeque;
use std::sync::Arc;

use amiquip::{Channel, Confirm, Return};
use crossbeam_channel::{Receiver, Sender};

use crate::transport::amqp::command::{LinkId, Outgoing};
use crate::transport::amqp::frames::ReplyQueueName;
use crate::transport::amqp::routes::Registration;
use crate::transport::{ConfirmOutcome, ConfirmSender, Publication, Returned};

/// The large messages of a session, and the channel for them, once one was sent.
#[derive(Default)]
pub(super) struct LargeMessages<'c> {
    pub(super) channel: Option<LargeChannel<'c>>,
    pub(super) in_flight: Option<InFlight>,
    /// The frames of the message in flight that are not appended yet.
    pub(super) unsent: Option<UnsentFrames>,
    pub(super) waiting: VecDeque<LargeMessage>,
    /// The flushes of links that wait until the broker has all that was sent before.
    pub(super) flushes: Vec<(LinkId, Sender<()>)>,
}

pub(super) struct LargeChannel<'c> {
    pub(super) channel: &'c Channel,
    pub(super) registration: Registration,
    pub(super) confirms: Receiver<Confirm>,
    pub(super) returns: Receiver<Return>,
}

/// A large message that waits to be sent.
pub(super) struct LargeMessage {
    pub(super) link: LinkId,
    pub(super) publication: Publication,
    pub(super) confirm: Option<ConfirmSender>,
    /// The reply queue of the link, which may be closed before the message is sent.
    pub(super) reply_queue: Option<ReplyQueueName>,
    /// The tag of the delivery to which this message is the reply; it is acknowledged when the
    /// reply is confirmed.
    pub(super) replies_to: Option<u64>,
}

/// The large message that the broker has not confirmed yet.
pub(super) struct InFlight {
    pub(super) link: LinkId,
    pub(super) confirm: Option<ConfirmSender>,
    pub(super) replies_to: Option<u64>,
    pub(super) correlation_id: Option<String>,
    pub(super) if_too_large: Option<Box<Publication>>,
    /// The message itself, if it may be sent again after a loss.
    pub(super) resend: Option<Publication>,
    pub(super) bytes: usize,
    pub(super) returned: Option<Returned>,
}

impl<'c> LargeMessages<'c> {
    pub(super) fn confirms(&self) -> Option<&Receiver<Confirm>> {
        self.channel.as_ref().map(|it| &it.confirms)
    }

    pub(super) fn returns(&self) -> Option<&Receiver<Return>> {
        self.channel.as_ref().map(|it| &it.returns)
    }

    pub(super) fn add(&mut self, message: LargeMessage) {
        self.waiting.push_back(message);
    }

    /// Drops the messages that wait and have expired. Replies stay: the settlements of their requests
    /// wait for them.
    pub(super) fn drop_expired(&mut self) {
        self.waiting
            .retain(|it| it.replies_to.is_some() || !it.publication.is_expired());
    }

    /// Returns true if the broker does not have all large messages and replies of the link yet.
    pub(super) fn has_unconfirmed(&self, link: LinkId) -> bool {
        let in_flight = self.in_flight.as_ref().map(|it| it.link);
        let waiting = self.waiting.iter().map(|it| it.link);
        waiting.chain(in_flight).any(|other| other == link)
    }

    /// Returns true if a large message waits and none is in flight.
    pub(super) fn is_ready(&self) -> bool {
        self.in_flight.is_none() && !self.waiting.is_empty()
    }

    /// Takes the messages that are to be resent after a loss, and those that were never sent.
    pub(super) fn lost(&mut self, cause: &Arc<str>) -> Vec<Outgoing> {
        self.unsent = None;
        let mut resend = Vec::new();
        if let Some(in_flight) = self.in_flight.take() {
            match (in_flight.resend, in_flight.confirm) {
                (Some(publication), confirm) => {
                    if let Some(send_state) = &publication.send_state {
                        send_state.queue_again();
                    }
                    // Without a confirm it belongs to a call, which has kept a copy of its own.
                    if confirm.is_some() {
                        resend.push(Outgoing::new(in_flight.link, publication, confirm));
                    }
                }
                (None, Some(confirm)) => confirm.settle(ConfirmOutcome::Lost(Arc::clone(cause))),
                (None, None) => {}
            }
        }
        // Replies are dropped, as the broker redelivers their requests.
        let waiting = self.waiting.drain(..).filter(|it| it.replies_to.is_none());
        resend.extend(waiting.map(|it| Outgoing::new(it.link, it.publication, it.confirm)));
        resend
    }
}

/// The size in bytes up to which frames are appended in one piece. The frames of other channels leave
/// in between.
const PIECE: usize = 128 << 10;

/// The bytes of a frame beside its payload, and the position of the payload's size.
const OVERHEAD: usize = 8;
const SIZE_AT: usize = 3;

/// The encoded frames of a message, which leave in pieces.
pub(super) struct UnsentFrames {
    frames: Vec<u8>,
    sent: usize,
}

impl UnsentFrames {
    pub(super) fn new(frames: Vec<u8>) -> Self {
        Self { frames, sent: 0 }
    }

    /// Returns the next piece: whole frames, at least one. It is empty after the last one.
    pub(super) fn next_piece(&self) -> &[u8] {
        let rest = &self.frames[self.sent..];
        let mut end = 0;
        while let Some(size) = rest[end..].get(SIZE_AT..).and_then(<[u8]>::first_chunk) {
            let next = end + OVERHEAD + u32::from_be_bytes(*size) as usize;
            if end > 0 && next > PIECE {
                break;
            }
            end = next;
        }
        &rest[..end]
    }

    /// Records that a piece of this size has been appended; returns true if more are left.
    pub(super) fn appended(&mut self, size: usize) -> bool {
        self.sent += size;
        self.sent < self.frames.len()
    }
}

impl InFlight {
    pub(super) fn of(message: &mut LargeMessage) -> Self {
        let publication = &mut message.publication;
        Self {
            link: message.link,
            confirm: message.confirm.take(),
            replies_to: message.replies_to,
            correlation_id: publication.properties.correlation_id.clone(),
            if_too_large: publication.if_too_large.take(),
            resend: publication.idempotent.then(|| publication.clone()),
            bytes: publication.body.len(),
            returned: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::amqp::frames;

    #[test]
    fn pieces_are_whole_frames_and_together_the_message() {
        for frame_max in [4_096, 131_072, 0] {
            let publication = Publication::new("", "q", vec![7; 1 << 20]);
            let mut whole = Vec::new();
            frames::publish(&mut whole, 1, frame_max, &publication, None);
            let mut unsent = UnsentFrames::new(whole.clone());
            let mut sent: Vec<u8> = Vec::new();
            loop {
                let piece = unsent.next_piece().to_vec();
                assert_eq!(piece.last(), Some(&0xce), "it ends with a frame");
                assert!(piece.len() <= PIECE || frame_max != 4_096);
                sent.extend(&piece);
                if !unsent.appended(piece.len()) {
                    break;
                }
            }
            assert!(unsent.next_piece().is_empty());
            assert_eq!(sent, whole);
        }
    }
}
