use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::EventSubscriberBuilder;
use super::begun::Begun;
use super::delays::Delays;
use super::feed::{Crew, Feed, Intake, Job, Order};
use super::subscription::{Sharing, Untyped};
use crate::consume::{
    self, Clocks, Dispatch, Handlers, Inbox, Mover, Nested, Retries, Runner, Settled, Workers,
    drain,
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
    feeds: Vec<Running>,
    /// A connection for those that are in order: only its end gives back everything that
    /// is unsettled in one step. With any other the next instance gets what comes later
    /// first.
    in_order: Option<Broker>,
    shutdown_timeout: Duration,
    stopped: AtomicBool,
    /// Keeps the connection open as long as the subscriber runs.
    broker: Broker,
}

/// A subscription and its links.
struct Running {
    feed: Arc<Feed>,
    queue: String,
    wire: Arc<dyn Wire>,
    /// To the queue of suspects, where it has one that is consumed.
    suspects: Option<Arc<dyn Wire>>,
}

impl Running {
    fn is_ordered(&self) -> bool {
        self.feed.order.is_some()
    }

    fn wires(&self) -> impl Iterator<Item = &Arc<dyn Wire>> {
        self.suspects.iter().chain([&self.wire])
    }
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
        let unordered = || self.feeds.iter().filter(|running| !running.is_ordered());
        for wire in unordered().flat_map(Running::wires) {
            if let Err(error) = wire.stop_consuming(soon)
                && error.kind() != ErrorKind::Closed
            {
                log::warn!(target: "coney::events", "{}: {error}", self.service);
            }
        }
        workers.stop().into_iter().for_each(Job::give_back);
        // Dropped deliveries go back.
        drop(delays.stop(deadline));
        let finished = workers.finish(deadline, timeout);
        // The handlers are done; the broker must have their acknowledgements too.
        let was_stopped = self.stopped.swap(true, Ordering::Relaxed);
        let finished = finished.and_then(|()| {
            if was_stopped {
                return Ok(());
            }
            let wires = self.feeds.iter().flat_map(Running::wires);
            wires
                .map(|wire| wire.flush(deadline))
                .fold(Ok(()), Result::and)
        });
        self.close(deadline);
        if !was_stopped {
            log::info!(target: "coney::events", "the subscriber of {} has stopped", self.service);
        }
        finished
    }

    /// Ends the links. What waits its turn is dropped after that.
    fn close(&self, deadline: Instant) {
        let unordered = self.feeds.iter().filter(|running| !running.is_ordered());
        unordered
            .flat_map(Running::wires)
            .for_each(|wire| wire.close());
        if let Some(broker) = &self.in_order
            && broker.is_another(&self.broker)
            && let Err(error) = broker.close(deadline.saturating_duration_since(Instant::now()))
        {
            log::warn!(target: "coney::events", "{}: {error}", self.service);
        }
        for running in self.feeds.iter().filter(|running| running.is_ordered()) {
            running.wire.close();
            drop(running.feed.take_waiting());
        }
    }

    /// Handles what is in the queues of its subscriptions, and then shuts down, as
    /// [`ServiceServer::drain`](crate::ServiceServer::drain). A broadcast's queue is not
    /// looked at.
    ///
    /// Blocks at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] with how many events are left, and those of
    /// [`shutdown`](EventSubscriber::shutdown).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::{Broker, EventPublisher, EventSubscriber};
    /// let broker = Broker::memory();
    /// let subscriber = EventSubscriber::builder(&broker, "printer")
    ///     .on("page.*", |page: String| Ok::<_, String>(println!("{page}")))
    ///     .start()?;
    /// EventPublisher::new(&broker, "office")?.publish("page.ready", "page 1")?;
    /// subscriber.drain(Duration::from_secs(10))?; // page 1 is printed
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        let workers = &self.crew.workers;
        workers.check_not_one_of_them()?;
        let drained = drain(&self.service, timeout / 2, || {
            let mut left = 0;
            for running in self.feeds.iter().filter(|it| !it.feed.is_broadcast) {
                left += running.wire.backlog(&running.queue, deadline)?;
            }
            let waiting: usize = self.feeds.iter().map(|it| it.feed.waiting()).sum();
            Ok((left, workers.busy() + waiting))
        });
        let rest = deadline.saturating_duration_since(Instant::now());
        drained.and(self.shutdown(rest))
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
        let settled: Vec<Arc<Settled>> = subscriptions
            .iter()
            .map(|_| Arc::new(Settled::new(broker.has_sessions())))
            .collect();
        let crew = consume::Crew {
            owner: service,
            count: builder.options.workers,
            broker,
            topology: everything,
            settled: settled.clone(),
            consumer_timeout: builder.options.consumer_timeout,
        };
        let workers = Workers::start(crew, |_| {
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
            registry: None,
        });
        let queues = queues.into_iter().zip(topologies).zip(settled);
        for (subscription, ((queue, topology), settled)) in subscriptions.into_iter().zip(queues) {
            let spec = builder.spec(&subscription, &queue, topology);
            log::info!(
                target: "coney::events",
                "{service} subscribes to {} through {queue}", subscription.pattern
            );
            let ordered = subscription.key.is_some();
            let of_its_own = subscriber.in_order.as_ref().filter(|_| ordered);
            let connection = of_its_own.unwrap_or(broker);
            let is_singleton = subscription.sharing == Sharing::Singleton;
            let feed = builder.feed(
                subscription,
                &queue,
                connection,
                settled,
                &nested,
                &subscriber.crew,
            )?;
            let sink = |suspects| {
                let feed = Arc::downgrade(&feed);
                Arc::new(Intake { feed, suspects })
            };
            let wire = connection.open(spec, sink(false))?;
            let suspects = match ordered || feed.is_broadcast {
                true => None,
                false => builder.consume_suspects(&queue, is_singleton, sink(true)),
            };
            subscriber.feeds.push(Running {
                feed,
                queue,
                wire,
                suspects,
            });
        }
        Ok(subscriber)
    }
}

impl EventSubscriberBuilder {
    /// Opens the link to a queue of suspects. A broker that refuses it, for lack of
    /// channels for example, leaves what is there to the other subscribers.
    fn consume_suspects(
        &self,
        queue: &str,
        is_singleton: bool,
        sink: Arc<Intake>,
    ) -> Option<Arc<dyn Wire>> {
        let spec = LinkSpec::new(topology::for_suspects(queue, is_singleton))
            .consume(topology::suspect_queue(queue), 1)
            .only_answers();
        match self.broker.open(spec, sink) {
            Ok(wire) => Some(wire),
            Err(error) => {
                log::warn!(
                    target: "coney::events",
                    "{}: redelivered events are left to other subscribers: {error}", self.service
                );
                None
            }
        }
    }

    fn topology(&self, subscription: &Untyped, queue: &str) -> Topology {
        let pattern = &subscription.pattern;
        let delays = self.options.queue_delays();
        match (subscription.sharing, &subscription.key) {
            (Sharing::Broadcast, _) => topology::for_events().and(topology::for_dead_letters()),
            (_, Some(_)) => topology::for_subscription(queue, topology::in_order(), pattern, &[]),
            (Sharing::Group, None) => {
                topology::for_subscription(queue, QueueOptions::new(), pattern, &delays)
                    .and(topology::for_suspects(queue, false))
            }
            (Sharing::Singleton, None) => {
                let options = QueueOptions::new().single_active_consumer();
                topology::for_subscription(queue, options, pattern, &delays)
                    .and(topology::for_suspects(queue, true))
            }
        }
    }

    fn spec(&self, subscription: &Untyped, queue: &str, topology: Topology) -> LinkSpec {
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
        subscription: Untyped,
        queue: &str,
        connection: &Broker,
        settled: Arc<Settled>,
        nested: &Arc<Nested>,
        crew: &Arc<Crew>,
    ) -> Result<Arc<Feed>> {
        let options = &self.options;
        let delays = options.retry_delays.clone();
        let parking = options.parking_delay();
        let is_broadcast = subscription.sharing == Sharing::Broadcast;
        let retries = match is_broadcast || subscription.key.is_some() {
            true => Retries::Held { delays, parking },
            false => Retries::Queued { delays, parking },
        };
        let limit = options.redelivery_limit;
        let runner = Runner {
            owner: self.service.clone(),
            instance_id: None,
            handlers: Handlers::One(subscription.handler),
            deduplication: options.start_deduplication(queue)?,
            clocks: Clocks::default(),
            busy_retry_after: parking,
            nested: Arc::clone(nested),
        };
        let dispatch = Dispatch {
            runner,
            mover: Mover {
                broker: self.broker.clone(),
                inbox: Inbox {
                    owner: self.service.clone(),
                    stem: queue.to_owned(),
                    queue: queue.to_owned(),
                    is_ordered: subscription.key.is_some() || is_broadcast,
                },
                retries,
                moves: crew.workers.way().clone(),
            },
            settled,
            redelivery_limit: limit,
            any_reply_queue: false,
        };
        let order = match subscription.key {
            Some(key) => {
                let begun = match is_broadcast {
                    true => None,
                    false => Some(Begun::open(connection, queue, limit)?),
                };
                Some(Order::by(key, begun))
            }
            None => None,
        };
        Ok(Arc::new(Feed {
            dispatch,
            order,
            is_broadcast,
            crew: Arc::clone(crew),
        }))
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
