use std::fmt;

use serde::de::DeserializeOwned;

use crate::consume::{Context, Handler, HandlerError, of_event, of_raw_event};
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
pub struct Subscription {
    pub(super) pattern: String,
    pub(super) name: Option<String>,
    pub(super) handler: Handler,
    pub(super) sharing: Sharing,
    pub(super) key: Option<KeyOf>,
}

/// Who gets an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    Group,
    Broadcast,
    Singleton,
}

/// What events must be in order with: those of the same key.
pub(super) type KeyOf = Box<dyn Fn(Json<'_>) -> Option<String> + Send + Sync>;

impl Subscription {
    /// Events whose names fit `pattern`: dotted words, `*` for one word, `#` for any
    /// number. The handler gets the decoded payload; an error that displays has the
    /// event tried again later.
    pub fn to<T, E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(T) -> Result<(), E> + Send + Sync + 'static,
        T: DeserializeOwned,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_event(move |_, event| handler(event)))
    }

    /// The same with a handler that also gets the [`Context`]: the event's name, its id,
    /// who published it, the attempt.
    pub fn to_with<T, E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, T) -> Result<(), E> + Send + Sync + 'static,
        T: DeserializeOwned,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_event(handler))
    }

    /// The same with a handler that gets the payload as JSON text.
    pub fn to_raw<E, F>(pattern: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> Result<(), E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        Self::new(pattern, of_raw_event(handler))
    }

    fn new(pattern: &str, handler: Handler) -> Self {
        Self {
            pattern: pattern.to_owned(),
            name: None,
            handler,
            sharing: Sharing::Group,
            key: None,
        }
    }

    /// A name for its queue. Needed for two subscriptions of one service to the same
    /// pattern. Default: the pattern.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Every instance gets every event that is published while it runs and is connected.
    /// What fails waits for its next attempt in this process.
    pub fn broadcast(mut self) -> Self {
        self.sharing = Sharing::Broadcast;
        self
    }

    /// One subscriber in the whole system gets every event, whatever service it is of;
    /// when it goes, the next one does. All that give the same name are of one kind.
    pub fn singleton(mut self) -> Self {
        self.sharing = Sharing::Singleton;
        self
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
    /// the dead letters do not take comes back behind its successors.) Events that the function
    /// cannot read share one key. The order has a connection of its own, of which
    /// [`on_state_change`](crate::BrokerBuilder::on_state_change) does not tell. The queue is a quorum queue, which the broker does not
    /// make of one that exists: delete that first.
    pub fn ordered_by<T, K, F>(mut self, key: F) -> Self
    where
        F: Fn(&T) -> K + Send + Sync + 'static,
        T: DeserializeOwned,
        K: fmt::Display,
    {
        self.key = Some(Box::new(move |payload| {
            let event = payload.decode().ok()?;
            Some(key(&event).to_string())
        }));
        self
    }

    /// What its queue is named after.
    pub(super) fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.pattern)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("pattern", &self.pattern)
            .field("name", &self.label())
            .field("sharing", &self.sharing)
            .field("ordered", &self.key.is_some())
            .finish_non_exhaustive()
    }
}
