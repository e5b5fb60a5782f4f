use std::collections::HashMap;
use std::sync::Arc;

use amiquip::{Channel, Confirm, Consumer, ConsumerMessage, Delivery as AmqpDelivery, Return};
use crossbeam_channel::{Receiver, TryRecvError};

use super::declare::{declare, declare_exclusive};
use super::idle_channel::{ConfirmState, IdleChannel};
use super::publish::publish;
use crate::message::CorrelationId;
use crate::transport::amqp::command::RegisteredLink;
use crate::transport::amqp::convert::{self, Failure};
use crate::transport::amqp::stream::Observed;
use crate::transport::amqp::transit::Transit;
use crate::transport::{
    ConfirmSender, Delivery, DeliveryToken, Disposition, Oversized, Publication, Settler, Sink,
};

/// A link in one session: its AMQP channel, its consumer, and the deliveries
/// it has not settled. What it publishes and what it acknowledges go through
/// the one channel, so their order is kept.
pub(super) struct LinkChannel<'c> {
    pub(super) channel: &'c Channel,
    pub(super) consumer: Option<Consumer<'c>>,
    returns: Receiver<Return>,
    pub(super) reply_queue: Option<String>,
    /// A queue of the link's own that is there, and with what it is bound.
    pub(super) own_queue: Option<(String, (String, String))>,
    sink: Arc<dyn Sink>,
    settler: Arc<dyn Settler>,
    pub(super) acknowledges: bool,
    prefetch: u16,
    expects_returns: bool,
    pub(super) ends_at_once: bool,
    pub(super) confirm_state: Option<ConfirmState>,
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
    pub(super) observed: Arc<Observed>,
    pub(super) transit: Arc<Transit>,
}

impl<'c> LinkChannel<'c> {
    /// Declares what the link needs and starts consuming.
    pub(super) fn open(
        idle: IdleChannel<'c>,
        link: &RegisteredLink,
        shared: Shared,
    ) -> Result<Self, Failure> {
        let channel = idle.channel;
        // Before the first publish: amiquip logs a return nobody listens for,
        // with its body.
        let returns = channel.listen_for_returns()?;
        let confirm_state = match link.spec.confirms {
            true => Some(idle.confirm()?),
            false => None,
        };
        declare(channel, &link.spec.topology)?;
        if let Some(queue) = link.spec.exclusively {
            declare_exclusive(channel, queue)?;
        }
        let mut link_channel = Self {
            channel,
            consumer: None,
            returns,
            reply_queue: None,
            own_queue: None,
            sink: Arc::clone(&link.sink),
            settler: Arc::clone(&link.settler),
            acknowledges: link.spec.source.prefetch().is_some(),
            prefetch: link.spec.source.prefetch().unwrap_or(1),
            expects_returns: !link.spec.only_answers,
            ends_at_once: link.spec.ends_at_once,
            confirm_state,
            unsettled: HashMap::new(),
            holds: false,
            shared,
            exclusively: link.spec.exclusively,
        };
        if !link.spec.paused {
            link_channel.resume_consuming(&link.spec)?;
        }
        Ok(link_channel)
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
        self.confirm_state
            .as_ref()
            .map(|confirm_state| &confirm_state.confirms)
    }

    /// Nothing would be lost with the channel.
    pub(super) fn is_idle(&self) -> bool {
        self.consumer.is_none()
            && self.unsettled.is_empty()
            && self.confirm_state.is_none()
            && !self.holds
    }

    /// It only publishes: another channel would do as well.
    pub(super) fn stands_alone(&self) -> bool {
        self.consumer.is_none() && self.unsettled.is_empty() && !self.holds && !self.acknowledges
    }

    /// The broker has closed the channel because of something that was published on it.
    pub(super) fn refused(&mut self, reason: &Arc<str>) {
        if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
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
        confirm: Option<ConfirmSender>,
    ) -> Result<(), Failure> {
        if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
            unconfirmed.publishing(&publication, confirm);
        }
        let reply_queue = match publication.body.wants_reply_queue() {
            true => self.reply_queue.clone(),
            false => None,
        };
        publish(self.channel, publication, reply_queue, &self.shared.transit)
    }

    /// Publishes requests with one routing key as one message.
    pub(super) fn publish_coalesced(
        &mut self,
        key: String,
        mut requests: Vec<Box<Publication>>,
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
        self.sink.coalesced(id, requests);
        self.publish(batch, None)
    }

    /// Passes on up to `budget` deliveries, and adds to `fallbacks` the publications that the
    /// sink wants to be sent for them. An error is the reason why no more will come.
    pub(super) fn pass_on_deliveries(
        &mut self,
        session: u64,
        budget: usize,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), Failure> {
        for _ in 0..budget {
            let Some(receiver) = self.deliveries() else {
                return Ok(());
            };
            let lost = match receiver.try_recv() {
                Ok(ConsumerMessage::Delivery(delivery)) => {
                    self.pass_on(delivery, session, fallbacks)?;
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
        let observed = &self.shared.observed;
        observed.take_oversized(self.channel_id(), tag)
    }

    fn hand_out(&mut self, mut from: AmqpDelivery, session: u64, acknowledge: bool) -> Delivery {
        let tag = from.delivery_tag();
        let oversized = self.take_oversized(tag);
        let message = convert::take_message(&mut from, oversized);
        let redelivered = from.redelivered;
        let token = acknowledge.then(|| DeliveryToken {
            settler: Arc::clone(&self.settler),
            session,
            tag,
        });
        if acknowledge {
            self.unsettled.insert(tag, from);
        }
        Delivery::new(message, redelivered, token)
    }

    pub(super) fn pass_on(
        &mut self,
        delivery: AmqpDelivery,
        session: u64,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), Failure> {
        let delivery = self.hand_out(delivery, session, self.acknowledges);
        match self.sink.delivery(delivery) {
            Ok(more) => {
                fallbacks.extend(more);
                Ok(())
            }
            Err(refused) => match refused.forget() {
                Some(tag) => self.settle(tag, Disposition::Reject { requeue: true }),
                None => Ok(()),
            },
        }
    }

    /// Passes on the replies, returns and confirms that arrived before a loss, and returns
    /// the publications to be sent for them. Deliveries that have to be acknowledged are the
    /// broker's again.
    pub(super) fn drain_after_loss(&mut self, session: u64) -> Vec<Publication> {
        let mut fallbacks = Vec::new();
        if !self.acknowledges {
            let _ = self.pass_on_deliveries(session, usize::MAX, &mut fallbacks);
        }
        let _ = self.pass_on_confirms(usize::MAX);
        let _ = self.pass_on_returns(&mut fallbacks);
        fallbacks
    }

    /// After that: what is to be sent again; the others' senders are told.
    pub(super) fn lost(
        &mut self,
        cause: &Arc<str>,
        may_resend: bool,
    ) -> Vec<(Publication, ConfirmSender)> {
        match &mut self.confirm_state {
            Some(ConfirmState { unconfirmed, .. }) => unconfirmed.lost(cause, may_resend),
            None => Vec::new(),
        }
    }

    /// Passes on what was returned; an error if the broker has closed the
    /// channel, which for one that only publishes shows here first.
    pub(super) fn pass_on_returns(
        &mut self,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), Failure> {
        loop {
            match self.returns.try_recv() {
                Ok(returned) => {
                    let returned = convert::returned(returned);
                    match &mut self.confirm_state {
                        Some(ConfirmState { unconfirmed, .. }) => {
                            unconfirmed.returned(returned);
                        }
                        None => fallbacks.extend(self.sink.returned(returned)),
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
            let Some(ConfirmState { confirms, .. }) = &self.confirm_state else {
                return Ok(());
            };
            match confirms.try_recv() {
                Ok(confirm) => {
                    // What was returned was returned before it was confirmed. That
                    // there will be no more returns shows below too.
                    // On a link with confirms a returned message needs no fallback.
                    let _ = self.pass_on_returns(&mut Vec::new());
                    if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
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
    pub(super) fn settle(&mut self, tag: u64, outcome: Disposition) -> Result<(), Failure> {
        let Some(delivery) = self.unsettled.remove(&tag) else {
            return Ok(());
        };
        match outcome {
            Disposition::Ack { reply } => {
                if let Some(reply) = reply {
                    self.publish(*reply, None)?;
                }
                self.shared.transit.handing(self.channel_id(), 0);
                delivery.ack(self.channel)?;
            }
            Disposition::Reject { requeue } => {
                self.shared.transit.handing(self.channel_id(), 0);
                delivery.reject(self.channel, requeue)?;
            }
            Disposition::Hold => self.holds = true,
        }
        Ok(())
    }
}
