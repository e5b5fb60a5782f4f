//! Messages with large bodies: one at a time, confirmed, over a channel of their own.
//!
//! A broker that finds a message too large closes the channel it came on. On this one
//! nothing else is lost with it: the closing is the answer to the one message under way.

use std::collections::VecDeque;
use std::sync::Arc;

use amiquip::{Channel, Confirm, Return};
use crossbeam_channel::{Receiver, Select, Sender, TryRecvError};

use super::command::{LinkId, Outgoing};
use super::convert::{self, Failure};
use super::links::Opened;
use super::publish::{Refusal, publish};
use super::session::{End, Session, lost};
use crate::transport::{Fate, Outcome, Parcel, Publication, Receipt, Refused, Returned};

/// The channel for large messages, once there was one.
#[derive(Default)]
pub(super) struct Large<'c> {
    channel: Option<LargeChannel<'c>>,
    under_way: Option<UnderWay>,
    waiting: VecDeque<LargeMessage>,
    /// Links whose owners wait until the broker has all that they have sent.
    pub(super) flushes: Vec<(LinkId, Sender<()>)>,
}

struct LargeChannel<'c> {
    channel: &'c Channel,
    confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
}

/// A large message that is to be sent.
pub(super) struct LargeMessage {
    pub(super) link: LinkId,
    pub(super) publication: Publication,
    pub(super) receipt: Option<Receipt>,
    /// Of its link, which may be closed before its turn.
    pub(super) reply_queue: Option<String>,
    /// The delivery it answers, which is acknowledged when the broker has it.
    pub(super) answers: Option<u64>,
}

/// The message that the broker has not confirmed yet.
struct UnderWay {
    link: LinkId,
    receipt: Option<Receipt>,
    answers: Option<u64>,
    correlation_id: Option<String>,
    if_too_large: Option<Parcel>,
    /// To be sent again after a loss.
    again: Option<Publication>,
    bytes: usize,
    returned: Option<Returned>,
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
    fn concerns(&self, link: LinkId) -> bool {
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
        let mut again = Vec::new();
        if let Some(under_way) = self.under_way.take() {
            match (under_way.again, under_way.receipt) {
                (Some(publication), receipt) => {
                    if let Some(ticket) = &publication.ticket {
                        ticket.send_again();
                    }
                    // Without a receipt its call knows, and has kept it.
                    if receipt.is_some() {
                        again.push(Outgoing::new(under_way.link, publication, receipt));
                    }
                }
                (None, Some(receipt)) => receipt.settle(Fate::Lost(Arc::clone(cause))),
                (None, None) => {}
            }
        }
        // Answers are void with the deliveries that they answer.
        let waiting = self.waiting.drain(..).filter(|it| it.answers.is_none());
        again.extend(waiting.map(|it| Outgoing::new(it.link, it.publication, it.receipt)));
        again
    }
}

impl<'c> Session<'c> {
    /// Sends the next large message, if none is under way.
    pub(super) fn send_large(&mut self) -> Result<(), End> {
        while self.large.is_ready() && self.may_publish() {
            let Some(mut next) = self.large.waiting.pop_front() else {
                return Ok(());
            };
            if next.answers.is_some() && !self.lanes.contains_key(&next.link) {
                continue; // the request has gone back to its queue
            }
            if !next.publication.start_sending() {
                continue;
            }
            if self.large.channel.is_none() {
                match self.open_large()? {
                    Opened::Yes(channel) => self.large.channel = Some(channel),
                    Opened::Refused(reason) => {
                        let under_way = UnderWay::of(&mut next);
                        self.refused_large(under_way, Refusal::Other(reason))?;
                        continue;
                    }
                }
            }
            let Some(LargeChannel { channel, .. }) = &self.large.channel else {
                return Ok(());
            };
            let _armed = self.arm();
            self.large.under_way = Some(UnderWay::of(&mut next));
            publish(
                channel,
                next.publication,
                next.reply_queue,
                &self.io.transit,
            )
            .map_err(lost)?;
        }
        Ok(())
    }

    /// Sends the large messages that wait, one after the other: each for at most the operation
    /// timeout.
    pub(super) fn finish_large(&mut self) -> Result<(), End> {
        loop {
            self.send_large()?;
            if self.large.under_way.is_none() {
                return Ok(());
            }
            let Some(confirms) = self.large.confirms().cloned() else {
                return Ok(());
            };
            let mut ready = Select::new();
            ready.recv(&confirms);
            if ready.ready_timeout(self.io.operation_timeout).is_err() {
                return Ok(());
            }
            self.large_confirms()?;
        }
    }

    /// Answers those who wait until the broker has all, where it has.
    pub(super) fn flush_links(&mut self) -> Result<(), End> {
        let flushes = std::mem::take(&mut self.large.flushes);
        for (link, done) in flushes {
            if self.large.concerns(link) {
                self.large.flushes.push((link, done));
                continue;
            }
            let _armed = self.arm();
            if let Some(lane) = self.lanes.get_mut(&link) {
                lane.flush().map_err(lost)?;
            }
            let _ = done.try_send(());
        }
        Ok(())
    }

    fn open_large(&mut self) -> Result<Opened<LargeChannel<'c>>, End> {
        let _armed = self.arm();
        let spare = self.open_channel(true);
        let number = spare.as_ref().ok().map(|it| it.channel.channel_id());
        let opened = spare.and_then(|spare| {
            let returns = spare.channel.listen_for_returns()?;
            let confirms = spare.confirm()?.confirms;
            Ok(LargeChannel {
                channel: spare.channel,
                confirms,
                returns,
            })
        });
        match opened {
            Ok(channel) => Ok(Opened::Yes(channel)),
            Err(Failure::Refused(error)) => {
                number.into_iter().for_each(|it| self.channel_gone(it));
                Ok(Opened::Refused(error.to_string()))
            }
            Err(Failure::Lost(cause)) => Err(End::Lost(cause)),
        }
    }

    /// Looks at what the broker says of the message under way.
    pub(super) fn large_confirms(&mut self) -> Result<(), End> {
        // What was returned was returned before; that there will be no more shows below too.
        let _ = self.large_returned();
        let Some(large) = &self.large.channel else {
            return Ok(());
        };
        match large.confirms.try_recv() {
            Ok(confirm) => {
                let taken = matches!(confirm, Confirm::Ack(_));
                if let Some(under_way) = self.large.under_way.take() {
                    self.confirmed_large(under_way, taken)?;
                }
                self.send_large()?;
                self.flush_links()
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => self.large_closed(),
        }
    }

    pub(super) fn large_returns(&mut self) -> Result<(), End> {
        match self.large_returned() {
            Ok(()) => Ok(()),
            // What was confirmed before counts.
            Err(_) => self.large_confirms(),
        }
    }

    /// Notes what was returned, if anything; an error if the channel is closed.
    fn large_returned(&mut self) -> Result<(), TryRecvError> {
        let Some(large) = &self.large.channel else {
            return Ok(());
        };
        match large.returns.try_recv() {
            Ok(returned) => {
                if let Some(under_way) = &mut self.large.under_way {
                    under_way.returned = Some(convert::returned(returned));
                }
                Ok(())
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(closed) => Err(closed),
        }
    }

    fn confirmed_large(&mut self, under_way: UnderWay, taken: bool) -> Result<(), End> {
        let UnderWay {
            link,
            receipt,
            answers,
            returned,
            ..
        } = under_way;
        if let Some(tag) = answers {
            return self.settle(link, tag, Outcome::Ack { reply: None });
        }
        match (receipt, returned) {
            (Some(receipt), returned) => receipt.settle(match returned {
                Some(returned) => Fate::Returned(returned.reason),
                None if taken => Fate::Confirmed,
                None => Fate::Refused("a queue is full, or has failed".to_owned()),
            }),
            (None, Some(returned)) => self.io.registry.returned(link, returned),
            (None, None) => {}
        }
        Ok(())
    }

    /// The broker has closed the channel: because of the message under way. Or the whole
    /// connection has ended.
    fn large_closed(&mut self) -> Result<(), End> {
        let closed = self.large.channel.take().map(|it| it.channel.channel_id());
        let reason = closed.and_then(|channel| {
            let reason = self.io.evidence.channel_close(channel)?;
            self.channel_gone(channel);
            Some(reason)
        });
        let Some(reason) = reason else {
            return Err(End::Lost(super::session::CONNECTION_ENDED.to_owned()));
        };
        if let Some(under_way) = self.large.under_way.take() {
            self.refused_large(under_way, Refusal::parse(&reason))?;
        }
        self.send_large()?;
        self.flush_links()
    }

    fn refused_large(&mut self, under_way: UnderWay, refusal: Refusal) -> Result<(), End> {
        let UnderWay {
            link,
            receipt,
            answers,
            correlation_id,
            if_too_large,
            bytes,
            ..
        } = under_way;
        let limit = match &refusal {
            Refusal::TooLarge(limit) => {
                self.io.limits.learn_max_body(bytes, *limit);
                *limit
            }
            Refusal::Other(_) => None,
        };
        crate::relay::log(
            log::Level::Warn,
            "coney::amqp",
            format_args!(
                "the broker does not take a message of {bytes} bytes{}",
                match &refusal {
                    Refusal::TooLarge(_) => ": it is too large".to_owned(),
                    Refusal::Other(reason) => format!(": {reason}"),
                }
            ),
        );
        if let Some(tag) = answers {
            let reply = if_too_large;
            return self.settle(link, tag, Outcome::Ack { reply });
        }
        match receipt {
            Some(receipt) => receipt.settle(match refusal {
                Refusal::TooLarge(limit) => Fate::TooLarge(limit),
                Refusal::Other(reason) => Fate::Refused(reason),
            }),
            None if if_too_large.is_some() => {
                let instead = if_too_large.map(|it| *it);
                self.io.registry.send_first(link, instead.into_iter());
            }
            None => {
                let reason = match refusal {
                    Refusal::TooLarge(_) => None,
                    Refusal::Other(reason) => Some(reason),
                };
                let refused = Refused {
                    correlation_id: correlation_id.as_deref(),
                    bytes,
                    limit,
                    reason: reason.as_deref(),
                };
                self.io.registry.refused(link, refused);
            }
        }
        Ok(())
    }
}

impl UnderWay {
    fn of(message: &mut LargeMessage) -> Self {
        let publication = &mut message.publication;
        Self {
            link: message.link,
            receipt: message.receipt.take(),
            answers: message.answers,
            correlation_id: publication.properties.correlation_id.clone(),
            if_too_large: publication.if_too_large.take(),
            again: publication.idempotent.then(|| publication.clone()),
            bytes: publication.body.len(),
            returned: None,
        }
    }
}
