//! The settings of a subscriber's workers, and of the pause when too many attempts fail.

use std::time::Duration;

use super::EventSubscriberBuilder;
use super::subscription::Untyped;
use crate::consumer::{LONGEST_HELD, PauseOnFailures, Scaling, WorkerCount};
use crate::error::{Error, ErrorKind, Result};

impl EventSubscriberBuilder {
    /// Sets the number of worker threads that run the handlers of all subscriptions: a number, or a
    /// range within which it follows the load as [`scaling`](EventSubscriberBuilder::scaling) says.
    /// Events of an [ordered](crate::Subscription::ordered_by) subscription keep their order with
    /// any number: a key is handled by one worker at a time. Defaults to 10.
    ///
    /// ```
    /// use coney::{Broker, EventSubscriber};
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "billing")
    ///     .listen("order.*", |order: u64| println!("a bill for {order}"))
    ///     .workers(2..=32)
    ///     .start()?;
    /// assert_eq!(subscriber.load().workers, 2);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn workers(mut self, workers: impl Into<WorkerCount>) -> Self {
        self.options.load.workers = workers.into();
        self
    }

    /// Sets how the number of workers follows the load, if it is a
    /// [range](EventSubscriberBuilder::workers). Defaults to [`Scaling::new`].
    ///
    /// While all workers are busy, a thread, `coney-load-SERVICE`, counts the events that wait, in
    /// the queues and in this process; those in the queues of
    /// [broadcasts](crate::Subscription::broadcast) cannot be counted.
    pub fn scaling(mut self, scaling: Scaling) -> Self {
        self.options.load.scaling = scaling;
        self
    }

    /// Sets the number of unacknowledged events of each subscription that the broker sends
    /// ahead. Fewer than workers leaves workers idle. Defaults to the number of workers, and to at
    /// least 10 if that is fixed.
    ///
    /// With a range it is at least the present number of workers for a group, whose other instances
    /// get the rest, and at least the highest number for
    /// [ordered](crate::Subscription::ordered_by), [singleton](crate::Subscription::singleton) and
    /// [broadcast](crate::Subscription::broadcast) subscriptions. A group with a
    /// [bound](crate::Subscription::at_most) has at most twice that.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.options.load.prefetch = Some(prefetch);
        self
    }

    /// Sets the time after which a handler is overdue. It is logged once, with the name of its
    /// thread; the subscriber's [`state`](crate::EventSubscriber::state) shows it until it returns;
    /// and its worker is replaced by another, since a thread cannot be stopped, as long as no more
    /// are replaced than there may be workers. Later events with the same key, if they are
    /// [ordered](crate::Subscription::ordered_by), go on waiting for it. Defaults to none.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.options.load.handler_timeout = Some(timeout);
        self
    }

    /// Makes each subscription pause for a while when too large a share of the attempts at its
    /// events fails: a kill switch. Each has a count of its own, and the others go on. The reason is
    /// in the [state](crate::EventSubscriber::state). A subscription may have
    /// [other settings](crate::Subscription::pause_on_failures). Defaults to off.
    ///
    /// | subscription | its events during a pause |
    /// | --- | --- |
    /// | group, singleton | stay in the queue, or go to another instance |
    /// | ordered, broadcast | wait in their place, up to the prefetch in this process |
    ///
    /// A pause of ordered or broadcast subscriptions is at most 25 minutes long. A thread,
    /// `coney-pause-SERVICE`, stops and resumes consuming.
    ///
    /// ```
    /// use coney::server::PauseOnFailures;
    /// use coney::{Broker, EventSubscriber};
    ///
    /// let subscriber = EventSubscriber::builder(&Broker::memory(), "mailer")
    ///     .on("order.paid", |_: u64| Err::<(), _>("no network"))
    ///     .pause_on_failures(PauseOnFailures::new())
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    #[doc(alias = "kill switch")]
    pub fn pause_on_failures(mut self, settings: PauseOnFailures) -> Self {
        self.pause_on_failures = Some(settings);
        self
    }

    /// Returns the settings of the pause of a subscription.
    pub(super) fn pause_of<'s>(&'s self, subscription: &'s Untyped) -> Option<&'s PauseOnFailures> {
        let own = subscription.pause_on_failures.as_ref();
        own.or(self.pause_on_failures.as_ref())
    }

    /// Checks the bound and the pause of a subscription.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a bound of zero, and for a pause that is out of range, or
    /// too long for events that wait unacknowledged.
    pub(super) fn check_bounds(&self, subscription: &Untyped) -> Result<()> {
        let (service, name) = (&self.service, subscription.label());
        let owner = format!("{service}'s subscription {name:?}");
        let fault = |text: &str| {
            let text = format!("{owner}: {text}");
            Err(Error::new(ErrorKind::InvalidConfig, text))
        };
        if subscription.at_most == Some(0) {
            return fault("at_most(0): nothing could ever run: set it to at least 1");
        }
        let Some(pause) = self.pause_of(subscription) else {
            return Ok(());
        };
        pause.check(&owner)?;
        if subscription.is_held() && pause.pause_length() > LONGEST_HELD {
            return fault(
                "ordered and broadcast events wait unacknowledged: pause_for may not be longer \
                 than 25 minutes",
            );
        }
        Ok(())
    }
}
