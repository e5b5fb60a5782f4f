//! From a builder to a running subscriber.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::begun::Begun;
use super::delays::Delays;
use super::feed::{Crew, Feed, Intake, Job, Order};
use super::subscriber::Running;
use super::subscription::{Sharing, Untyped};
use super::{EventSubscriber, EventSubscriberBuilder};
use crate::consume::{
    self, Clocks, Dispatch, Handlers, Inbox, Mover, Nested, Retries, Runner, Settled, Workers,
};
use crate::error::Result;
use crate::topology::{self, EVENT_EXCHANGE, Topology};
use crate::transport::{Broker, LinkSpec, QueueOptions, Wire};

impl EventSubscriber {
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
            closing: AtomicBool::new(false),
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
