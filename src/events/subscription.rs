//! Subscriptions: the events, the handler, and how the events are shared.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::consumer::{
    Context, Handler, HandlerError, HandlerResult, LimitSettings, PauseOnFailures, of_event,
    of_raw_event,
};
use crate::message::Json;
use crate::resilience::RateLimit;

/// A subscription to events: a name pattern, a handler, and how the events are shared. For
/// [`EventSubscriberBuilder::subscribe`](crate::events::EventSubscriberBuilder::subscribe).
///
/// | shared as | receivers of an event | queue | while all are offline |
/// | --- | --- | --- | --- |
/// | group (default) | one of the service's instances | `event.SERVICE.NAME` | the event waits |
/// | [broadcast](Subscription::broadcast) | every instance | one for each instance | the event is missed |
/// | [singleton](Subscription::singleton) | one subscriber in the whole system | `singleton.NAME` | the event waits |
///
/// `NAME` is the pattern unless a [name](Subscription::named) is given. A durable queue
/// goes on collecting when the program no longer subscribes, and keeps its old pattern
/// beside a new one: delete it then.
///
/// ```
/// use coney::{Broker, EventSubscriber, Subscription};
///
/// let subscriber = EventSubscriber::builder(&Broker::memory(), "billing")
///     .subscribe(
///         Subscription::listen("order.*", |order: u64| println!("order {order}"))
///             .ordered_by(|order: &u64| *order),
///     )
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "a subscription does nothing until it is given to a subscriber"]
pub struct Subscription<T = RawEvent> {
    pub(super) untyped: Untyped,
    /// The key function reads the same type as the handler.
    event: PhantomData<fn(T)>,
}

/// The event type of a subscription whose handler takes the payload as JSON text: see
/// [`Subscription::to_raw`].
#[derive(Debug)]
pub enum RawEvent {}

/// A subscription without the type of its events.
pub(super) struct Untyped {
    pub(super) pattern: String,
    pub(super) name: Option<String>,
    pub(super) handler: Handler,
    pub(super) scope: DeliveryScope,
    pub(super) key: Option<KeyOf>,
    /// The retry delays, if they are not those of the subscriber.
    pub(super) retry_delays: Option<Vec<Duration>>,
    pub(super) limit: Option<RateLimit>,
    /// The largest number of its events that run at the same time.
    pub(super) at_most: Option<usize>,
    /// The settings of its pause, if they are not those of the subscriber.
    pub(super) pause_on_failures: Option<PauseOnFailures>,
}

/// The receivers of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryScope {
    Group,
    Broadcast,
    Singleton,
}

/// The function that returns the key of an event; events with the same key stay in order.
pub(super) type KeyOf = Box<dyn Fn(Json<'_>) -> Option<String> + Send + Sync>;

impl<T: DeserializeOwned> Subscription<T> {
    /// Subscribes to the events whose names match `pattern`: dotted words, `*` for one word,
    /// `#` for any number. The handler takes the decoded payload; if it returns an error, the
    /// event is retried.
    pub fn to<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(T) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_event(move |_, event| handler(event)))
    }

    /// Subscribes as [`to`](Subscription::to), with a handler that cannot fail.
    pub fn listen<F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(T) + Send + Sync + 'static,
    {
        Self::listen_with_context(pattern, move |_, event| handler(event))
    }

    /// Subscribes as [`to`](Subscription::to), with a handler that also takes the [`Context`]:
    /// the event's name, its id, the publishing service, the attempt.
    pub fn to_with_context<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_event(handler))
    }

    /// Subscribes as [`listen`](Subscription::listen), with a handler that also takes the
    /// [`Context`].
    pub fn listen_with_context<F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) + Send + Sync + 'static,
    {
        let handler = move |context: &Context<'_>, event| -> HandlerResult {
            handler(context, event);
            Ok(())
        };
        Self::new(pattern, of_event(handler))
    }

    /// Handles events with the same key one after the other, in the order in which they
    /// were published, while events with other keys run at the same time. An event that fails
    /// is retried before the next with its key begins, and holds up no other key.
    ///
    /// The order holds over all instances: one instance at a time gets the
    /// events of a group, and the next takes over when it ends. An event that waits for its turn
    /// stays unacknowledged, so no more than the
    /// [prefetch](crate::events::EventSubscriberBuilder::prefetch) count can wait: raise it
    /// where keys fail for long. After the last attempt an event is dead-lettered, and the next
    /// with its key begins. (One exception: an event that the dead-letter queue refuses returns
    /// behind its successors.) Events that do not decode share one key. The ordered
    /// subscriptions of a subscriber share a second connection, whose changes
    /// [`on_state_change`](crate::BrokerBuilder::on_state_change) does not report. The queue is
    /// a quorum queue; a classic queue of the same name must be deleted first.
    ///
    /// The function takes what the handler takes; another type does not compile:
    ///
    /// ```compile_fail
    /// use coney::Subscription;
    ///
    /// let _ = Subscription::listen("order.*", |order: u64| drop(order))
    ///     .ordered_by(|order: &String| order.clone());
    /// ```
    pub fn ordered_by<K, F>(mut self, key: F) -> Self
    where
        F: Fn(&T) -> K + Send + Sync + 'static,
        K: fmt::Display,
    {
        self.untyped.key = Some(Box::new(move |payload| {
            let event = payload.decode().ok()?;
            Some(key(&event).to_string())
        }));
        self
    }
}

impl Subscription<RawEvent> {
    /// Subscribes as [`to`](Subscription::to), with a handler that takes the payload as JSON
    /// text.
    pub fn to_raw<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_raw_event(handler))
    }

    /// Handles events with the same key in order, as [`ordered_by`](Subscription::ordered_by).
    /// The function takes the payload as JSON text.
    pub fn ordered_by_raw<K, F>(mut self, key: F) -> Self
    where
        F: Fn(&str) -> K + Send + Sync + 'static,
        K: fmt::Display,
    {
        self.untyped.key = Some(Box::new(move |payload| {
            Some(key(payload.as_str()).to_string())
        }));
        self
    }
}

impl<T> Subscription<T> {
    fn new(pattern: &str, handler: Handler) -> Self {
        Self {
            untyped: Untyped {
                pattern: pattern.to_owned(),
                name: None,
                handler,
                scope: DeliveryScope::Group,
                key: None,
                retry_delays: None,
                limit: None,
                at_most: None,
                pause_on_failures: None,
            },
            event: PhantomData,
        }
    }

    /// Sets the name in the queue's name. Needed for two subscriptions of one service to the
    /// same pattern. Defaults to the pattern.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.untyped.name = Some(name.into());
        self
    }

    /// Delivers every event that is published while an instance runs and is connected to that
    /// instance. A failed event waits for its next attempt in this process.
    pub fn broadcast(mut self) -> Self {
        self.untyped.scope = DeliveryScope::Broadcast;
        self
    }

    /// Sets the rate at which the handler gets events. An event over it waits for its turn, in the
    /// broker as one that is retried does, or in this process if events are
    /// [ordered](Subscription::ordered_by) or [broadcast](Subscription::broadcast). It loses no
    /// attempt by that. Defaults to no limit.
    ///
    /// A limit that is shared with other processes needs
    /// [`shared_by`](RateLimit::shared_by). An invalid one is an error of
    /// [`start`](crate::events::EventSubscriberBuilder::start).
    ///
    /// ```
    /// use coney::resilience::RateLimit;
    /// use coney::{Broker, EventSubscriber, Subscription};
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "mailer")
    ///     .subscribe(
    ///         Subscription::listen("order.paid", |order: u64| println!("a mail for {order}"))
    ///             .limit(RateLimit::per_second(20)),
    ///     )
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn limit(mut self, rate: RateLimit) -> Self {
        self.untyped.limit = Some(rate);
        self
    }

    /// Delivers every event to one subscriber in the whole system, of whatever service; when
    /// it ends, the next takes over. Subscriptions with the same name compete.
    pub fn singleton(mut self) -> Self {
        self.untyped.scope = DeliveryScope::Singleton;
        self
    }
}

impl<T> Subscription<T> {
    /// Sets the delays between the attempts at an event of this subscription, as
    /// [`EventSubscriberBuilder::retry_delays`](crate::events::EventSubscriberBuilder::retry_delays)
    /// does for all subscriptions. Defaults to those.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::{Broker, EventSubscriber, Subscription};
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "billing")
    ///     .subscribe(
    ///         Subscription::to("order.paid", |order: u64| Err::<(), _>(format!("no bill for {order}")))
    ///             .retry_delays([60, 600, 3_600].map(Duration::from_secs)),
    ///     )
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn retry_delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.untyped.retry_delays = Some(delays.into_iter().collect());
        self
    }

    /// Sets the number of events of this subscription that the subscriber handles at the same time,
    /// so that its other subscriptions find free workers. Events over it wait, and nothing is
    /// refused. At least 1. Defaults to no bound but the number of workers.
    ///
    /// The broker sends at most twice as many ahead; more would wait here instead of going to other
    /// instances. Of an [ordered](Subscription::ordered_by), a [singleton](Subscription::singleton)
    /// or a [broadcast](Subscription::broadcast) subscription it sends the whole
    /// [prefetch](crate::events::EventSubscriberBuilder::prefetch), as no other instance could
    /// handle them. An event that may be poison runs beside them, one at a time.
    ///
    /// ```
    /// use coney::{Broker, EventSubscriber, Subscription};
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "archive")
    ///     .listen("order.paid", |order: u64| println!("order {order} is paid"))
    ///     .subscribe(
    ///         Subscription::listen("scan.*", |scan: String| println!("text of {scan}")).at_most(2),
    ///     )
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn at_most(mut self, events: usize) -> Self {
        self.untyped.at_most = Some(events);
        self
    }

    /// Sets the pause of this subscription when too many attempts fail, as
    /// [`EventSubscriberBuilder::pause_on_failures`](crate::events::EventSubscriberBuilder::pause_on_failures)
    /// does for all subscriptions. Defaults to that.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::server::PauseOnFailures;
    /// use coney::{Broker, EventSubscriber, Subscription};
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "mailer")
    ///     .listen("order.created", |order: u64| println!("order {order}"))
    ///     .subscribe(
    ///         Subscription::to("order.paid", |_: u64| Err::<(), _>("no network"))
    ///             .pause_on_failures(PauseOnFailures::new().pause_for(Duration::from_secs(60))),
    ///     )
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn pause_on_failures(mut self, settings: PauseOnFailures) -> Self {
        self.untyped.pause_on_failures = Some(settings);
        self
    }
}

impl Untyped {
    /// Returns true if failed events wait in this process.
    pub(super) fn is_held(&self) -> bool {
        self.key.is_some() || self.scope == DeliveryScope::Broadcast
    }

    /// Returns the settings of the limit.
    pub(super) fn limit(&self) -> Option<LimitSettings> {
        let rate = self.limit.clone()?;
        Some(LimitSettings { rate, key: None })
    }

    /// Returns the name in the queue's name.
    pub(super) fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.pattern)
    }
}

impl<T> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.untyped.fmt(f)
    }
}

impl fmt::Debug for Untyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("pattern", &self.pattern)
            .field("name", &self.label())
            .field("sharing", &self.scope)
            .field("ordered", &self.key.is_some())
            .finish_non_exhaustive()
    }
}
