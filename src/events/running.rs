//! A running subscription with its links.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use super::active_subscription::ActiveSubscription;
use super::subscription::{DeliveryScope, Untyped};
use crate::base::log_relay;
use crate::consumer::{FailurePause, Lifetime, Limit, LoadOptions};
use crate::error::{ErrorKind, Result};
use crate::transport::{Broker, LinkHandle};

/// A subscription and its links.
pub(super) struct Running {
    pub(super) subscription: Arc<ActiveSubscription>,
    pub(super) queue: String,
    pub(super) handle: Arc<dyn LinkHandle>,
    /// The link to the suspect queue, if that is consumed.
    pub(super) suspects: Option<Arc<dyn LinkHandle>>,
    pub(super) prefetch: LinkPrefetch,
}

impl Running {
    pub(super) fn is_ordered(&self) -> bool {
        self.subscription.ordering.is_some()
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = &Arc<dyn LinkHandle>> {
        self.suspects.iter().chain([&self.handle])
    }

    /// Sets the prefetch of the queue to that for the present number of workers. Blocks at most
    /// until `deadline`.
    pub(super) fn set_prefetch(&self, for_workers: u16, deadline: Instant) -> Result<()> {
        let prefetch = self.prefetch.of(for_workers);
        if self.prefetch.now.load(Ordering::Relaxed) != prefetch {
            self.handle.set_prefetch(prefetch, deadline)?;
            self.prefetch.now.store(prefetch, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts the events in the queue that this process will have to take. Blocks at most until
    /// `deadline`.
    ///
    /// The broker counts an exclusive queue, that of a broadcast, for no other connection.
    pub(super) fn depth(&self, broker: &Broker, deadline: Instant) -> Result<usize> {
        let subscription = &self.subscription;
        if subscription.is_broadcast || self.paused(Instant::now()).is_some() {
            return Ok(0);
        }
        let is_single = self.prefetch.is_single_active;
        if is_single && !subscription.has_events() {
            return Ok(0); // another process has the turn, or there are none
        }
        let depth = broker.queue_depth_until(&self.queue, deadline)?;
        Ok(match is_single {
            true => depth.messages,
            false => depth.messages.div_ceil(depth.consumers.max(1)),
        })
    }

    /// Returns the present pause, if there is one.
    pub(super) fn paused(&self, now: Instant) -> Option<FailurePause> {
        self.subscription.meter.as_ref()?.paused(now)
    }

    /// Makes the workers begin with no further event. Does not block.
    pub(super) fn hold(&self) {
        let subscription = &self.subscription;
        let workers = &subscription.workers;
        workers.set_limit(subscription.class, Limit::AtMost(0));
    }

    /// Stops consuming, and returns the events that no worker has begun with to their queue. Blocks
    /// at most until `deadline`.
    ///
    /// Does nothing if the events have to wait in this process: those of a broadcast exist nowhere
    /// else, and ordered ones would change places with those that the next process gets.
    pub(super) fn stop(&self, deadline: Instant) {
        if self.is_held() {
            return;
        }
        for handle in self.handles() {
            self.log_error(handle.stop_consuming(deadline));
        }
        // Such events are never put off in this process, so none that runs comes back here.
        for job in self.subscription.workers.clear(self.subscription.class) {
            job.give_back(deadline);
        }
    }

    /// Makes the workers begin with events again, and resumes consuming, unless the subscriber is
    /// being shut down. Blocks at most until `deadline`.
    pub(super) fn resume(&self, lifetime: &Lifetime, deadline: Instant) {
        let subscription = &self.subscription;
        let workers = &subscription.workers;
        workers.set_limit(subscription.class, subscription.limit);
        if self.is_held() || lifetime.is_closing() {
            return;
        }
        for handle in self.handles() {
            self.log_error(handle.resume_consuming(deadline));
        }
        // A shutdown in the meantime has not stopped these consumers.
        if lifetime.is_closing() {
            self.stop(deadline);
        }
    }

    /// Returns true if events that cannot be handled now wait in this process.
    fn is_held(&self) -> bool {
        self.is_ordered() || self.subscription.is_broadcast
    }

    /// Logs an error of a step that may fail: a closed connection delivers nothing more either.
    fn log_error(&self, result: Result<()>) {
        if let Err(error) = result
            && error.kind() != ErrorKind::Closed
        {
            let queue = &self.queue;
            log_relay::log(
                log::Level::Warn,
                "coney::events",
                format_args!("{queue}: {error}"),
            );
        }
    }
}

/// The prefetch of a subscription's queue.
pub(super) struct LinkPrefetch {
    /// True if one process at a time gets the events of the queue.
    is_single_active: bool,
    /// The prefetch whatever the number of workers.
    fixed: Option<u16>,
    most: u16,
    now: AtomicU16,
}

impl LinkPrefetch {
    /// Returns the prefetch at the start.
    ///
    /// It follows the number of workers only in a group, whose other processes could handle the
    /// events meanwhile. The others have that of the highest number: what they hold is missing
    /// nowhere, and the prefetch of a single active consumer cannot be raised without passing its
    /// turn on. A group with a bound gets no more than run and are next, for the same reason.
    pub(super) fn new(subscription: &Untyped, load: &LoadOptions) -> Self {
        let is_ordered = subscription.key.is_some();
        let is_group = subscription.scope == DeliveryScope::Group && !is_ordered;
        let twice = |limit: usize| u16::try_from(limit.saturating_mul(2)).unwrap_or(u16::MAX);
        let bound = subscription.at_most.filter(|_| is_group).map(twice);
        let mut prefetch = Self {
            is_single_active: subscription.scope == DeliveryScope::Singleton
                || is_ordered && subscription.scope == DeliveryScope::Group,
            fixed: (!is_group).then(|| load.prefetch_for(load.workers.most())),
            most: bound.unwrap_or(u16::MAX),
            now: AtomicU16::new(0),
        };
        prefetch.now = AtomicU16::new(prefetch.of(load.first_prefetch()));
        prefetch
    }

    /// Returns the prefetch if it is `for_workers` for the present number of workers.
    pub(super) fn of(&self, for_workers: u16) -> u16 {
        self.fixed.unwrap_or(for_workers).min(self.most)
    }

    /// Returns the prefetch now.
    pub(super) fn now(&self) -> u16 {
        self.now.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Subscription;

    #[test]
    fn only_the_prefetch_of_a_group_follows_the_workers_up_to_twice_its_bound() {
        let load = LoadOptions {
            workers: (2..=32).into(),
            ..LoadOptions::default()
        };
        let subscription = || Subscription::listen("paid", |_: u64| ());
        let prefetches = |subscription: Subscription<u64>| {
            let prefetch = LinkPrefetch::new(&subscription.untyped, &load);
            [prefetch.now(), prefetch.of(16)]
        };
        let ordered = || subscription().ordered_by(|n: &u64| *n);
        assert_eq!(prefetches(subscription()), [2, 16]);
        assert_eq!(prefetches(subscription().at_most(3)), [2, 6]);
        assert_eq!(prefetches(subscription().at_most(usize::MAX)), [2, 16]);
        assert_eq!(prefetches(subscription().singleton()), [32, 32]);
        assert_eq!(prefetches(subscription().broadcast().at_most(1)), [32, 32]);
        assert_eq!(prefetches(ordered().at_most(1)), [32, 32]);
        let is_single = |it: Subscription<u64>| LinkPrefetch::new(&it.untyped, &load);
        assert!(is_single(ordered()).is_single_active);
        assert!(!is_single(ordered().broadcast()).is_single_active);
    }
}
