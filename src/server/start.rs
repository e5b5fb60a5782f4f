//! The start of a server.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use super::health::{Check, CheckedServer, Health, HealthSetup};
use super::health_rounds::HealthVerdict;
use super::job::ServerJob;
use super::limits::count_instances;
use super::load::ServerQueues;
use super::sources::RequestSink;
use super::{ServiceServer, ServiceServerBuilder};
use crate::base::name::check_service;
use crate::client::OwnServiceCalls;
use crate::consumer::{
    Bulkheads, ClockOffsets, ConsumedQueue, Deduplication, Dispatcher, FailureMeter, HandlerLayer,
    Handlers, LoadGate, LoadThread, LoadThreadSetup, NestedClient, NumberedHandler,
    PendingRepublish, Republisher, RequestExecutor, RequestLimits, Settled, Turn, WaitingCopies,
    WorkerSetup, Workers, layered,
};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{CAPABILITIES, Instance, OWN_QUEUE};
use crate::topology;

impl ServiceServerBuilder {
    /// Starts the workers, declares the service's queue, consumes from it, and registers the
    /// instance. When it returns, requests are being served, unless a check fails.
    ///
    /// Keep the returned server: dropping it shuts the server down.
    ///
    /// Blocks until the checks have run, at most 10 s, the broker has opened the consumers, at most
    /// 10 s for each of them, and the registry has answered, at most 3 s. There are two consumers,
    /// of the service's queue and of its suspect queue, and with a registry a third, of the
    /// instance's own. A suspect queue that cannot be consumed, and a registry that does not answer,
    /// are logged and no errors.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::InvalidConfig`] if a name is empty, too long or contains characters
    /// that names must not have, an action has two handlers, the number of workers or the prefetch
    /// is 0, the retry delays are too many or out of range, a rate limit is invalid or of an action
    /// without a handler, the settings of a pause on failures are out of range, or one of coney's
    /// own headers is to be passed on; with [`ErrorKind::Broker`] if the
    /// broker refuses a queue or a consumer; with [`ErrorKind::TimedOut`] if the broker does not
    /// answer in time; with [`ErrorKind::Io`] if a thread cannot be started; and with
    /// [`ErrorKind::Closed`] if the broker was closed before.
    pub fn start(mut self) -> Result<ServiceServer> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        check_service(&self.service)?;
        self.options.check(&self.service)?;
        self.check_limits()?;
        if let Some(pause) = &self.pause_on_failures {
            pause.check(&self.service)?;
        }
        if self.handlers.is_empty() {
            log::warn!(
                target: "coney::server",
                "{} has no handlers: every request gets an error reply", self.service
            );
        }
        self.check_actions()?;
        let mut actions: Vec<String> = self.handlers.keys().cloned().collect();
        actions.sort_unstable();
        let deduplication = self.options.start_deduplication(&self.service)?;
        let health = self.start_health(deduplication.clone())?;
        let verdict = health.as_ref().and_then(Health::first_verdict);
        let bulkheads = self.bulkheads()?;
        let delays = self.options.queue_delays(None);
        let topology = topology::for_service(&self.service, &delays, self.quorum);
        let classes = bulkheads.iter().map(|it| &it.action);
        let topology = classes.fold(topology, |topology, action| {
            topology.and(topology::for_class(&self.service, action))
        });
        let (service, broker) = (self.service.clone(), self.broker.clone());
        let bounds = bulkheads.len();
        let waiting = Bulkheads::waiting_for(bounds, self.options.load.widest_prefetch());
        let room = waiting.saturating_mul(u16::try_from(bounds).unwrap_or(u16::MAX));
        self.options.load.has_bounds = bounds > 0;
        self.options.load.waiting_room = room.min(MOST_WAITING);
        let load = self.options.load.clone();
        let gate = Arc::new(load.gate(self.handlers.len()));
        // One slot: the number of such calls is read when the message arrives.
        let (nested_sender, nested_calls) = bounded(1);
        let own_calls = OwnServiceCalls::new(&service, nested_sender);
        let settled = Arc::new(Settled::new(broker.can_reconnect()));
        let setup = WorkerSetup {
            owner: &service,
            load: &load,
            broker: &broker,
            topology: topology.clone(),
            settled: vec![Arc::clone(&settled)],
            consumer_timeout: self.options.consumer_timeout,
        };
        let mut dispatcher = None;
        let workers = Workers::start(setup, |republishes, add_class| {
            let bulkheads = Bulkheads::new(&bulkheads, waiting, add_class);
            let parts = DispatcherParts {
                republishes,
                settled,
                deduplication,
                bulkheads,
                load: Arc::clone(&gate),
                own_calls: (!load.workers.is_fixed()).then(|| Arc::clone(&own_calls)),
            };
            let dispatcher = dispatcher.insert(Arc::new(self.dispatcher(parts)));
            let dispatcher = Arc::clone(dispatcher);
            move |job: ServerJob, turn: &dyn Turn| job.run(&dispatcher, turn)
        })?;
        let Some(dispatcher) = dispatcher else {
            unreachable!("workers are started with it");
        };
        let requests = Arc::new(RequestSink::new(workers));
        let consumers = self.consume(topology, &requests, dispatcher, verdict.is_some());
        let consumers = Arc::new(consumers.inspect_err(|_| drop(requests.workers.stop()))?);
        consumers.unhealthy.lock().clone_from(&verdict);
        let mut server = ServiceServer {
            stopped: AtomicBool::new(false),
            shutting_down: Mutex::new(()),
            service: self.service.clone(),
            consumers,
            registration: None,
            health: Mutex::new(None),
            load_thread: Mutex::new(None),
            shutdown_timeout: self.options.shutdown_timeout,
            broker: self.broker,
        };
        if load.needs_thread() {
            let setup = LoadThreadSetup {
                owner: service.clone(),
                options: load,
                gate,
                workers: ServerQueues::new(&server.broker, &service, &server.consumers),
                clocks: server.consumers.requests.workers.clocks(),
                nested_calls,
                nested: Box::new(move || own_calls.waiting()),
            };
            let thread = LoadThread::start(setup).map_err(|error| {
                Error::new(
                    ErrorKind::Io,
                    format!("{service}: cannot start the thread that watches its load"),
                )
                .with_source(error)
            })?;
            server.load_thread = Mutex::new(Some(thread));
        }
        if let Some(registry) = &self.registry {
            let instance = describe(self.instance, &actions, &verdict);
            let registration = registry.register(&self.service, instance)?;
            let registration = Arc::new(registration);
            let _ = requests.registration.set(Arc::downgrade(&registration));
            if let Some(cause) = requests.lifetime.disconnect_reason() {
                registration.set_disconnected(&cause); // closed before `registration` was set
            }
            server.registration = Some(registration);
        }
        if let Some(health) = health {
            health.watch(CheckedServer {
                verdict: verdict.clone(),
                consumers: Arc::clone(&server.consumers),
                registration: server.registration.clone(),
            });
            server.health = Mutex::new(Some(health));
        }
        let actions = actions.join(", ");
        let workers = server.load().workers;
        match verdict {
            None => log::info!(
                target: "coney::server", "{service} serves {actions} with {workers} workers"
            ),
            Some(fault) => log::warn!(
                target: "coney::server", "{service} is unhealthy and does not consume: {fault}"
            ),
        }
        Ok(server)
    }

    fn start_health(
        &mut self,
        deduplication: Option<Arc<Deduplication>>,
    ) -> Result<Option<Health>> {
        let mut checks = std::mem::take(&mut self.checks);
        checks.extend(deduplication.map(|it| Check {
            name: "deduplication".to_owned(),
            run: Box::new(move || it.check()),
            fails_at_once: true,
        }));
        let meter = self.pause_on_failures.as_ref().map(|settings| {
            let (meter, tripped) = FailureMeter::new(settings);
            let meter = Arc::new(meter);
            // The innermost: what other layers make of a result is no failure of the handler.
            let layer = Arc::clone(&meter) as Arc<dyn HandlerLayer>;
            self.options.layers.push(layer);
            (meter, tripped)
        });
        if checks.is_empty() && meter.is_none() {
            return Ok(None);
        }
        let health = Health::start(HealthSetup {
            service: &self.service,
            checks,
            interval: self.health_interval,
            failures: self.health_failures,
            successes: self.health_successes,
            meter,
        });
        health.map(Some).map_err(|error| {
            Error::new(
                ErrorKind::Io,
                format!(
                    "{}: cannot start the thread of its health checks",
                    self.service
                ),
            )
            .with_source(error)
        })
    }

    fn dispatcher(&mut self, parts: DispatcherParts) -> Dispatcher {
        let options = &mut self.options;
        let retries = options.retries(false);
        let registered = self.registry.is_some();
        let count_peers = self
            .registry
            .as_ref()
            .map(|it| count_instances(it, &self.service));
        let handlers = std::mem::take(&mut self.handlers).into_iter();
        let handlers = handlers.enumerate().map(|(number, (action, it))| {
            let run = layered(it, &options.layers);
            (action, NumberedHandler { number, run })
        });
        let executor = RequestExecutor {
            owner: self.service.clone(),
            instance_id: registered.then(|| self.instance.id().to_owned()),
            handlers: Handlers::ByAction(handlers.collect()),
            limits: RequestLimits::by_action(std::mem::take(&mut self.limits), count_peers),
            longest_turn: retries.parking,
            load: parts.load,
            deduplication: parts.deduplication,
            clocks: ClockOffsets::default(),
            busy_retry_after: BUSY_RETRY_AFTER,
            nested: Arc::new(NestedClient {
                broker: self.broker.clone(),
                service: self.service.clone(),
                client: Mutex::new(options.client.take()),
                registry: self.registry.clone(),
                propagate: std::mem::take(&mut options.propagate),
                own_calls: parts.own_calls,
            }),
        };
        Dispatcher {
            executor,
            republisher: Republisher {
                broker: self.broker.clone(),
                queue: ConsumedQueue {
                    owner: self.service.clone(),
                    queue: topology::request_queue(&self.service),
                    stem: topology::service_stem(&self.service),
                    is_ordered: false,
                },
                retries,
                waiting: Arc::new(WaitingCopies::new()),
                republishes: parts.republishes,
            },
            settled: parts.settled,
            redelivery_limit: options.redelivery_limit,
            any_reply_queue: options.any_reply_queue,
            bulkheads: parts.bulkheads,
        }
    }
}

/// The parts of a dispatcher that are made before it.
struct DispatcherParts {
    republishes: Sender<PendingRepublish>,
    settled: Arc<Settled>,
    deduplication: Option<Arc<Deduplication>>,
    bulkheads: Bulkheads,
    load: Arc<LoadGate>,
    own_calls: Option<Arc<OwnServiceCalls>>,
}

/// The largest number by which the prefetch grows because of bounds of actions.
const MOST_WAITING: u16 = 1_000;

/// The delay that a `busy` reply asks a caller to wait before it retries.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Adds the host, the health, the actions and the process id to an instance.
fn describe(mut instance: Instance, actions: &[String], verdict: &HealthVerdict) -> Instance {
    if instance.host().is_none()
        && let Ok(host) = hostname::get()
    {
        instance = instance.with_host(host.to_string_lossy());
    }
    instance.set_health(verdict.as_deref());
    instance
        .with_actions(actions)
        .with_metadata("pid", &std::process::id())
        .with_metadata(CAPABILITIES, &[OWN_QUEUE])
}
