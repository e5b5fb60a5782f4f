use std::collections::HashMap;
use std::sync::Arc;

use amiquip::{Channel, Confirm, Consumer, ConsumerMessage, Delivery as AmqpDelivery, Return};
use crossbeam_channel::{Receiver, TryRecvError};

use super::command::Registered;
use super::convert::{self, Failure};
use super::declare::{declare, declare_exclusive};
use super::evidence::Evidence;
use super::publish::publish;
use super::spare::{Confirming, Spare};
use super::transit::Transit;
use crate::message::CorrelationId;
use crate::transport::{
    Delivery, Outcome, Oversized, Parcel, Publication, Receipt, Settle, Sink, Token,
};

/// A link in one session: its AMQP channel, its consumer, and the deliveries
/// it has not settled. What it publishes and what it acknowledges go through
/// the one channel, so their order is kept.
pub(super) struct Lane<'c> {
    pub(super) channel: &'c Channel,
    pub(super) consumer: Option<Consumer<'c>>,
    returns: Receiver<Return>,
    pub(super) reply_queue: Option<String>,
    /// A queue of the link's own that is there, and with what it is bound.
    pub(super) own_queue: Option<(String, (String, String))>,
    /// To be sent in place of what was returned, or could not be read.
    pub(super) instead: Vec<Publication>,
    sink: Arc<dyn Sink>,
    settler: Arc<dyn Settle>,
    pub(super) acknowledges: bool,
    prefetch: u16,
    expects_returns: bool,
    pub(super) ends_at_once: bool,
    pub(super) confirming: Option<Confirming>,
    /// By tag; amiquip settles deliveries, not tags. Their messages are out.
    pub(super) unsettled: HashMap<u64, AmqpDelivery>,
    /// Deliveries are left unsettled that are not in there.
    pub(super) holds: bool,
    /// A queue that keeps other connections out.
    pub(super) exclusively: Option<&'static str>,
    shared: Shared,
}

/// What the lanes of a session have in common.
pub(super) struct Shared {
    pub(super) evidence: Arc<Evidence>,
    pub(super) transit: Arc<Transit>,
}

impl<'c> Lane<'c> {
    /// Declares what the link needs and starts consuming.
    pub(super) fn open(
        spare: Spare<'c>,
        link: &Registered,
        shared: Shared,
    ) -> Result<Self, Failure> {
        let channel = spare.channel;
        // Before the first publish: amiquip logs a return nobody listens for,
        // with its body.
        let returns = channel.listen_for_returns()?;
        let confirming = match link.spec.confirms {
            true => Some(spare.confirm()?),
            false => None,
        };
        declare(channel, &link.spec.topology)?;
        if let Some(queue) = link.spec.exclusively {
            declare_exclusive(channel, queue)?;
        }
        let mut lane = Self {
            channel,
            consumer: None,
            returns,
            reply_queue: None,
            own_queue: None,
            instead: Vec::new(),
            sink: Arc::clone(&link.sink),
            settler: Arc::clone(&link.settler),
            acknowledges: link.spec.source.prefetch().is_some(),
            prefetch: link.spec.source.prefetch().unwrap_or(1),
            expects_returns: !link.spec.only_answers,
            ends_at_once: link.spec.ends_at_once,
            confirming,
            unsettled: HashMap::new(),
            holds: false,
            shared,
            exclusively: link.spec.exclusively,
        };
        if !link.spec.paused {
            lane.resume_consuming(&link.spec)?;
        }
        Ok(lane)
    }

    pub(super) fn channel_id(&self) -> u16 {
        self.channel.channel_id()
    }

    /// What the lane's deliveries arrive on, while it consumes.
    pub(super) fn deliveries(&self) -> Option<&Receiver<ConsumerMessage>> {
        self.consumer.as_ref().map(Consumer::receiver)
    }

    /// What the broker returns arrives on, if there can be anything. To wait on one channel
    /// less matters where there are hundreds of services; that the broker has closed the
    /// channel shows in the deliveries then.
    pub(super) fn returns(&self) -> Option<&Receiver<Return>> {
        let matter = self.expects_returns || self.consumer.is_none();
        matter.then_some(&self.returns)
    }

    /// What the broker's confirmations arrive on, where it gives them.
    pub(super) fn confirms(&self) -> Option<&Receiver<Confirm>> {
        self.confirming
            .as_ref()
            .map(|confirming| &confirming.confirms)
    }

    /// Nothing would be lost with the channel.
    pub(super) fn is_idle(&self) -> bool {
        self.consumer.is_none()
            && self.unsettled.is_empty()
            && self.confirming.is_none()
            && !self.holds
    }

    /// It only publishes: another channel would do as well.
    pub(super) fn stands_alone(&self) -> bool {
        self.consumer.is_none() && self.unsettled.is_empty() && !self.holds && !self.acknowledges
    }

    /// The broker has closed the channel because of something that was published on it.
    pub(super) fn refused(&mut self, reason: &Arc<str>) {
        if let Some(Confirming { unconfirmed, .. }) = &mut self.confirming {
            unconfirmed.refused(reason);
        }
    }

    /// The name of the link's reply queue in this session.
    pub(super) fn reply_queue(&self) -> Option<String> {
        self.reply_queue.clone()
    }

    /// Publishes. `Ok` means that amiquip has queued it.
    pub(super) fn publish(
        &mut self,
        publication: Publication,
        receipt: Option<Receipt>,
    ) -> Result<(), Failure> {
        if let Some(Confirming { unconfirmed, .. }) = &mut self.confirming {
            unconfirmed.publishing(&publication, receipt);
        }
        let reply_queue = match publication.body.wants_reply_queue() {
            true => self.reply_queue.clone(),
            false => None,
        };
        publish(self.channel, publication, reply_queue, &self.shared.transit)
    }

    /// Publishes requests with one routing key as one message.
    pub(super) fn publish_together(
        &mut self,
        key: String,
        mut requests: Vec<Parcel>,
    ) -> Result<(), Failure> {
        if requests.len() < 2 {
            let alone = requests.pop();
            return alone.map_or(Ok(()), |request| self.publish(*request, None));
        }
        let id = CorrelationId::random();
        let reply_queue = self.reply_queue.as_deref().unwrap_or_default();
        let batch = Publication::batch(key, &requests, id, reply_queue)
            .map_err(|error| Failure::Lost(error.to_string()))?;
        // Before the answer can come.
        self.sink.gathered(id, requests);
        self.publish(batch, None)
    }

    /// Passes on up to `budget` deliveries; an error is the reason why there
    /// will be no more.
    pub(super) fn pass_on_deliveries(
        &mut self,
        session: u64,
        budget: usize,
    ) -> Result<(), Failure> {
        for _ in 0..budget {
            let Some(receiver) = self.deliveries() else {
                return Ok(());
            };
            let lost = match receiver.try_recv() {
                Ok(ConsumerMessage::Delivery(delivery)) => {
                    self.pass_on(delivery, session)?;
                    continue;
                }
                Ok(ConsumerMessage::ServerClosedChannel(error)) => return Err(error.into()),
                Ok(ConsumerMessage::ServerClosedConnection(error)) => error.to_string(),
                Ok(ConsumerMessage::ServerCancelled) => {
                    "the broker cancelled a consumer; was its queue deleted?".to_owned()
                }
                Ok(_) => "a consumer has ended".to_owned(),
                Err(error) if error.is_empty() => return Ok(()),
                Err(_) => "a consumer has ended".to_owned(),
            };
            return Err(Failure::Lost(lost));
        }
        Ok(())
    }

    /// Takes the first message off a queue.
    pub(super) fn get(
        &mut self,
        queue: &str,
        session: u64,
    ) -> Result<Option<(Delivery, usize)>, Failure> {
        let got = self.channel.basic_get(queue, false)?;
        Ok(got.map(|got| {
            let behind = usize::try_from(got.message_count).unwrap_or(usize::MAX);
            (self.hand_out(got.delivery, session, true), behind)
        }))
    }

    /// Takes the first message off the queue of the link's own.
    pub(super) fn get_own(&mut self, session: u64) -> Result<Option<(Delivery, usize)>, Failure> {
        match self.own_queue.as_ref().map(|(queue, _)| queue.clone()) {
            Some(queue) => self.get(&queue, session),
            None => Ok(None),
        }
    }

    /// The number of messages in a queue that were not fetched.
    pub(super) fn backlog(&mut self, queue: &str) -> Result<usize, Failure> {
        let queue = self.channel.queue_declare_passive(queue)?;
        Ok(queue
            .declared_message_count()
            .map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// A round trip: the broker has all that was published and settled before.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        // For the next consumer of the channel, of which there is none.
        Ok(self.channel.qos(0, self.prefetch, false)?)
    }

    /// The record of a body that was left out because of its size.
    pub(super) fn take_oversized(&self, tag: u64) -> Option<Oversized> {
        let evidence = &self.shared.evidence;
        evidence.take_oversized(self.channel_id(), tag)
    }

    fn hand_out(&mut self, mut from: AmqpDelivery, session: u64, acknowledge: bool) -> Delivery {
        let tag = from.delivery_tag();
        let oversized = self.take_oversized(tag);
        let message = convert::take_message(&mut from, oversized);
        let redelivered = from.redelivered;
        let token = acknowledge.then(|| Token {
            settler: Arc::clone(&self.settler),
            session,
            tag,
        });
        if acknowledge {
            self.unsettled.insert(tag, from);
        }
        Delivery::new(message, redelivered, token)
    }

    pub(super) fn pass_on(&mut self, delivery: AmqpDelivery, session: u64) -> Result<(), Failure> {
        let delivery = self.hand_out(delivery, session, self.acknowledges);
        match self.sink.delivery(delivery) {
            Ok(more) => {
                self.instead.extend(more);
                Ok(())
            }
            Err(refused) => match refused.forget() {
                Some(tag) => self.settle(tag, Outcome::Reject { requeue: true }),
                None => Ok(()),
            },
        }
    }

    /// After a loss: passes on the replies, returns and confirmations that made
    /// it before. What would have to be acknowledged is the broker's again.
    pub(super) fn pass_on_last_words(&mut self, session: u64) {
        if !self.acknowledges {
            let _ = self.pass_on_deliveries(session, usize::MAX);
        }
        let _ = self.pass_on_confirms(usize::MAX);
        let _ = self.pass_on_returns();
    }

    /// After that: what is to be sent again; the others' senders are told.
    pub(super) fn lost(
        &mut self,
        cause: &Arc<str>,
        may_send_again: bool,
    ) -> Vec<(Publication, Receipt)> {
        match &mut self.confirming {
            Some(Confirming { unconfirmed, .. }) => unconfirmed.lost(cause, may_send_again),
            None => Vec::new(),
        }
    }

    /// Passes on what was returned; an error if the broker has closed the
    /// channel, which for one that only publishes shows here first.
    pub(super) fn pass_on_returns(&mut self) -> Result<(), Failure> {
        loop {
            match self.returns.try_recv() {
                Ok(returned) => {
                    let returned = convert::returned(returned);
                    match &mut self.confirming {
                        Some(Confirming { unconfirmed, .. }) => {
                            unconfirmed.returned(returned);
                        }
                        None => self.instead.extend(self.sink.returned(returned)),
                    }
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(Failure::Lost("the broker closed a channel".to_owned()));
                }
            }
        }
    }

    /// Passes on up to `budget` confirmations.
    pub(super) fn pass_on_confirms(&mut self, budget: usize) -> Result<(), Failure> {
        for _ in 0..budget {
            let Some(Confirming { confirms, .. }) = &self.confirming else {
                return Ok(());
            };
            match confirms.try_recv() {
                Ok(confirm) => {
                    // What was returned was returned before it was confirmed. That
                    // there will be no more returns shows below too.
                    let _ = self.pass_on_returns();
                    if let Some(Confirming { unconfirmed, .. }) = &mut self.confirming {
                        unconfirmed.confirmed(confirm);
                    }
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(Failure::Lost("the broker closed a channel".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Settles a delivery of this session, once.
    pub(super) fn settle(&mut self, tag: u64, outcome: Outcome) -> Result<(), Failure> {
        let Some(delivery) = self.unsettled.remove(&tag) else {
            return Ok(());
        };
        match outcome {
            Outcome::Ack { reply } => {
                if let Some(reply) = reply {
                    self.publish(*reply, None)?;
                }
                self.shared.transit.handing(self.channel_id(), 0);
                delivery.ack(self.channel)?;
            }
            Outcome::Reject { requeue } => {
                self.shared.transit.handing(self.channel_id(), 0);
                delivery.reject(self.channel, requeue)?;
            }
            Outcome::Hold => self.holds = true,
        }
        Ok(())
    }
}
