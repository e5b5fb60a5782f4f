//! The start of a subscriber.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::{Receiver, Sender, bounded, never};
use parking_lot::Mutex;

use super::active_subscription::{ActiveSubscription, EventJob, EventSink, KeyOrdering};
use super::begin_marks::BeginMarks;
use super::load::{SubscribedQueues, full_at};
use super::pause_thread::PauseThread;
use super::running::{LinkPrefetch, Running};
use super::subscription::{DeliveryScope, Untyped};
use super::{EventSubscriber, EventSubscriberBuilder};
use crate::consumer::{
    self, Bulkheads, ClockOffsets, ConsumedQueue, Dispatcher, FailureMeter, HandlerLayer, Handlers,
    Limit, LoadThread, LoadThreadSetup, NestedClient, NumberedHandler, Republisher,
    RequestExecutor, RequestLimits, Settled, Turn, WaitingCopies, Workers, layered, parking_delay,
};
use crate::error::{Error, ErrorKind, Result};
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
        let load = builder.options.load.clone();
        let mut subscriber = Self {
            service: service.clone(),
            workers,
            load: Arc::new(load.gate(subscriptions.len())),
            subscriptions: Arc::default(),
            load_thread: Mutex::new(None),
            pause_thread: Mutex::new(None),
            ordered_connection: in_order,
            lifetime: Arc::default(),
            shutdown_timeout: builder.options.shutdown_timeout,
            stopped: AtomicBool::new(false),
            shutting_down: Mutex::new(()),
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
        // One slot: the thread looks at all meters.
        let (tripped_sender, tripped) = bounded(1);
        let opening = Opening {
            builder: &builder,
            subscriber: &subscriber,
            nested,
            tripped: tripped_sender,
        };
        let sources = queues.into_iter().zip(topologies).zip(settled);
        let mut running = Vec::new();
        let opened = subscriptions
            .into_iter()
            .zip(sources)
            .enumerate()
            .try_for_each(|(number, (subscription, ((queue, topology), settled)))| {
                let source = Source {
                    number,
                    queue,
                    settled,
                };
                running.push(opening.open(subscription, source, topology)?);
                Ok(())
            });
        // Those that are open are closed with the subscriber.
        subscriber.subscriptions = Arc::new(running);
        opened?;
        subscriber
            .start_threads(&builder, tripped)
            .map_err(|error| {
                let text = format!("{}: cannot start a thread that watches it", builder.service);
                Error::new(ErrorKind::Io, text).with_source(error)
            })?;
        Ok(subscriber)
    }

    /// Starts the threads that follow the load and pause subscriptions, if they are needed.
    fn start_threads(
        &self,
        builder: &EventSubscriberBuilder,
        tripped: Receiver<()>,
    ) -> std::io::Result<()> {
        let load = &builder.options.load;
        let full_at = full_at(&self.subscriptions, load.first_prefetch());
        self.load.set_prefetch(full_at);
        if load.needs_thread() {
            let thread = LoadThread::start(LoadThreadSetup {
                owner: self.service.clone(),
                options: load.clone(),
                gate: Arc::clone(&self.load),
                workers: SubscribedQueues {
                    broker: self.broker.clone(),
                    workers: Arc::clone(&self.workers),
                    subscriptions: Arc::clone(&self.subscriptions),
                },
                clocks: self.workers.clocks(),
                // No handler of an event waits for these workers.
                nested_calls: never(),
                nested: Box::new(|| 0),
            })?;
            *self.load_thread.lock() = Some(thread);
        }
        let pauses = |it: &Running| it.subscription.meter.is_some();
        if self.subscriptions.iter().any(pauses) {
            let (subscriptions, lifetime) = (&self.subscriptions, &self.lifetime);
            let thread = PauseThread::start(
                &self.service,
                Arc::clone(subscriptions),
                Arc::clone(lifetime),
                tripped,
            )?;
            *self.pause_thread.lock() = Some(thread);
        }
        Ok(())
    }
}

/// The parts that all subscriptions of a subscriber share, while they are opened.
struct Opening<'a> {
    builder: &'a EventSubscriberBuilder,
    subscriber: &'a EventSubscriber,
    nested: Arc<NestedClient>,
    /// Receives a message when a subscription is to pause.
    tripped: Sender<()>,
}

/// The queue of a subscription, and the number of its handler.
struct Source {
    number: usize,
    queue: String,
    settled: Arc<Settled>,
}

impl Opening<'_> {
    /// Opens the links of a subscription.
    fn open(&self, subscription: Untyped, source: Source, topology: Topology) -> Result<Running> {
        let (builder, subscriber) = (self.builder, self.subscriber);
        let queue = source.queue.clone();
        let prefetch = LinkPrefetch::new(&subscription, &builder.options.load);
        let spec = builder.spec(&subscription, &queue, topology, prefetch.now());
        log::info!(
            target: "coney::events",
            "{} subscribes to {} through {queue}", builder.service, subscription.pattern
        );
        let ordered = subscription.key.is_some();
        let separate_connection = subscriber.ordered_connection.as_ref().filter(|_| ordered);
        let connection = separate_connection.unwrap_or(&builder.broker);
        let is_singleton = subscription.scope == DeliveryScope::Singleton;
        let subscription = Arc::new(self.subscription(subscription, source, connection)?);
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
        Ok(Running {
            subscription,
            queue,
            handle,
            suspects,
            prefetch,
        })
    }

    fn subscription(
        &self,
        subscription: Untyped,
        source: Source,
        connection: &Broker,
    ) -> Result<ActiveSubscription> {
        let (builder, options) = (self.builder, &self.builder.options);
        let workers = &self.subscriber.workers;
        let Source {
            number,
            queue,
            settled,
        } = source;
        let is_broadcast = subscription.scope == DeliveryScope::Broadcast;
        let mut retries = options.retries(subscription.is_held());
        let limit = subscription.limit();
        let meter = builder.pause_of(&subscription).map(|settings| {
            let tripped = self.tripped.clone();
            Arc::new(FailureMeter::with_signal(settings, tripped))
        });
        // The innermost: what other layers make of a result is no failure of the handler.
        let mut layers = options.layers.clone();
        layers.extend(meter.clone().map(|meter| meter as Arc<dyn HandlerLayer>));
        if let Some(delays) = subscription.retry_delays {
            retries.parking = parking_delay(&delays);
            retries.delays = delays;
        }
        let redelivery_limit = options.redelivery_limit;
        let executor = RequestExecutor {
            owner: builder.service.clone(),
            instance_id: None,
            handlers: Handlers::One(NumberedHandler {
                number,
                run: layered(subscription.handler, &layers),
            }),
            load: Arc::clone(&self.subscriber.load),
            limits: RequestLimits::of_all(limit),
            longest_turn: retries.parking,
            deduplication: options.start_deduplication(&queue)?,
            clocks: ClockOffsets::default(),
            busy_retry_after: retries.parking,
            nested: Arc::clone(&self.nested),
        };
        let dispatcher = Dispatcher {
            executor,
            republisher: Republisher {
                broker: builder.broker.clone(),
                queue: ConsumedQueue {
                    owner: builder.service.clone(),
                    stem: queue.clone(),
                    queue: queue.clone(),
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
                    false => Some(BeginMarks::open(connection, &queue, redelivery_limit)?),
                };
                Some(KeyOrdering {
                    key,
                    arrivals: workers.add_class(Limit::AtMost(1)),
                    marks,
                })
            }
            None => None,
        };
        let limit = subscription.at_most.map_or(Limit::None, Limit::AtMost);
        Ok(ActiveSubscription {
            dispatcher,
            ordering,
            is_broadcast,
            class: workers.add_class(limit),
            limit,
            meter,
            workers: Arc::clone(workers),
        })
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

    fn spec(
        &self,
        subscription: &Untyped,
        queue: &str,
        topology: Topology,
        prefetch: u16,
    ) -> LinkSpec {
        let spec = LinkSpec::new(topology).only_replies();
        match subscription.scope {
            DeliveryScope::Broadcast => {
                spec.consume_own(queue, (EVENT_EXCHANGE, &subscription.pattern), prefetch)
            }
            DeliveryScope::Group | DeliveryScope::Singleton => spec
                .consume(queue, prefetch)
                .requeues_at_once(subscription.key.is_some()),
        }
    }
}
