use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::subscription::DeliveryScope;
use super::subscription::Untyped;
use super::{EventSubscriber, Subscription};
use crate::base::name::{check_service, check_subscription};
use crate::client::ServiceClient;
use crate::consumer::{Context, HandlerError, Options, ReplyStore};
use crate::error::{Error, ErrorKind, Result};
use crate::topology;
use crate::transport::Broker;

/// RabbitMQ gives up a consumer that has not acknowledged for 30 minutes.
const LONGEST_HELD: Duration = Duration::from_secs(25 * 60);

/// Options and subscriptions for an [`EventSubscriber`]; made by
/// [`EventSubscriber::builder`].
///
/// Handlers run on the subscriber's workers, several at a time, so they must be `Sync`.
/// An event whose handler returns an error, or panics, is tried again after growing
/// delays, and kept among the [`DeadLetters`](crate::DeadLetters) in the end.
///
/// # When it does not compile
///
/// A closure whose error type cannot be inferred names it: end with
/// `Ok::<_, HandlerError>(())`. A handler owns its event: take `String`, not `&str`.
#[must_use = "a subscriber does nothing until it is started"]
pub struct EventSubscriberBuilder {
    pub(super) broker: Broker,
    pub(super) service: String,
    pub(super) subscriptions: Vec<Untyped>,
    pub(super) options: Options,
}

impl EventSubscriber {
    /// Options and subscriptions for a subscriber of `service`.
    pub fn builder(broker: &Broker, service: &str) -> EventSubscriberBuilder {
        EventSubscriberBuilder::new(broker, service)
    }
}

impl EventSubscriberBuilder {
    pub(super) fn new(broker: &Broker, service: &str) -> Self {
        Self {
            broker: broker.clone(),
            service: service.to_owned(),
            subscriptions: Vec::new(),
            options: Options::default(),
        }
    }

    /// Subscribes to the events whose names fit `pattern` (dotted words, `*` for one word,
    /// `#` for any number), as a group: one of the service's instances gets each.
    ///
    /// ```
    /// # use coney::{Broker, EventSubscriber};
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "notification-service")
    ///     .on("order.created", |order: u64| {
    ///         println!("thank you for order {order}");
    ///         Ok::<_, String>(())
    ///     })
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn on<T, E, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(T) -> std::result::Result<(), E> + Send + Sync + 'static,
        T: DeserializeOwned,
        E: Into<HandlerError>,
    {
        self.subscribe(Subscription::to(pattern, handler))
    }

    /// The same with a handler that also gets the event's [`Context`].
    pub fn on_with<T, E, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) -> std::result::Result<(), E> + Send + Sync + 'static,
        T: DeserializeOwned,
        E: Into<HandlerError>,
    {
        self.subscribe(Subscription::to_with(pattern, handler))
    }

    /// The same with a handler that gets the payload as JSON text.
    pub fn on_raw<E, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> std::result::Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        self.subscribe(Subscription::to_raw(pattern, handler))
    }

    /// Subscribes as a [`Subscription`] says: shared otherwise, or in order.
    pub fn subscribe<T>(mut self, subscription: Subscription<T>) -> Self {
        self.subscriptions.push(subscription.untyped);
        self
    }

    /// How many worker threads run the handlers of all subscriptions. Default: 10.
    pub fn workers(mut self, workers: usize) -> Self {
        self.options.workers = workers;
        self
    }

    /// How many events of each subscription are fetched ahead of their acknowledgement:
    /// what a subscriber that falls behind holds at most. Default: 10.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.options.prefetch = prefetch;
        self
    }

    /// How long dropping the subscriber may wait for running handlers. Default: 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.options.shutdown_timeout = timeout;
        self
    }

    /// How long an event whose handler has failed waits before its second attempt, its
    /// third, and so on; after the last it goes to the dead letters. Default: 1 s, 5 s,
    /// 25 s and 125 s, that is, five attempts. None means one.
    ///
    /// Events of a group, or of a singleton, wait in queues of the broker,
    /// `QUEUE.retry.MILLISECONDS`. Those that are [ordered](Subscription::ordered_by) or
    /// [broadcast](Subscription::broadcast) wait in this process, in their place, at most 25
    /// minutes; their attempts are counted anew after a hand-over to another instance.
    pub fn retry_delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.options.retry_delays = delays.into_iter().collect();
        self
    }

    /// The number of times that an event may come back because its worker died. One more
    /// goes to the dead letters unopened. Default: 5.
    ///
    /// Only what had begun counts. An event that comes back is moved to the queue
    /// `QUEUE.suspect`, from which each process handles one at a time; an
    /// [ordered](Subscription::ordered_by) one keeps its place, is handled while no other
    /// such event is, and leaves a mark in that queue meanwhile.
    pub fn redelivery_limit(mut self, redeliveries: u32) -> Self {
        self.options.redelivery_limit = redeliveries;
        self
    }

    /// Handles an event that a subscription has handled before, in the last `ttl`, no
    /// second time. While the store is away nothing is handled: events wait in the longest of
    /// the retry queues, ordered and broadcast ones in this process, at no attempt's cost.
    /// Default: every event that is delivered is handled.
    pub fn deduplicate(mut self, store: Arc<dyn ReplyStore>, ttl: Duration) -> Self {
        self.options.deduplication = Some((store, ttl));
        self
    }

    /// Sets after how long another worker may begin with an event whose worker has died.
    /// While a handler runs, its claim is renewed every third of it. Defaults to 60 s.
    pub fn deduplication_lease(mut self, lease: Duration) -> Self {
        self.options.deduplication_lease = lease;
        self
    }

    /// Sets how long the broker lets a delivery be unacknowledged, as
    /// [`ServiceServerBuilder::consumer_timeout`](crate::ServiceServerBuilder::consumer_timeout).
    /// Defaults to 30 min.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.options.consumer_timeout = timeout;
        self
    }

    /// The client that [`Context::client`] gives out. Default: one with the default
    /// options on the subscriber's broker, made when it is first needed.
    pub fn client(mut self, client: ServiceClient) -> Self {
        self.options.client = Some(client);
        self
    }

    /// Starts the workers, declares what the subscriptions need, and consumes. Blocks until
    /// the broker has agreed, at most 10 s for each subscription; when it returns, events are
    /// being handled. Where some are ordered, it makes another connection.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for names and patterns that do not fit, two
    /// subscriptions with one queue, no workers, or delays that are no delays;
    /// [`ErrorKind::Broker`] if the broker refuses, [`ErrorKind::TimedOut`] if it does not
    /// answer, [`ErrorKind::Closed`] after the broker was closed, [`ErrorKind::Connect`] if
    /// there is to be another connection and cannot.
    ///
    /// Keep what it returns: dropping it shuts the subscriber down.
    pub fn start(self) -> Result<EventSubscriber> {
        check_service(&self.service)?;
        let invalid = |fault: &str| {
            let service = &self.service;
            Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("{service}: {fault}"),
            ))
        };
        if self.service.contains('.') {
            return invalid(
                "a service that subscribes has no dot in its name, as its queues' names do",
            );
        }
        let is_held = |it: &Untyped| it.key.is_some() || it.scope == DeliveryScope::Broadcast;
        let too_long = self
            .options
            .retry_delays
            .iter()
            .any(|delay| *delay > LONGEST_HELD);
        if too_long && self.subscriptions.iter().any(is_held) {
            return invalid(
                "what is ordered or broadcast waits unacknowledged, at most 25 minutes",
            );
        }
        self.options.check(&self.service)?;
        let mut queues = HashSet::new();
        for subscription in &self.subscriptions {
            check_subscription("pattern", &subscription.pattern)?;
            let queue = self.queue(subscription);
            check_subscription("name of a subscription's queue", &queue)?;
            if !queues.insert(queue.clone()) {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "{}: two subscriptions would share the queue {queue:?}; give one of them \
                         another name",
                        self.service
                    ),
                ));
            }
        }
        EventSubscriber::start(self)
    }

    /// The name of a subscription's queue.
    pub(super) fn queue(&self, subscription: &Untyped) -> String {
        let (service, name) = (&self.service, subscription.label());
        match subscription.scope {
            DeliveryScope::Group => topology::group_queue(service, name, None),
            DeliveryScope::Singleton => topology::singleton_queue(name),
            DeliveryScope::Broadcast => {
                let instance = format!("{:016x}", fastrand::u64(..));
                topology::group_queue(service, name, Some(&instance))
            }
        }
    }
}

impl fmt::Debug for EventSubscriberBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSubscriberBuilder")
            .field("service", &self.service)
            .field("subscriptions", &self.subscriptions)
            .field("workers", &self.options.workers)
            .field("prefetch", &self.options.prefetch)
            .finish_non_exhaustive()
    }
}
