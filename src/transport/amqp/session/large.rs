//! Messages with large bodies that wait to be sent, and the one under way.
//!
//! They go one at a time, confirmed, over a channel of their own: a broker that finds a
//! message too large closes the channel it came on, and with this one nothing else is lost.

use std::collections::VecDeque;
use std::sync::Arc;

use amiquip::{Channel, Confirm, Return};
use crossbeam_channel::{Receiver, Sender};

use crate::transport::amqp::command::{LinkId, Outgoing};
use crate::transport::{ConfirmOutcome, ConfirmSender, Publication, Returned};

/// The channel for large messages, once there was one.
#[derive(Default)]
pub(super) struct Large<'c> {
    pub(super) channel: Option<LargeChannel<'c>>,
    pub(super) under_way: Option<UnderWay>,
    pub(super) waiting: VecDeque<LargeMessage>,
    /// Links whose owners wait until the broker has all that they have sent.
    pub(super) flushes: Vec<(LinkId, Sender<()>)>,
}

pub(super) struct LargeChannel<'c> {
    pub(super) channel: &'c Channel,
    pub(super) confirms: Receiver<Confirm>,
    pub(super) returns: Receiver<Return>,
}

/// A large message that is to be sent.
pub(super) struct LargeMessage {
    pub(super) link: LinkId,
    pub(super) publication: Publication,
    pub(super) confirm: Option<ConfirmSender>,
    /// Of its link, which may be closed before its turn.
    pub(super) reply_queue: Option<String>,
    /// The delivery it answers, which is acknowledged when the broker has it.
    pub(super) answers: Option<u64>,
}

/// The message that the broker has not confirmed yet.
pub(super) struct UnderWay {
    pub(super) link: LinkId,
    pub(super) confirm: Option<ConfirmSender>,
    pub(super) answers: Option<u64>,
    pub(super) correlation_id: Option<String>,
    pub(super) if_too_large: Option<Box<Publication>>,
    /// To be sent again after a loss.
    pub(super) resend: Option<Publication>,
    pub(super) bytes: usize,
    pub(super) returned: Option<Returned>,
}

impl<'c> Large<'c> {
    pub(super) fn confirms(&self) -> Option<&Receiver<Confirm>> {
        self.channel.as_ref().map(|it| &it.confirms)
    }

    pub(super) fn returns(&self) -> Option<&Receiver<Return>> {
        self.channel.as_ref().map(|it| &it.returns)
    }

    pub(super) fn add(&mut self, message: LargeMessage) {
        self.waiting.push_back(message);
    }

    /// A message of that link, or an answer, is not with the broker yet.
    pub(super) fn concerns(&self, link: LinkId) -> bool {
        let under_way = self.under_way.as_ref().map(|it| it.link);
        let waiting = self.waiting.iter().map(|it| it.link);
        waiting.chain(under_way).any(|other| other == link)
    }

    /// A message can be sent now, if anything can.
    pub(super) fn is_ready(&self) -> bool {
        self.under_way.is_none() && !self.waiting.is_empty()
    }

    /// The connection is lost: what is to be sent again, and what was never sent.
    pub(super) fn lost(&mut self, cause: &Arc<str>) -> Vec<Outgoing> {
        let mut resend = Vec::new();
        if let Some(under_way) = self.under_way.take() {
            match (under_way.resend, under_way.confirm) {
                (Some(publication), confirm) => {
                    if let Some(send_state) = &publication.send_state {
                        send_state.queue_again();
                    }
                    // Without a receipt its call knows, and has kept it.
                    if confirm.is_some() {
                        resend.push(Outgoing::new(under_way.link, publication, confirm));
                    }
                }
                (None, Some(confirm)) => confirm.settle(ConfirmOutcome::Lost(Arc::clone(cause))),
                (None, None) => {}
            }
        }
        // Answers are void with the deliveries that they answer.
        let waiting = self.waiting.drain(..).filter(|it| it.answers.is_none());
        resend.extend(waiting.map(|it| Outgoing::new(it.link, it.publication, it.confirm)));
        resend
    }
}

impl UnderWay {
    pub(super) fn of(message: &mut LargeMessage) -> Self {
        let publication = &mut message.publication;
        Self {
            link: message.link,
            confirm: message.confirm.take(),
            answers: message.answers,
            correlation_id: publication.properties.correlation_id.clone(),
            if_too_large: publication.if_too_large.take(),
            resend: publication.idempotent.then(|| publication.clone()),
            bytes: publication.body.len(),
            returned: None,
        }
    }
}
