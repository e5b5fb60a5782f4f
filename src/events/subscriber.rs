use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::delays::Delays;
use super::feed::{Crew, Feed, Intake, Job, Order};
use super::subscription::Sharing;
use super::{EventSubscriberBuilder, Subscription};
use crate::consume::{
    Deduplication, Dispatch, Handlers, Inbox, Mover, Nested, POSTPONE_FOR, Retries, Runner, Workers,
};
use crate::deadline;
use crate::error::{ErrorKind, Result};
use crate::topology::{self, EVENT_EXCHANGE, Topology};
use crate::transport::{Broker, LinkSpec, QueueOptions, Wire};

/// Running subscriptions: takes events from their queues, runs handlers on workers, and
/// acknowledges after that.
///
/// Keep it as long as it is to run: dropping it shuts it down.
///
/// ```
/// use std::time::Duration;
/// use coney::{Broker, EventPublisher, EventSubscriber, Subscription};
///
/// let broker = Broker::memory();
/// # let (told, seen) = std::sync::mpsc::channel();
/// # let too = told.clone();
/// let subscriber = EventSubscriber::builder(&broker, "analytics")
///     .on("order.*", move |order: u64| told.send(order))
///     .subscribe(Subscription::to("config.changed", move |n: u64| too.send(n)).broadcast())
///     .start()?;
/// EventPublisher::new(&broker, "order-service")?.publish("order.paid", &4711)?;
/// # assert_eq!(seen.recv().unwrap(), 4711);
/// subscriber.shutdown(Duration::from_secs(10))?;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the subscriber shuts it down"]
pub struct EventSubscriber {
    service: String,
    crew: Arc<Crew>,
    feeds: Vec<(Arc<Feed>, Arc<dyn Wire>)>,
    /// A connection for those that are in order: only its end gives back everything that
    /// is unsettled in one step. With any other the next instance gets what comes later
    /// first.
    in_order: Option<Broker>,
    shutdown_timeout: Duration,
    stopped: AtomicBool,
    /// Keeps the connection open as long as the subscriber runs.
    broker: Broker,
}

impl EventSubscriber {
    /// Options and subscriptions for a subscriber of `service`.
    pub fn builder(broker: &Broker, service: &str) -> EventSubscriberBuilder {
        EventSubscriberBuilder::new(broker, service)
    }

    /// The service it belongs to.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Stops consuming, lets running handlers finish, and ends every worker. Events that
    /// were fetched but not handled, those that wait for another attempt here too, go
    /// back to their queues.
    ///
    /// Blocks until all that is done, at most `timeout`. A second call finds nothing
    /// left to do. Not for the subscriber's own handlers, which it would wait for: there
    /// it does nothing and fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] if handlers still run. Their events go back to the queue,
    /// and their threads end when they do. [`ErrorKind::InvalidConfig`] if a handler of
    /// this subscriber calls it.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        let Crew { workers, delays } = &*self.crew;
        workers.check_not_one_of_them()?;
        let deadline = deadline::after(timeout);
        // A broker that does not answer must not use up the handlers' time.
        let soon = deadline::after(timeout / 2);
        for (_, wire) in self.feeds.iter().filter(|(feed, _)| feed.order.is_none()) {
            if let Err(error) = wire.stop_consuming(soon)
                && error.kind() != ErrorKind::Closed
            {
                log::warn!(target: "coney::events", "{}: {error}", self.service);
            }
        }
        // Dropped deliveries go back.
        drop(workers.stop());
        drop(delays.stop(deadline));
        let finished = workers.finish(deadline, timeout);
        self.close(deadline);
        if !self.stopped.swap(true, Ordering::Relaxed) {
            log::info!(target: "coney::events", "the subscriber of {} has stopped", self.service);
        }
        finished
    }

    /// Ends the links. What waits its turn is dropped after that.
    fn close(&self, deadline: Instant) {
        for (_, wire) in self.feeds.iter().filter(|(feed, _)| feed.order.is_none()) {
            wire.close();
        }
        if let Some(broker) = &self.in_order
            && broker.is_another(&self.broker)
            && let Err(error) = broker.close(deadline.saturating_duration_since(Instant::now()))
        {
            log::warn!(target: "coney::events", "{}: {error}", self.service);
        }
        for (feed, wire) in self.feeds.iter().filter(|(feed, _)| feed.order.is_some()) {
            wire.close();
            drop(feed.take_waiting());
        }
    }

    pub(super) fn start(mut builder: EventSubscriberBuilder) -> Result<Self> {
        let subscriptions = std::mem::take(&mut builder.subscriptions);
        let queues: Vec<String> = subscriptions.iter().map(|it| builder.queue(it)).collect();
        let topologies: Vec<Topology> = subscriptions
            .iter()
            .zip(&queues)
            .map(|(subscription, queue)| builder.topology(subscription, queue))
            .collect();
        let (broker, service) = (&builder.broker, &builder.service);
        // Before any thread: it may fail.
        let in_order = subscriptions.iter().any(|it| it.key.is_some());
        let in_order = in_order.then(|| broker.another()).transpose()?;
        let everything = topologies.iter().cloned().reduce(Topology::and);
        let everything = everything.unwrap_or_default();
        let count = builder.options.workers;
        let workers = Workers::start(service, count, broker, everything, |_| {
            |job: Job| {
                job.run();
                None
            }
        })?;
        let workers = Arc::new(workers);
        let hand_over = {
            let workers = Arc::clone(&workers);
            move |job| drop(workers.submit(job))
        };
        let crew = Arc::new(Crew {
            workers,
            delays: Delays::start(service, hand_over)?,
        });
        let mut subscriber = Self {
            service: service.clone(),
            crew,
            feeds: Vec::new(),
            in_order,
            shutdown_timeout: builder.options.shutdown_timeout,
            stopped: AtomicBool::new(false),
            broker: broker.clone(),
        };
        let nested = Arc::new(Nested {
            broker: broker.clone(),
            service: service.clone(),
            client: Mutex::new(builder.options.client.take()),
        });
        let queues = queues.into_iter().zip(topologies);
        for (subscription, (queue, topology)) in subscriptions.into_iter().zip(queues) {
            let spec = builder.spec(&subscription, &queue, topology);
            log::info!(
                target: "coney::events",
                "{service} subscribes to {} through {queue}", subscription.pattern
            );
            let feed = builder.feed(subscription, queue, &nested, &subscriber.crew);
            let sink = Arc::new(Intake(Arc::downgrade(&feed)));
            let of_its_own = subscriber
                .in_order
                .as_ref()
                .filter(|_| feed.order.is_some());
            let wire = of_its_own.unwrap_or(broker).open(spec, sink)?;
            subscriber.feeds.push((feed, wire));
        }
        Ok(subscriber)
    }
}

impl EventSubscriberBuilder {
    fn topology(&self, subscription: &Subscription, queue: &str) -> Topology {
        let pattern = &subscription.pattern;
        let mut delays = self.options.retry_delays.clone();
        delays.extend(self.options.deduplication.is_some().then_some(POSTPONE_FOR));
        match (subscription.sharing, &subscription.key) {
            (Sharing::Broadcast, _) => topology::for_events().and(topology::for_dead_letters()),
            (_, Some(_)) => topology::for_subscription(queue, topology::in_order(), pattern, &[]),
            (Sharing::Group, None) => {
                topology::for_subscription(queue, QueueOptions::new(), pattern, &delays)
            }
            (Sharing::Singleton, None) => {
                let options = QueueOptions::new().single_active_consumer();
                topology::for_subscription(queue, options, pattern, &delays)
            }
        }
    }

    fn spec(&self, subscription: &Subscription, queue: &str, topology: Topology) -> LinkSpec {
        let (spec, prefetch) = (
            LinkSpec::new(topology).only_answers(),
            self.options.prefetch,
        );
        match subscription.sharing {
            Sharing::Broadcast => {
                spec.consume_own(queue, (EVENT_EXCHANGE, &subscription.pattern), prefetch)
            }
            Sharing::Group | Sharing::Singleton => spec
                .consume(queue, prefetch)
                .ends_at_once(subscription.key.is_some()),
        }
    }

    fn feed(
        &self,
        subscription: Subscription,
        queue: String,
        nested: &Arc<Nested>,
        crew: &Arc<Crew>,
    ) -> Arc<Feed> {
        let options = &self.options;
        let delays = options.retry_delays.clone();
        let is_broadcast = subscription.sharing == Sharing::Broadcast;
        let retries = match is_broadcast || subscription.key.is_some() {
            true => Retries::Held(delays),
            false => Retries::Queued(delays),
        };
        let deduplication = options.deduplication.as_ref();
        let runner = Runner {
            owner: self.service.clone(),
            instance_id: None,
            handlers: Handlers::One(subscription.handler),
            max_body: self.broker.max_body(),
            deduplication: deduplication.map(|(store, ttl)| Deduplication {
                scope: queue.clone(),
                store: Arc::clone(store),
                ttl: *ttl,
                lease: options.deduplication_lease,
            }),
            nested: Arc::clone(nested),
        };
        let dispatch = Dispatch {
            runner,
            mover: Mover {
                broker: self.broker.clone(),
                inbox: Inbox {
                    owner: self.service.clone(),
                    stem: queue.clone(),
                    queue,
                    counts: subscription.key.is_some() && !is_broadcast,
                },
                retries,
                redelivery_limit: options.redelivery_limit,
                moves: crew.workers.way().clone(),
            },
        };
        Arc::new(Feed {
            dispatch,
            order: subscription.key.map(Order::by),
            is_broadcast,
            crew: Arc::clone(crew),
        })
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        let Crew { workers, delays } = &*self.crew;
        if workers.is_one_of_them() {
            drop(workers.stop());
            drop(delays.stop(Instant::now()));
            return self.close(Instant::now());
        }
        if let Err(error) = self.shutdown(self.shutdown_timeout) {
            log::warn!(target: "coney::events", "{error}");
        }
    }
}

impl fmt::Debug for EventSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSubscriber")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
