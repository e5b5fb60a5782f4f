//! From a builder to a running server.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::health::{Health, Verdict, Watched};
use super::intake::{Consumers, Intake, Job, OwnQueue};
use super::{ServiceServer, ServiceServerBuilder};
use crate::consume::{
    Attempt, Deduplication, Dispatch, Handlers, Inbox, Move, Mover, Nested, POSTPONE_FOR,
    Processed, Retries, Runner, Workers,
};
use crate::error::{Error, ErrorKind, Result};
use crate::name::check_service;
use crate::registry::{CAPABILITIES, Instance, OWN_QUEUE};
use crate::topology::{self, SERVICE_EXCHANGE, Topology};
use crate::transport::{LinkSpec, Sink};

impl ServiceServerBuilder {
    /// Starts the workers, declares the service's queue and consumes from it, and
    /// registers the instance. Blocks until the checks have run, at most 10 s, the
    /// broker has agreed, at most 10 s, and the registry has answered, at most 3 s; a
    /// registry that does not is no error. When it returns, requests are being served,
    /// unless a check fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for names that do not fit, an action that
    /// was given twice, no workers, or delays that are no delays; [`ErrorKind::Broker`] if the broker
    /// refuses, [`ErrorKind::TimedOut`] if it does not answer,
    /// [`ErrorKind::Closed`] after the broker was closed.
    ///
    /// Keep what it returns: dropping it shuts the server down.
    pub fn start(mut self) -> Result<ServiceServer> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        check_service(&self.service)?;
        self.options.check(&self.service)?;
        if self.handlers.is_empty() {
            log::warn!(
                target: "coney::server",
                "{} has no handlers: every request gets an error", self.service
            );
        }
        let mut actions: Vec<String> = self.handlers.keys().cloned().collect();
        actions.sort_unstable();
        let health = self.start_health()?;
        let verdict = health.as_ref().and_then(Health::first_verdict);
        let mut delays = self.options.retry_delays.clone();
        delays.extend(self.options.deduplication.is_some().then_some(POSTPONE_FOR));
        let topology = topology::for_service(&self.service, &delays, self.quorum);
        let (service, broker, count) = (
            self.service.clone(),
            self.broker.clone(),
            self.options.workers,
        );
        let workers = Workers::start(&service, count, &broker, topology.clone(), |moves| {
            let dispatch = self.dispatch(moves);
            move |job| match job {
                Job::Message(delivery) => match dispatch.process(delivery, Attempt::default()) {
                    Processed::Batch(batch) => Some(Job::Batch(batch)),
                    // What failed waits in a queue of the broker and never here.
                    Processed::Done | Processed::Again(_) => None,
                },
                Job::Batch(batch) => {
                    batch.work(&dispatch.runner);
                    None
                }
            }
        })?;
        let intake = Arc::new(Intake { workers });
        let consumers = self.consume(topology, &intake, verdict.is_some());
        let consumers = Arc::new(consumers.inspect_err(|_| drop(intake.workers.stop()))?);
        let mut server = ServiceServer {
            stopped: AtomicBool::new(false),
            service: self.service.clone(),
            consumers,
            registration: None,
            health: Mutex::new(None),
            shutdown_timeout: self.options.shutdown_timeout,
            _broker: self.broker,
        };
        if let Some(registry) = &self.registry {
            let instance = described(self.instance, &actions, &verdict);
            let registration = registry.register(&self.service, instance)?;
            server.registration = Some(Arc::new(registration));
        }
        if let Some(health) = health {
            health.watch(Watched {
                verdict: verdict.clone(),
                consumers: Arc::clone(&server.consumers),
                registration: server.registration.clone(),
            });
            server.health = Mutex::new(Some(health));
        }
        let actions = actions.join(", ");
        match verdict {
            None => log::info!(
                target: "coney::server", "{service} serves {actions} with {count} workers"
            ),
            Some(fault) => log::warn!(
                target: "coney::server", "{service} is not well, and takes no requests: {fault}"
            ),
        }
        Ok(server)
    }

    fn start_health(&mut self) -> Result<Option<Health>> {
        if self.checks.is_empty() {
            return Ok(None);
        }
        let checks = std::mem::take(&mut self.checks);
        let health = Health::start(&self.service, checks, self.health_interval);
        health.map(Some).map_err(|error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{}: cannot start a thread for its checks", self.service),
            )
            .with_source(error)
        })
    }

    fn dispatch(&mut self, moves: Sender<Move>) -> Dispatch {
        let options = &mut self.options;
        let registered = self.registry.is_some();
        let runner = Runner {
            owner: self.service.clone(),
            instance_id: registered.then(|| self.instance.id().to_owned()),
            handlers: Handlers::ByAction(std::mem::take(&mut self.handlers)),
            max_body: self.broker.max_body(),
            deduplication: options
                .deduplication
                .take()
                .map(|(store, ttl)| Deduplication {
                    scope: self.service.clone(),
                    store,
                    ttl,
                    lease: options.deduplication_lease,
                }),
            nested: Arc::new(Nested {
                broker: self.broker.clone(),
                service: self.service.clone(),
                client: Mutex::new(options.client.take()),
            }),
        };
        Dispatch {
            runner,
            mover: Mover {
                broker: self.broker.clone(),
                inbox: Inbox {
                    owner: self.service.clone(),
                    queue: topology::request_queue(&self.service),
                    stem: topology::service_stem(&self.service),
                    counts: self.quorum,
                },
                retries: Retries::Queued(std::mem::take(&mut options.retry_delays)),
                redelivery_limit: options.redelivery_limit,
                moves,
            },
        }
    }

    /// Opens the links it takes requests from.
    fn consume(&self, topology: Topology, intake: &Arc<Intake>, paused: bool) -> Result<Consumers> {
        let sink = || Arc::clone(intake) as Arc<dyn Sink>;
        let prefetch = self.options.prefetch;
        let spec = LinkSpec::new(topology)
            .consume(topology::request_queue(&self.service), prefetch)
            .only_answers()
            .paused(paused);
        let shared = self.broker.open(spec, sink())?;
        let own = match &self.registry {
            None => None,
            Some(_) => {
                let name = topology::instance_queue(&self.service, self.instance.id());
                let spec = LinkSpec::new(topology::for_requests())
                    .consume_own(&*name, (SERVICE_EXCHANGE, &name), prefetch)
                    .only_answers()
                    .paused(paused);
                let wire = self.broker.open(spec, sink());
                let wire = wire.map_err(|error| {
                    shared.close();
                    let id = self.instance.id();
                    error.about(format_args!(
                        "cannot make the queue of the instance {id:?} (does another with that id \
                         run?)"
                    ))
                })?;
                Some(OwnQueue {
                    wire,
                    name,
                    is_there: AtomicBool::new(!paused),
                })
            }
        };
        Ok(Consumers {
            service: self.service.clone(),
            intake: Arc::clone(intake),
            shared,
            own,
            closed: AtomicBool::new(false),
        })
    }
}

/// An instance with what a server knows of itself.
fn described(mut instance: Instance, actions: &[String], verdict: &Verdict) -> Instance {
    if instance.host().is_none()
        && let Ok(host) = hostname::get()
    {
        instance = instance.with_host(host.to_string_lossy());
    }
    instance.set_health(verdict.as_deref());
    instance
        .with_actions(actions)
        .with_metadata("pid", &std::process::id())
        .with_metadata("coney", env!("CARGO_PKG_VERSION"))
        .with_metadata(CAPABILITIES, &[OWN_QUEUE])
}
