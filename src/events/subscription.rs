use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::consumer::{Context, Handler, HandlerError, of_event, of_raw_event};
use crate::message::Json;

/// What to subscribe to, who handles it, and how it is shared; for
/// [`EventSubscriberBuilder::subscribe`](crate::EventSubscriberBuilder::subscribe).
///
/// | shared as | who gets an event | queue | while everybody is offline |
/// | --- | --- | --- | --- |
/// | group (default) | one of the service's instances | `event.SERVICE.NAME` | it waits |
/// | [broadcast](Subscription::broadcast) | every instance | one of each instance's own | it is missed |
/// | [singleton](Subscription::singleton) | one in the whole system | `singleton.NAME` | it waits |
///
/// The name is the pattern unless it is [given](Subscription::named). A durable queue
/// goes on collecting when the program no longer subscribes, and keeps its old pattern
/// beside a new one: delete it then.
///
/// ```
/// use coney::{Broker, EventSubscriber, Subscription};
///
/// let subscriber = EventSubscriber::builder(&Broker::memory(), "billing")
///     .subscribe(
///         Subscription::to("order.*", |order: u64| {
///             println!("order {order}");
///             Ok::<_, String>(())
///         })
///         .ordered_by(|order: &u64| *order),
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

/// The event type of a subscription whose handler gets the payload as JSON text: see
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
}

/// Who gets an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryScope {
    Group,
    Broadcast,
    Singleton,
}

/// What events must be in order with: those of the same key.
pub(super) type KeyOf = Box<dyn Fn(Json<'_>) -> Option<String> + Send + Sync>;

impl<T: DeserializeOwned> Subscription<T> {
    /// Events whose names fit `pattern`: dotted words, `*` for one word, `#` for any
    /// number. The handler gets the decoded payload; an error that displays has the
    /// event tried again later.
    pub fn to<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(T) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_event(move |_, event| handler(event)))
    }

    /// The same with a handler that also gets the [`Context`]: the event's name, its id,
    /// who published it, the attempt.
    pub fn to_with<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_event(handler))
    }

    /// Handles events with the same key one after the other, in the order in which they
    /// were published, while others run at the same time. One that fails is tried
    /// again before the next with its key is begun, and holds up no others.
    ///
    /// The order holds over all instances, so one of them at a time gets the
    /// events of a group, and the next when it goes. An event that waits stays
    /// unacknowledged, so no more than the [prefetch](crate::EventSubscriberBuilder::prefetch)
    /// count can wait: raise it where keys fail for long. After the last attempt an event goes to
    /// the dead letters, and the next with its key is begun. (What cannot be helped: one that
    /// the dead letters do not take comes back behind its successors.) Events that do not
    /// decode share one key. The order has a connection of its own, of which
    /// [`on_state_change`](crate::BrokerBuilder::on_state_change) does not tell. The queue is a quorum queue, which the broker does not
    /// make of one that exists: delete that first.
    ///
    /// The function gets what the handler gets; another type does not compile:
    ///
    /// ```compile_fail
    /// use coney::Subscription;
    ///
    /// let _ = Subscription::to("order.*", |order: u64| Ok::<_, String>(drop(order)))
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
    /// Events as [`to`](Subscription::to), with a handler that gets the payload as JSON text.
    pub fn to_raw<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_raw_event(handler))
    }

    /// Handles events with the same key in order, as [`ordered_by`](Subscription::ordered_by).
    /// The function gets the payload as JSON text.
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
            },
            event: PhantomData,
        }
    }

    /// A name for its queue. Needed for two subscriptions of one service to the same
    /// pattern. Default: the pattern.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.untyped.name = Some(name.into());
        self
    }

    /// Every instance gets every event that is published while it runs and is connected.
    /// What fails waits for its next attempt in this process.
    pub fn broadcast(mut self) -> Self {
        self.untyped.scope = DeliveryScope::Broadcast;
        self
    }

    /// One subscriber in the whole system gets every event, whatever service it is of;
    /// when it goes, the next one does. All that give the same name are of one kind.
    pub fn singleton(mut self) -> Self {
        self.untyped.scope = DeliveryScope::Singleton;
        self
    }
}

impl Untyped {
    /// What its queue is named after.
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
