//! Publishing events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::PublishOptions;
use crate::base::deadline;
use crate::base::name::{check_event, check_service, check_short_string};
use crate::client::{PendingConfirm, SendTarget};
use crate::error::{Error, Result};
use crate::message::ServiceMessage;
use crate::topology::EVENT_EXCHANGE;
use crate::transport::{Broker, Properties, Publication, SendState};

/// A publisher of events. An *event* notifies every subscription that matches its name, now
/// and, where a [group](crate::Subscription) shares a queue, later.
///
/// Cheap to clone and free to share between threads. Events are sent over the connection's
/// link with publisher confirms, as commands are; no threads of its own.
///
/// ```
/// use coney::{Broker, EventPublisher, EventSubscriber};
///
/// let broker = Broker::memory();
/// # let (sender, mails) = std::sync::mpsc::channel();
/// let subscriber = EventSubscriber::builder(&broker, "notification-service")
///     .on("order.created", move |order: u64| sender.send(order))
///     .start()?;
/// let publisher = EventPublisher::new(&broker, "order-service")?;
/// publisher.publish("order.created", &4711)?;
/// # assert_eq!(mails.recv().unwrap(), 4711);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EventPublisher {
    broker: Broker,
    source: String,
    timeout: Duration,
    mandatory: bool,
}

impl EventPublisher {
    /// Creates a publisher with the default options. `source` is the publishing service, which
    /// handlers read by [`Context::source_service`](crate::Context::source_service). Does not
    /// block.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for an invalid name.
    pub fn new(broker: &Broker, source: &str) -> Result<Self> {
        check_service(source)?;
        Ok(Self {
            broker: broker.clone(),
            source: source.to_owned(),
            timeout: Duration::from_secs(5),
            mandatory: false,
        })
    }

    /// Sets the longest time of a publication whose options have no timeout. Defaults to 5 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets whether an event without a matching subscription is an error,
    /// [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute). Defaults to false: the event is
    /// dropped.
    #[must_use]
    pub fn with_mandatory(mut self, mandatory: bool) -> Self {
        self.mandatory = mandatory;
        self
    }

    /// Publishes an event and blocks until the broker has confirmed it, that is, has
    /// it on disk in the queue of every matching group, at most the timeout.
    /// `name` is dotted words, the source first: `order.created`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) or
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) in
    /// [`Phase::Confirm`](crate::Phase::Confirm) if it is unknown whether the broker has
    /// it, [`ErrorKind::Broker`](crate::ErrorKind::Broker) if the broker refuses it; and those
    /// of [`publish_async`](EventPublisher::publish_async).
    pub fn publish(&self, name: &str, payload: &(impl Serialize + ?Sized)) -> Result<()> {
        self.publish_with(name, payload, &PublishOptions::new())
    }

    /// Publishes an event with options, as [`publish`](EventPublisher::publish).
    ///
    /// # Errors
    ///
    /// Fails as [`publish`](EventPublisher::publish) does.
    pub fn publish_with(
        &self,
        name: &str,
        payload: &(impl Serialize + ?Sized),
        options: &PublishOptions,
    ) -> Result<()> {
        self.publish_async_with(name, payload, options)?.wait()
    }

    /// Publishes an event and returns before it is confirmed, so that thousands can be
    /// under way. Wait for the confirm through the [`PendingConfirm`].
    ///
    /// Blocks only while the outgoing queue is full, or 16,384 messages of this connection are
    /// unconfirmed, at most the timeout, which runs from now. Events of one thread are sent
    /// in order.
    ///
    /// # Errors
    ///
    /// Fails if the event was not sent: encoding, names, the timeout, a closed broker.
    pub fn publish_async(
        &self,
        name: &str,
        payload: &(impl Serialize + ?Sized),
    ) -> Result<PendingConfirm> {
        self.publish_async_with(name, payload, &PublishOptions::new())
    }

    /// Publishes an event with options and returns before it is confirmed, as
    /// [`publish_async`](EventPublisher::publish_async).
    ///
    /// # Errors
    ///
    /// Fails as [`publish_async`](EventPublisher::publish_async) does.
    pub fn publish_async_with(
        &self,
        name: &str,
        payload: &(impl Serialize + ?Sized),
        options: &PublishOptions,
    ) -> Result<PendingConfirm> {
        let options = &options.request;
        check_event(name)?;
        let not_sent = |error: Error| error.about(format!("cannot publish the event {name}"));
        let timeout = options.timeout.unwrap_or(self.timeout);
        let deadline = deadline::after(timeout);
        let mut message = ServiceMessage {
            headers: options.own_headers(),
            ..ServiceMessage::new(&*self.source, "", name, payload)
        };
        if let Some(id) = &options.message_id {
            check_short_string("message id", id)?;
            message.message_id = id.as_str().into();
        }
        let body = message.encode().map_err(not_sent)?;
        let send_state = Arc::new(SendState::until(deadline));
        let publication = Publication {
            properties: Properties {
                persistent: options.persistent.unwrap_or(true),
                message_id: Some(message.message_id.into_owned()),
                correlation_id: Some(message.correlation_id.into_owned()),
                ..Properties::json()
            },
            mandatory: self.mandatory,
            send_state: Some(Arc::clone(&send_state)),
            idempotent: options.idempotent,
            ..Publication::new(EVENT_EXCHANGE, name, body)
        };
        let bytes = publication.body.len();
        let confirmation = self
            .broker
            .publish_confirmed(publication, deadline)
            .map_err(not_sent)?;
        let sent_to = SendTarget::Event {
            name: name.to_owned(),
        };
        Ok(PendingConfirm::new(
            &self.broker,
            sent_to,
            confirmation,
            send_state,
            timeout,
            bytes,
        ))
    }

    /// Publishes many events of one name, all under way at once, and blocks until each is
    /// confirmed, at most the timeout for all of them. Returns the outcome of each, in order.
    ///
    /// ```
    /// # use coney::{Broker, EventPublisher};
    /// let publisher = EventPublisher::new(&Broker::memory(), "order-service")?;
    /// let orders = [1, 2, 3];
    /// for outcome in publisher.publish_batch("order.created", &orders) {
    ///     outcome?;
    /// }
    /// # Ok::<(), coney::Error>(())
    /// ```
    #[must_use = "an event whose outcome is an error is lost"]
    pub fn publish_batch<'p, T: Serialize + 'p>(
        &self,
        name: &str,
        payloads: impl IntoIterator<Item = &'p T>,
    ) -> Vec<Result<()>> {
        let deadline = deadline::after(self.timeout);
        let publish = |payload| {
            let left = deadline.saturating_duration_since(Instant::now());
            self.publish_async_with(name, payload, &PublishOptions::new().timeout(left))
        };
        let pending: Vec<_> = payloads.into_iter().map(publish).collect();
        let outcomes = pending.into_iter();
        outcomes.map(|pending| pending?.wait()).collect()
    }
}
