//! The options and subscriptions of a subscriber.

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
use crate::consumer::{
    Context, HandlerError, HandlerLayer, HandlerReply, HandlerResult, LONGEST_HELD, NextHandler,
    Options, ReplyStore, check_number_of_delays, check_retry_delays,
};
use crate::error::{Error, ErrorKind, Result};
use crate::topology;
use crate::transport::Broker;

/// The options and subscriptions of an [`EventSubscriber`]. Made by
/// [`EventSubscriber::builder`].
///
/// Handlers run on the subscriber's workers, several at a time, so they must be `Sync`.
/// An event whose handler returns an error, or panics, is retried after growing
/// delays, and kept among the [`DeadLetters`](crate::DeadLetters) after the last attempt. A
/// handler owns its event: take `String`, not `&str`.
#[must_use = "a subscriber does nothing until it is started"]
pub struct EventSubscriberBuilder {
    pub(super) broker: Broker,
    pub(super) service: String,
    pub(super) subscriptions: Vec<Untyped>,
    pub(super) options: Options,
}

impl EventSubscriber {
    /// Returns the options of a subscriber of `service`.
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

    /// Subscribes to the events whose names match `pattern` (dotted words, `*` for one word,
    /// `#` for any number), as a group: one of the service's instances gets each.
    ///
    /// ```
    /// # use coney::{Broker, EventSubscriber, HandlerResult};
    /// fn ship(order: u64) -> HandlerResult {
    ///     println!("shipping order {order}");
    ///     Ok(())
    /// }
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "shipping")
    ///     .on("order.paid", ship)
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

    /// Subscribes as [`on`](EventSubscriberBuilder::on), with a handler that cannot fail.
    ///
    /// ```
    /// # use coney::{Broker, EventSubscriber};
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "notification-service")
    ///     .listen("order.created", |order: u64| println!("thank you for order {order}"))
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn listen<T, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(T) + Send + Sync + 'static,
        T: DeserializeOwned,
    {
        self.subscribe(Subscription::listen(pattern, handler))
    }

    /// Subscribes as [`on`](EventSubscriberBuilder::on), with a handler that also takes the
    /// event's [`Context`].
    pub fn on_with_context<T, E, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) -> std::result::Result<(), E> + Send + Sync + 'static,
        T: DeserializeOwned,
        E: Into<HandlerError>,
    {
        self.subscribe(Subscription::to_with_context(pattern, handler))
    }

    /// Subscribes as [`listen`](EventSubscriberBuilder::listen), with a handler that also takes the
    /// event's [`Context`].
    pub fn listen_with_context<T, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) + Send + Sync + 'static,
        T: DeserializeOwned,
    {
        self.subscribe(Subscription::listen_with_context(pattern, handler))
    }

    /// Subscribes as [`on`](EventSubscriberBuilder::on), with a handler that takes the payload
    /// as JSON text.
    pub fn on_raw<E, F>(self, pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> std::result::Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        self.subscribe(Subscription::to_raw(pattern, handler))
    }

    /// Adds a [`Subscription`]: broadcast, singleton, named or in order.
    pub fn subscribe<T>(mut self, subscription: Subscription<T>) -> Self {
        self.subscriptions.push(subscription.untyped);
        self
    }

    /// Sets the number of worker threads that run the handlers of all subscriptions. Defaults
    /// to 10.
    pub fn workers(mut self, workers: usize) -> Self {
        self.options.load.workers = workers.into();
        self
    }

    /// Sets the number of unacknowledged events of each subscription that the broker sends
    /// ahead. Defaults to 10.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.options.load.prefetch = Some(prefetch);
        self
    }

    /// Sets the longest time for which dropping the subscriber waits for running handlers.
    /// Defaults to 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.options.shutdown_timeout = timeout;
        self
    }

    /// Sets the delays before the second attempt at a failed event, the third, and so on; after
    /// the last attempt the event is dead-lettered. Defaults to 1 s, 5 s, 25 s and 125 s, that
    /// is, five attempts. An empty list means one attempt.
    ///
    /// Events of a group, or of a singleton, wait in queues of the broker,
    /// `coney.delay.MILLISECONDS`, which all services share; up to a tenth of each delay is cut off
    /// at random. Those that are [ordered](Subscription::ordered_by) or
    /// [broadcast](Subscription::broadcast) wait in this process, in their place, and no delay
    /// may be longer than 25 minutes then; their attempts are counted anew after another instance has taken over.
    pub fn retry_delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.options.retry_delays = delays.into_iter().collect();
        self
    }

    /// Sets the number of redeliveries of an event whose worker process died. One more, and the
    /// event is dead-lettered without being handled. Defaults to 5.
    ///
    /// Only events that had begun count. A redelivered event is moved to the queue
    /// `QUEUE.suspect`, from which each process handles one at a time; an
    /// [ordered](Subscription::ordered_by) event keeps its place, is handled while no other
    /// redelivered event is, and leaves a mark in that queue meanwhile.
    pub fn redelivery_limit(mut self, redeliveries: u32) -> Self {
        self.options.redelivery_limit = redeliveries;
        self
    }

    /// Skips an event that the subscription has handled in the last `ttl`. While the store does
    /// not answer, no event is handled: events wait for the longest of the retry delays,
    /// ordered and broadcast ones in this process, and no attempt is used up. Defaults to no deduplication.
    pub fn deduplicate(mut self, store: impl ReplyStore + 'static, ttl: Duration) -> Self {
        self.options.deduplication = Some((Arc::new(store), ttl));
        self
    }

    /// Sets the time after which another worker may begin with an event whose worker process
    /// died. While a handler runs, its claim is renewed every third of this. Defaults to 60 s.
    pub fn deduplication_lease(mut self, lease: Duration) -> Self {
        self.options.deduplication_lease = lease;
        self
    }

    /// Sets the broker's `consumer_timeout`, as
    /// [`ServiceServerBuilder::consumer_timeout`](crate::server::ServiceServerBuilder::consumer_timeout).
    /// Defaults to 30 min.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.options.consumer_timeout = timeout;
        self
    }

    /// Sets the client that [`Context::client`] returns. Defaults to one with the default
    /// options on the subscriber's broker, created when it is first needed.
    pub fn client(mut self, client: ServiceClient) -> Self {
        self.options.client = Some(client);
        self
    }

    /// Adds a layer around the handlers of all subscriptions, as
    /// [`ServiceServerBuilder::layer`](crate::server::ServiceServerBuilder::layer) does: the first
    /// one added is the outermost. It sees every attempt at an event, and no event that was
    /// [handled before](EventSubscriberBuilder::deduplicate) or cannot be read. Defaults to no
    /// layers.
    ///
    /// ```
    /// # use coney::{Broker, EventSubscriber};
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "billing")
    ///     .listen("order.created", |order: u64| println!("a bill for {order}"))
    ///     .layer(|context, next| {
    ///         println!("attempt {} at {}", context.attempt(), context.action());
    ///         next.run()
    ///     })
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn layer<F>(self, layer: F) -> Self
    where
        F: Fn(&Context<'_>, NextHandler<'_>) -> HandlerResult<HandlerReply> + Send + Sync + 'static,
    {
        self.layer_impl(layer)
    }

    /// Adds a layer as [`layer`](EventSubscriberBuilder::layer) does, which is a value of a type
    /// that implements [`HandlerLayer`](crate::server::HandlerLayer).
    pub fn layer_impl(mut self, layer: impl HandlerLayer) -> Self {
        self.options.layers.push(Arc::new(layer));
        self
    }

    /// Sets the names of the headers of an event that the calls, commands and batches of its
    /// handler pass on, as
    /// [`ServiceServerBuilder::propagate`](crate::server::ServiceServerBuilder::propagate) does for
    /// requests. Events that a handler publishes do not get them. Defaults to none.
    pub fn propagate<N: Into<String>>(mut self, headers: impl IntoIterator<Item = N>) -> Self {
        self.options.propagate = headers.into_iter().map(Into::into).collect();
        self
    }

    /// Starts the workers, declares the queues of the subscriptions, and consumes. Blocks until
    /// the broker has answered, at most 20 s for each subscription, 10 s for its queue and 10 s for
    /// the suspect queue beside it; when it returns, events are being handled. If a subscription is
    /// ordered, it makes another connection, which may take as long as the first one. A suspect
    /// queue that cannot be consumed is logged; it is an error only for an ordered subscription.
    ///
    /// Keep the returned subscriber: dropping it shuts it down.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for invalid names and patterns, two
    /// subscriptions with one queue, no workers, invalid delays or limits, or one of coney's own
    /// headers to be passed on; [`ErrorKind::Io`] if a thread cannot be started;
    /// [`ErrorKind::Broker`] if the broker refuses, [`ErrorKind::TimedOut`] if it does not
    /// answer, [`ErrorKind::Closed`] after the broker was closed, [`ErrorKind::Connect`] if
    /// the second connection cannot be made.
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
        for subscription in self.subscriptions.iter().filter(|it| it.is_held()) {
            let delays = subscription.retry_delays.as_ref();
            let mut delays = delays.unwrap_or(&self.options.retry_delays).iter();
            if delays.any(|delay| *delay > LONGEST_HELD) {
                return invalid(
                    "ordered and broadcast events wait unacknowledged: no delay of retry_delays \
                     may be longer than 25 minutes",
                );
            }
        }
        self.options.check(&self.service)?;
        let own = self
            .subscriptions
            .iter()
            .filter_map(|it| it.retry_delays.as_ref());
        let all = own.chain([&self.options.retry_delays]).flatten();
        check_number_of_delays(&self.service, all)?;
        let mut queues = HashSet::new();
        for subscription in &self.subscriptions {
            if let Some(delays) = &subscription.retry_delays {
                check_retry_delays(&self.service, delays)?;
            }
            check_subscription("pattern", &subscription.pattern)?;
            if let Some(limit) = subscription.limit() {
                let (service, name) = (&self.service, subscription.label());
                limit.check(format_args!("{service}'s subscription {name:?}"), false)?;
            }
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

    /// Returns the name of a subscription's queue.
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
            .field("workers", &self.options.load.workers)
            .finish_non_exhaustive()
    }
}
