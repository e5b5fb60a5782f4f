//! The channel of a link in one session.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use amiquip::{Channel, Confirm, Consumer, ConsumerMessage, Delivery as AmqpDelivery, Return};
use crossbeam_channel::{Receiver, TryRecvError};

use super::declare::{declare, declare_exclusive};
use super::idle_channel::{ConfirmState, IdleChannel};
use super::publish::publish;
use crate::message::CorrelationId;
use crate::transport::amqp::command::RegisteredLink;
use crate::transport::amqp::convert::{self, ChannelFailure};
use crate::transport::amqp::stream::Observed;
use crate::transport::amqp::transit::Transit;
use crate::transport::{
    ConfirmSender, Delivery, DeliveryToken, Disposition, Oversized, Publication, Settler, Sink,
};

/// A link in one session: its AMQP channel, its consumer, and its unsettled deliveries.
/// Messages and acknowledgements go through the one channel, so their order is kept.
pub(super) struct LinkChannel<'c> {
    pub(super) channel: &'c Channel,
    pub(super) consumer: Option<Consumer<'c>>,
    returns: Receiver<Return>,
    pub(super) reply_queue: Option<String>,
    /// The link's own queue, if it exists, and the exchange and routing key of its binding.
    pub(super) own_queue: Option<(String, (String, String))>,
    sink: Arc<dyn Sink>,
    settler: Arc<dyn Settler>,
    pub(super) acknowledges: bool,
    pub(super) prefetch: u16,
    expects_returns: bool,
    pub(super) requeues_at_once: bool,
    pub(super) confirm_state: Option<ConfirmState>,
    /// The unsettled deliveries by tag, without their messages: amiquip settles deliveries, not
    /// tags.
    pub(super) unsettled: HashMap<u64, AmqpDelivery>,
    /// Deliveries that arrived beyond the prefetch, which the broker counts anew for each consumer.
    pub(super) waiting: VecDeque<AmqpDelivery>,
    /// True if there are unsettled deliveries that are not in `unsettled`.
    pub(super) has_held: bool,
    /// The queue that excludes other connections.
    pub(super) exclusive_queue: Option<&'static str>,
    shared: SessionShared,
}

/// The state that the link channels of a session have in common.
pub(super) struct SessionShared {
    pub(super) observed: Arc<Observed>,
    pub(super) transit: Arc<Transit>,
}

impl<'c> LinkChannel<'c> {
    /// Declares the topology of the link and starts consuming, unless the link is paused.
    pub(super) fn open(
        idle: IdleChannel<'c>,
        link: &RegisteredLink,
        shared: SessionShared,
    ) -> Result<Self, ChannelFailure> {
        let channel = idle.channel;
        // Before the first publish: without a listener, amiquip logs a returned message
        // with its body.
        let returns = channel.listen_for_returns()?;
        let confirm_state = match link.spec.confirms {
            true => Some(idle.confirm()?),
            false => None,
        };
        declare(channel, &link.spec.topology)?;
        if let Some(queue) = link.spec.exclusive_queue {
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
            expects_returns: !link.spec.only_replies,
            requeues_at_once: link.spec.requeues_at_once,
            confirm_state,
            unsettled: HashMap::new(),
            waiting: VecDeque::new(),
            has_held: false,
            shared,
            exclusive_queue: link.spec.exclusive_queue,
        };
        if !link.spec.paused {
            link_channel.resume_consuming(&link.spec)?;
        }
        Ok(link_channel)
    }

    pub(super) fn channel_id(&self) -> u16 {
        self.channel.channel_id()
    }

    /// Returns the receiver of deliveries, while the link consumes.
    pub(super) fn deliveries(&self) -> Option<&Receiver<ConsumerMessage>> {
        self.consumer.as_ref().map(Consumer::receiver)
    }

    /// Returns the receiver of returned messages, if there can be any. One receiver less to wait
    /// on matters where there are hundreds of services; a channel closed by the broker shows in
    /// the deliveries then.
    pub(super) fn returns(&self) -> Option<&Receiver<Return>> {
        let is_needed = self.expects_returns || self.consumer.is_none();
        is_needed.then_some(&self.returns)
    }

    /// Returns the receiver of publisher confirms, on a link that has them.
    pub(super) fn confirms(&self) -> Option<&Receiver<Confirm>> {
        self.confirm_state
            .as_ref()
            .map(|confirm_state| &confirm_state.confirms)
    }

    /// Returns true if the link would lose nothing with the channel.
    pub(super) fn is_replaceable(&self) -> bool {
        self.consumer.is_none()
            && self.unsettled.is_empty()
            && self.confirm_state.is_none()
            && !self.has_held
    }

    /// Returns true if the link only publishes, so that another channel would serve as well.
    pub(super) fn only_publishes(&self) -> bool {
        self.consumer.is_none() && self.unsettled.is_empty() && !self.has_held && !self.acknowledges
    }

    /// Returns true if the link only gets messages, so that no more than these ends with it.
    pub(super) fn only_gets(&self) -> bool {
        self.consumer.is_none() && self.confirm_state.is_none() && !self.acknowledges
    }

    /// Returns true if the connection must stay for the link's sake.
    pub(super) fn is_in_use(&self) -> bool {
        let has_deliveries = !self.unsettled.is_empty() || self.has_held;
        has_deliveries || self.consumer.is_some() || self.exclusive_queue.is_some()
    }

    /// Settles the outcomes of the unconfirmed messages after the broker has closed the channel
    /// because of one of them.
    pub(super) fn refused(&mut self, reason: &Arc<str>) {
        if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
            unconfirmed.refused(reason);
        }
    }

    /// Returns the name of the link's reply queue in this session.
    pub(super) fn reply_queue(&self) -> Option<String> {
        self.reply_queue.clone()
    }

    /// Publishes a message. `Ok` means that amiquip has queued it.
    pub(super) fn publish(
        &mut self,
        publication: Publication,
        confirm: Option<ConfirmSender>,
    ) -> Result<(), ChannelFailure> {
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
    ) -> Result<(), ChannelFailure> {
        if requests.len() < 2 {
            let alone = requests.pop();
            return alone.map_or(Ok(()), |request| self.publish(*request, None));
        }
        let id = CorrelationId::random();
        let reply_queue = self.reply_queue.as_deref().unwrap_or_default();
        let batch = Publication::batch(key, &requests, id, reply_queue)
            .map_err(|error| ChannelFailure::Lost(error.to_string()))?;
        // Before the message is sent, as its replies may come at once.
        self.sink.coalesced(id, requests);
        self.publish(batch, None)
    }

    /// Passes on up to `budget` deliveries, and adds to `fallbacks` the publications that the
    /// sink returns for them. An error is the reason why no more deliveries will arrive.
    pub(super) fn pass_on_deliveries(
        &mut self,
        session: u64,
        budget: usize,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), ChannelFailure> {
        for _ in 0..budget {
            let Some(receiver) = self.deliveries() else {
                return Ok(());
            };
            let delivery = match receiver.try_recv() {
                Ok(message) => convert::delivery_of(message)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(ChannelFailure::Lost("a consumer has ended".to_owned()));
                }
            };
            match self.has_room() {
                true => self.pass_on(delivery, session, fallbacks)?,
                false => self.waiting.push_back(delivery),
            }
        }
        Ok(())
    }

    /// Gets the first message of a queue.
    pub(super) fn get(
        &mut self,
        queue: &str,
        session: u64,
    ) -> Result<Option<(Delivery, usize)>, ChannelFailure> {
        let got = self.channel.basic_get(queue, false)?;
        Ok(got.map(|got| {
            let behind = usize::try_from(got.message_count).unwrap_or(usize::MAX);
            (self.prepare(got.delivery, session, true), behind)
        }))
    }

    /// Gets the first message of the link's own queue.
    pub(super) fn get_own(
        &mut self,
        session: u64,
    ) -> Result<Option<(Delivery, usize)>, ChannelFailure> {
        match self.own_queue.as_ref().map(|(queue, _)| queue.clone()) {
            Some(queue) => self.get(&queue, session),
            None => Ok(None),
        }
    }

    /// Makes a round trip, after which the broker has all that was published and settled before.
    pub(super) fn flush(&mut self) -> Result<(), ChannelFailure> {
        // Chosen because it changes nothing: it applies to the next consumer of the channel, and
        // there is none.
        Ok(self.channel.qos(0, self.prefetch, false)?)
    }

    /// Takes the record of a body that was left out because of its size.
    pub(super) fn take_oversized(&self, tag: u64) -> Option<Oversized> {
        let observed = &self.shared.observed;
        observed.take_oversized(self.channel_id(), tag)
    }

    fn prepare(&mut self, mut from: AmqpDelivery, session: u64, acknowledge: bool) -> Delivery {
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
    ) -> Result<(), ChannelFailure> {
        let delivery = self.prepare(delivery, session, self.acknowledges);
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
    /// the publications to be sent for them. Deliveries that have to be acknowledged are
    /// dropped, as the broker has requeued them.
    pub(super) fn drain_after_loss(&mut self, session: u64) -> Vec<Publication> {
        let mut fallbacks = Vec::new();
        if !self.acknowledges {
            let _ = self.pass_on_deliveries(session, usize::MAX, &mut fallbacks);
        }
        let _ = self.pass_on_confirms(usize::MAX);
        let _ = self.pass_on_returns(&mut fallbacks);
        fallbacks
    }

    /// Takes the unconfirmed messages that are to be resent after a loss; the outcomes of the
    /// others are settled as lost. Called after [`drain_after_loss`](Self::drain_after_loss).
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

    /// Passes on returned messages. Fails if the broker has closed the channel, which on a link
    /// that only publishes shows here first.
    pub(super) fn pass_on_returns(
        &mut self,
        fallbacks: &mut Vec<Publication>,
    ) -> Result<(), ChannelFailure> {
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
                    return Err(ChannelFailure::Lost(
                        "the broker closed a channel".to_owned(),
                    ));
                }
            }
        }
    }

    /// Passes on up to `budget` publisher confirms.
    pub(super) fn pass_on_confirms(&mut self, budget: usize) -> Result<(), ChannelFailure> {
        for _ in 0..budget {
            let Some(ConfirmState { confirms, .. }) = &self.confirm_state else {
                return Ok(());
            };
            match confirms.try_recv() {
                Ok(confirm) => {
                    // A return comes before its confirm. A closed channel shows below
                    // too. On a link with confirms a returned message has no fallback.
                    let _ = self.pass_on_returns(&mut Vec::new());
                    if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
                        unconfirmed.confirmed(confirm);
                    }
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(ChannelFailure::Lost(
                        "the broker closed a channel".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Settles a delivery of this session, once.
    pub(super) fn settle(&mut self, tag: u64, outcome: Disposition) -> Result<(), ChannelFailure> {
        let Some(delivery) = self.unsettled.remove(&tag) else {
            return Ok(());
        };
        match outcome {
            Disposition::Ack { reply } => {
                if let Some(reply) = reply {
                    self.publish(*reply, None)?;
                }
                self.shared.transit.add(self.channel_id(), 0);
                delivery.ack(self.channel)?;
            }
            Disposition::Reject { requeue } => {
                self.shared.transit.add(self.channel_id(), 0);
                delivery.reject(self.channel, requeue)?;
            }
            Disposition::Hold => self.has_held = true,
        }
        Ok(())
    }
}
