//! The channel of a link in one session.

use std::collections::VecDeque;
use std::sync::Arc;

use amiquip::{Channel, Confirm, Consumer, ConsumerMessage, Return};
use crossbeam_channel::{Receiver, TryRecvError};

use super::declare::{declare, declare_exclusive};
use super::idle_channel::{ConfirmState, IdleChannel};
use crate::message::CorrelationId;
use crate::transport::amqp::command::{LinkId, RegisteredLink};
use crate::transport::amqp::convert::{self, CONNECTION_ENDED, ChannelFailure};
use crate::transport::amqp::delivery_route::{DeliveryRoute, Incoming};
use crate::transport::amqp::frame_writer::FrameWriter;
use crate::transport::amqp::frames::ReplyQueueName;
use crate::transport::amqp::link_outlet::{ChannelClosed, OpenChannel};
use crate::transport::amqp::observed::Observed;
use crate::transport::amqp::routes::{Registration, Routes};
use crate::transport::amqp::unsettled::Unsettled;
use crate::transport::{ConfirmSender, Delivery, Disposition, Oversized, Publication, Sink};

/// A link in one session: its AMQP channel and its consumer. Messages and acknowledgements go
/// through the one channel, so their order is kept.
pub(super) struct LinkChannel<'c> {
    pub(super) channel: &'c Channel,
    /// The consumer, whose deliveries take the route.
    pub(super) consumer: Option<Consumer<'c>>,
    returns: Receiver<Return>,
    /// The returned messages that were read to the end of the channel.
    last_returns: VecDeque<Return>,
    /// The link's own queue, if it exists, and the exchange and routing key of its binding.
    pub(super) own_queue: Option<(String, (String, String))>,
    sink: Arc<dyn Sink>,
    pub(super) route: Arc<DeliveryRoute>,
    pub(super) registration: Registration,
    pub(super) unsettled: Arc<Unsettled>,
    expects_returns: bool,
    pub(super) requeues_at_once: bool,
    pub(super) confirm_state: Option<ConfirmState>,
    /// The queue that excludes other connections.
    pub(super) exclusive_queue: Option<&'static str>,
    observed: Arc<Observed>,
}

/// The state that the link channels of a session have in common.
pub(super) struct SessionShared {
    pub(super) session: u64,
    pub(super) observed: Arc<Observed>,
    pub(super) writer: Arc<FrameWriter>,
    pub(super) routes: Arc<Routes>,
}

impl<'c> LinkChannel<'c> {
    /// Declares the topology of the link and starts consuming, unless the link is paused.
    /// Deliveries wait until the route is started.
    pub(super) fn open(
        idle: IdleChannel<'c>,
        link: LinkId,
        registered: &RegisteredLink,
        shared: SessionShared,
    ) -> Result<Self, ChannelFailure> {
        let channel = idle.channel;
        let spec = &registered.spec;
        // Before the first publish: without a listener, amiquip logs a returned message
        // with its body.
        let returns = channel.listen_for_returns()?;
        let confirm_state = match spec.confirms {
            true => Some(idle.confirm()?),
            false => None,
        };
        declare(channel, &spec.topology)?;
        if let Some(queue) = spec.exclusive_queue {
            declare_exclusive(channel, queue)?;
        }
        let unsettled = Arc::new(Unsettled::default());
        let route = DeliveryRoute::new((link, registered), shared.session, Arc::clone(&unsettled));
        let route = Arc::new(route);
        // Before the consumer is started, whose first deliveries may come at once.
        let registration = Registration::new(
            &shared.routes,
            channel.channel_id(),
            Arc::clone(&registered.outlet),
            Some(Arc::clone(&route)),
        );
        registered.outlet.open(OpenChannel {
            session: shared.session,
            channel: channel.channel_id(),
            frame_max: shared.observed.frame_max() as usize,
            reply_queue: None,
            is_numbered: spec.confirms,
            writer: shared.writer,
            observed: Arc::clone(&shared.observed),
            unsettled: Arc::clone(&unsettled),
        });
        let mut link_channel = Self {
            channel,
            consumer: None,
            returns,
            last_returns: VecDeque::new(),
            own_queue: None,
            sink: Arc::clone(&registered.sink),
            route,
            registration,
            unsettled,
            expects_returns: !spec.only_replies,
            requeues_at_once: spec.requeues_at_once,
            confirm_state,
            exclusive_queue: spec.exclusive_queue,
            observed: shared.observed,
        };
        if !spec.paused {
            link_channel.resume_consuming(spec)?;
        }
        Ok(link_channel)
    }

    pub(super) fn channel_id(&self) -> u16 {
        self.channel.channel_id()
    }

    /// Returns the receiver of the consumer's end, while the link consumes.
    pub(super) fn consumer_ends(&self) -> Option<&Receiver<ConsumerMessage>> {
        self.consumer.as_ref().map(Consumer::receiver)
    }

    /// Returns the receiver of returned messages, if there can be any. One receiver less to wait
    /// on matters where there are hundreds of services; a channel closed by the broker shows at
    /// its consumer then.
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
        self.consumer.is_none() && self.unsettled.is_empty() && self.confirm_state.is_none()
    }

    /// Returns true if the link only publishes, so that another channel would serve as well.
    pub(super) fn only_publishes(&self) -> bool {
        self.consumer.is_none() && self.unsettled.is_empty() && !self.route.acknowledges()
    }

    /// Returns true if the link only gets messages, so that no more than these ends with it.
    pub(super) fn only_gets(&self) -> bool {
        self.consumer.is_none() && self.confirm_state.is_none() && !self.route.acknowledges()
    }

    /// Returns true if the connection must stay for the link's sake.
    pub(super) fn is_in_use(&self) -> bool {
        !self.unsettled.is_empty() || self.consumer.is_some() || self.exclusive_queue.is_some()
    }

    /// Settles the outcomes of the unconfirmed messages after the broker has closed the channel
    /// because of one of them.
    pub(super) fn refused(&mut self, reason: &Arc<str>) {
        if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
            unconfirmed.refused(reason);
        }
    }

    /// Returns the name of the link's reply queue in this session.
    pub(super) fn reply_queue(&self) -> Option<ReplyQueueName> {
        self.registration.outlet.reply_queue()
    }

    /// Publishes a message. `Ok` means that it will be written unless the connection is lost.
    pub(super) fn publish(
        &mut self,
        publication: &Publication,
        confirm: Option<ConfirmSender>,
    ) -> Result<(), ChannelFailure> {
        if let Some(ConfirmState { unconfirmed, .. }) = &mut self.confirm_state {
            unconfirmed.publishing(publication, confirm);
        }
        let published = self.registration.outlet.publish(publication, None);
        published.map_err(|closed| self.ended(closed))
    }

    /// Returns the cause of the channel's end: the broker has closed it, or the connection is lost.
    fn cause_of_end(&self) -> String {
        match self.observed.channel_close(self.channel_id()) {
            Some(_) => "the broker closed a channel".to_owned(),
            None => CONNECTION_ENDED.to_owned(),
        }
    }

    /// Returns true if the channel can be published on, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        self.registration.outlet.is_open()
    }

    /// Waits until amiquip has handled the end of the channel, which the stream has seen before it:
    /// then everything that came before the end is in the receivers. Blocks while the socket is read;
    /// guarded by the watchdog.
    pub(super) fn ended(&mut self, _: ChannelClosed) -> ChannelFailure {
        self.last_returns.extend(self.returns.iter());
        ChannelFailure::Lost(self.cause_of_end())
    }

    /// Publishes requests with one routing key as one message.
    pub(super) fn publish_coalesced(
        &mut self,
        key: String,
        mut requests: Vec<Box<Publication>>,
    ) -> Result<(), ChannelFailure> {
        if requests.len() < 2 {
            let alone = requests.pop();
            return alone.map_or(Ok(()), |request| self.publish(&request, None));
        }
        let id = CorrelationId::random();
        let reply_queue = self.reply_queue();
        let reply_queue = reply_queue.as_ref().map_or("", ReplyQueueName::as_str);
        let batch = Publication::batch(key, &requests, id, reply_queue)
            .map_err(|error| ChannelFailure::Lost(error.to_string()))?;
        // Before the message is sent, as its replies may come at once.
        self.sink.coalesced(id, requests);
        self.publish(&batch, None)
    }

    /// Returns the reason for which the consumer has ended, as an error.
    pub(super) fn consumer_ended(&self) -> Result<(), ChannelFailure> {
        let Some(receiver) = self.consumer_ends() else {
            return Ok(());
        };
        match receiver.try_recv() {
            Ok(message) => Err(convert::end_of_consumer(message)),
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => {
                Err(ChannelFailure::Lost("a consumer has ended".to_owned()))
            }
        }
    }

    /// Gets the first message of a queue.
    pub(super) fn get(&mut self, queue: &str) -> Result<Option<(Delivery, usize)>, ChannelFailure> {
        let got = self.channel.basic_get(queue, false)?;
        Ok(got.map(|got| {
            let behind = usize::try_from(got.message_count).unwrap_or(usize::MAX);
            let tag = got.delivery.delivery_tag();
            let incoming = Incoming {
                tag,
                redelivered: got.delivery.redelivered,
                message: convert::message(got.delivery, self.take_oversized(tag)),
            };
            (self.route.prepare(incoming, true), behind)
        }))
    }

    /// Gets the first message of the link's own queue.
    pub(super) fn get_own(&mut self) -> Result<Option<(Delivery, usize)>, ChannelFailure> {
        match self.own_queue.as_ref().map(|(queue, _)| queue.clone()) {
            Some(queue) => self.get(&queue),
            None => Ok(None),
        }
    }

    /// Makes a round trip, after which the broker has all that was published and settled before.
    pub(super) fn flush(&mut self) -> Result<(), ChannelFailure> {
        // Chosen because it changes nothing: it applies to the next consumer of the channel, and
        // there is none.
        Ok(self.channel.qos(0, self.route.prefetch(), false)?)
    }

    /// Takes the record of a body that was left out because of its size.
    fn take_oversized(&self, tag: u64) -> Option<Oversized> {
        self.observed.take_oversized(self.channel_id(), tag)
    }

    /// Passes on the replies, returns and confirms that arrived before a loss, and returns
    /// the publications to be sent for them. Deliveries that have to be acknowledged are
    /// dropped, as the broker has requeued them.
    pub(super) fn drain_after_loss(&mut self) -> Vec<Publication> {
        let mut fallbacks = Vec::new();
        if !self.route.acknowledges() {
            self.route.pass_on_queued(usize::MAX);
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
            let last = self.last_returns.pop_front().map(Ok);
            match last.unwrap_or_else(|| self.returns.try_recv()) {
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
                    return Err(ChannelFailure::Lost(self.cause_of_end()));
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
                    return Err(ChannelFailure::Lost(self.cause_of_end()));
                }
            }
        }
        Ok(())
    }

    /// Settles a delivery of this session, once.
    pub(super) fn settle(&mut self, tag: u64, outcome: Disposition) -> Result<(), ChannelFailure> {
        let settled = self.registration.outlet.settle(tag, outcome);
        settled.map_err(|closed| self.ended(closed))
    }

    /// Requeues a delivery that has been taken out of the unsettled ones.
    pub(super) fn requeue(&mut self, tag: u64) -> Result<(), ChannelFailure> {
        let requeued = self.registration.outlet.requeue(tag);
        requeued.map_err(|closed| self.ended(closed))
    }
}
