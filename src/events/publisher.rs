use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::deadline;
use crate::base::name::{check_event, check_service, check_short_string};
use crate::client::{CallOptions, PendingConfirm, SendTarget};
use crate::error::{Error, Result};
use crate::message::ServiceMessage;
use crate::topology::EVENT_EXCHANGE;
use crate::transport::{Broker, Properties, Publication, SendState};

/// Publishes events: what has happened, told to whoever has subscribed, now and, where
/// a [group](crate::Subscription) shares a queue, later.
///
/// Cheap to clone and free to share between threads. Events go over the connection's
/// confirmed link, as commands do; no threads of its own.
///
/// ```
/// use coney::{Broker, EventPublisher, EventSubscriber};
///
/// let broker = Broker::memory();
/// # let (told, mails) = std::sync::mpsc::channel();
/// let subscriber = EventSubscriber::builder(&broker, "notification-service")
///     .on("order.created", move |order: u64| told.send(order))
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
    require_subscriber: bool,
}

impl EventPublisher {
    /// A publisher with the default options. `source` is the service that publishes, as
    /// others see it in `source_service`. Does not block.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a name that does
    /// not fit.
    pub fn new(broker: &Broker, source: &str) -> Result<Self> {
        check_service(source)?;
        Ok(Self {
            broker: broker.clone(),
            source: source.to_owned(),
            timeout: Duration::from_secs(5),
            require_subscriber: false,
        })
    }

    /// How long publishing may take where its options do not say. Default: 5 s.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether an event that nobody has subscribed to is an error,
    /// [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute). Default: no, it is dropped.
    pub fn mandatory(mut self, required: bool) -> Self {
        self.require_subscriber = required;
        self
    }

    /// Publishes an event and blocks until the broker has confirmed it, that is, has
    /// it on disk in the queue of every group that has subscribed, at most the timeout.
    /// `name` is dotted words, the source first: `order.created`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) or
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) in
    /// [`Phase::Confirm`](crate::Phase::Confirm) if it is not known whether the broker has
    /// it, [`ErrorKind::Broker`](crate::ErrorKind::Broker) if it refuses; and as
    /// [`publish_async`](EventPublisher::publish_async).
    pub fn publish<T: Serialize + ?Sized>(&self, name: &str, payload: &T) -> Result<()> {
        self.publish_with(name, payload, &CallOptions::new())
    }

    /// [`publish`](EventPublisher::publish) with options: timeout, headers, message id,
    /// persistence, and whether it may be sent twice.
    ///
    /// # Errors
    ///
    /// As [`publish`](EventPublisher::publish).
    pub fn publish_with<T: Serialize + ?Sized>(
        &self,
        name: &str,
        payload: &T,
        options: &CallOptions,
    ) -> Result<()> {
        self.publish_async_with(name, payload, options)?.wait()
    }

    /// Publishes an event and returns before it is confirmed, so that thousands can be
    /// under way. The [`PendingConfirm`] tells what became of this one.
    ///
    /// Blocks only while too many wait to be sent, or 16,384 of this connection to be
    /// confirmed, at most the timeout, which runs from now. Events of one thread are sent
    /// in order.
    ///
    /// # Errors
    ///
    /// What can go wrong before it is under way: encoding, names, the timeout, a closed
    /// broker. It was not sent then.
    pub fn publish_async<T: Serialize + ?Sized>(
        &self,
        name: &str,
        payload: &T,
    ) -> Result<PendingConfirm> {
        self.publish_async_with(name, payload, &CallOptions::new())
    }

    /// [`publish_async`](EventPublisher::publish_async) with options.
    ///
    /// # Errors
    ///
    /// As [`publish_async`](EventPublisher::publish_async).
    pub fn publish_async_with<T: Serialize + ?Sized>(
        &self,
        name: &str,
        payload: &T,
        options: &CallOptions,
    ) -> Result<PendingConfirm> {
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
            mandatory: self.require_subscriber,
            send_state: Some(Arc::clone(&send_state)),
            idempotent: options.idempotent,
            ..Publication::new(EVENT_EXCHANGE, name, body)
        };
        let bytes = publication.body.len();
        let confirmation = self
            .broker
            .publish_confirmed(publication, deadline)
            .map_err(not_sent)?;
        let what = SendTarget::Event {
            name: name.to_owned(),
        };
        Ok(PendingConfirm::new(
            &self.broker,
            what,
            confirmation,
            send_state,
            timeout,
            bytes,
        ))
    }

    /// Publishes many events of one name, all under way at once, and blocks until each is
    /// confirmed, at most the timeout for all of them. Says what became of each, in order.
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
    #[must_use = "an event of which this says that it failed is lost"]
    pub fn publish_batch<'p, T: Serialize + 'p>(
        &self,
        name: &str,
        payloads: impl IntoIterator<Item = &'p T>,
    ) -> Vec<Result<()>> {
        let deadline = deadline::after(self.timeout);
        let publish = |payload| {
            let left = deadline.saturating_duration_since(Instant::now());
            self.publish_async_with(name, payload, &CallOptions::new().timeout(left))
        };
        let pending: Vec<_> = payloads.into_iter().map(publish).collect();
        let outcomes = pending.into_iter();
        outcomes.map(|pending| pending?.wait()).collect()
    }
}
