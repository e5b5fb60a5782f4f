//! The start of a subscriber.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::active_subscription::{ActiveSubscription, EventJob, EventSink, KeyOrdering};
use super::begin_marks::BeginMarks;
use super::subscriber::Running;
use super::subscription::{DeliveryScope, Untyped};
use super::{EventSubscriber, EventSubscriberBuilder};
use crate::consumer::{
    self, Bulkheads, ClockOffsets, ConsumedQueue, Dispatcher, Handlers, Limit, NestedClient,
    NumberedHandler, Republisher, RequestExecutor, RequestLimits, Settled, Turn, WaitingCopies,
    Workers, layered, parking_delay,
};
use crate::error::Result;
use crate::topology::{self, EVENT_EXCHANGE, Topology};
use crate::transport::{Broker, LinkHandle, LinkSpec, QueueOptions};

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
        // Connected before any thread is started, as this may fail.
        let in_order = subscriptions.iter().any(|it| it.key.is_some());
        let in_order = in_order.then(|| broker.second_connection()).transpose()?;
        let all_queues = topologies.iter().cloned().reduce(Topology::and);
        let all_queues = all_queues.unwrap_or_default();
        let settled: Vec<Arc<Settled>> = subscriptions
            .iter()
            .map(|_| Arc::new(Settled::new(broker.can_reconnect())))
            .collect();
        let setup = consumer::WorkerSetup {
            owner: service,
            load: &builder.options.load,
            broker,
            topology: all_queues,
            settled: settled.clone(),
            consumer_timeout: builder.options.consumer_timeout,
        };
        let workers = Arc::new(Workers::start(setup, |_, _| {
            |job: EventJob, turn: &dyn Turn| job.run(turn)
        })?);
        let mut subscriber = Self {
            service: service.clone(),
            workers,
            subscriptions: Vec::new(),
            ordered_connection: in_order,
            lifetime: Arc::default(),
            shutdown_timeout: builder.options.shutdown_timeout,
            stopped: AtomicBool::new(false),
            broker: broker.clone(),
        };
        let nested = Arc::new(NestedClient {
            broker: broker.clone(),
            service: service.clone(),
            client: Mutex::new(builder.options.client.take()),
            registry: None,
            propagate: std::mem::take(&mut builder.options.propagate),
            own_calls: None,
        });
        let queues = queues.into_iter().zip(topologies).zip(settled);
        for (subscription, ((queue, topology), settled)) in subscriptions.into_iter().zip(queues) {
            let spec = builder.spec(&subscription, &queue, topology);
            log::info!(
                target: "coney::events",
                "{service} subscribes to {} through {queue}", subscription.pattern
            );
            let ordered = subscription.key.is_some();
            let separate_connection = subscriber.ordered_connection.as_ref().filter(|_| ordered);
            let connection = separate_connection.unwrap_or(broker);
            let is_singleton = subscription.scope == DeliveryScope::Singleton;
            let subscription = builder.subscription(
                subscription,
                &queue,
                connection,
                settled,
                &nested,
                &subscriber.workers,
            )?;
            let sink = |suspects| {
                let subscription = Arc::downgrade(&subscription);
                Arc::new(EventSink {
                    subscription,
                    suspects,
                    lifetime: Arc::clone(&subscriber.lifetime),
                })
            };
            let handle = connection.open(spec, sink(false))?;
            let suspects = match ordered || subscription.is_broadcast {
                true => None,
                false => builder.consume_suspects(&queue, is_singleton, sink(true)),
            };
            subscriber.subscriptions.push(Running {
                subscription,
                queue,
                handle,
                suspects,
            });
        }
        Ok(subscriber)
    }
}

impl EventSubscriberBuilder {
    /// Opens the link to a suspect queue. If the broker refuses it, for lack of channels for
    /// example, the other subscribers handle its messages.
    fn consume_suspects(
        &self,
        queue: &str,
        is_singleton: bool,
        sink: Arc<EventSink>,
    ) -> Option<Arc<dyn LinkHandle>> {
        let spec = LinkSpec::new(topology::for_suspects(queue, is_singleton))
            .consume(topology::suspect_queue(queue), 1)
            .only_replies();
        match self.broker.open(spec, sink) {
            Ok(handle) => Some(handle),
            Err(error) => {
                log::warn!(
                    target: "coney::events",
                    "{}: cannot consume a suspect queue, redelivered events are left to other \
                     subscribers: {error}", self.service
                );
                None
            }
        }
    }

    fn topology(&self, subscription: &Untyped, queue: &str) -> Topology {
        let pattern = &subscription.pattern;
        let delays = self
            .options
            .queue_delays(subscription.retry_delays.as_deref());
        match (subscription.scope, &subscription.key) {
            (DeliveryScope::Broadcast, _) => {
                topology::for_events().and(topology::for_dead_letters())
            }
            (_, Some(_)) => topology::for_subscription(queue, topology::in_order(), pattern, &[]),
            (DeliveryScope::Group, None) => {
                topology::for_subscription(queue, QueueOptions::new(), pattern, &delays)
                    .and(topology::for_suspects(queue, false))
            }
            (DeliveryScope::Singleton, None) => {
                let options = QueueOptions::new().single_active_consumer();
                topology::for_subscription(queue, options, pattern, &delays)
                    .and(topology::for_suspects(queue, true))
            }
        }
    }

    fn spec(&self, subscription: &Untyped, queue: &str, topology: Topology) -> LinkSpec {
        let (spec, prefetch) = (
            LinkSpec::new(topology).only_replies(),
            self.options.load.first_prefetch(),
        );
        match subscription.scope {
            DeliveryScope::Broadcast => {
                spec.consume_own(queue, (EVENT_EXCHANGE, &subscription.pattern), prefetch)
            }
            DeliveryScope::Group | DeliveryScope::Singleton => spec
                .consume(queue, prefetch)
                .requeues_at_once(subscription.key.is_some()),
        }
    }

    fn subscription(
        &self,
        subscription: Untyped,
        queue: &str,
        connection: &Broker,
        settled: Arc<Settled>,
        nested: &Arc<NestedClient>,
        workers: &Arc<Workers<EventJob>>,
    ) -> Result<Arc<ActiveSubscription>> {
        let options = &self.options;
        let is_broadcast = subscription.scope == DeliveryScope::Broadcast;
        let mut retries = options.retries(subscription.is_held());
        let limit = subscription.limit();
        if let Some(delays) = subscription.retry_delays {
            retries.parking = parking_delay(&delays);
            retries.delays = delays;
        }
        let redelivery_limit = options.redelivery_limit;
        let executor = RequestExecutor {
            owner: self.service.clone(),
            instance_id: None,
            handlers: Handlers::One(NumberedHandler {
                number: 0,
                run: layered(subscription.handler, &options.layers),
            }),
            load: Arc::new(options.load.gate(1)),
            limits: RequestLimits::of_all(limit),
            longest_turn: retries.parking,
            deduplication: options.start_deduplication(queue)?,
            clocks: ClockOffsets::default(),
            busy_retry_after: retries.parking,
            nested: Arc::clone(nested),
        };
        let dispatcher = Dispatcher {
            executor,
            republisher: Republisher {
                broker: self.broker.clone(),
                queue: ConsumedQueue {
                    owner: self.service.clone(),
                    stem: queue.to_owned(),
                    queue: queue.to_owned(),
                    is_ordered: subscription.key.is_some() || is_broadcast,
                },
                retries,
                waiting: Arc::new(WaitingCopies::new()),
                republishes: workers.republishes().clone(),
            },
            settled,
            redelivery_limit,
            any_reply_queue: false,
            bulkheads: Bulkheads::default(),
        };
        let ordering = match subscription.key {
            Some(key) => {
                let marks = match is_broadcast {
                    true => None,
                    false => Some(BeginMarks::open(connection, queue, redelivery_limit)?),
                };
                Some(KeyOrdering {
                    key,
                    arrivals: workers.add_class(Limit::AtMost(1)),
                    marks,
                })
            }
            None => None,
        };
        Ok(Arc::new(ActiveSubscription {
            dispatcher,
            ordering,
            is_broadcast,
            class: workers.add_class(Limit::None),
            workers: Arc::clone(workers),
        }))
    }
}
