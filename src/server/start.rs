//! From a builder to a running server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;

use super::context::Nested;
use super::deduplication::Deduplication;
use super::dispatch::Dispatch;
use super::health::{Health, Verdict, Watched};
use super::intake::{Consumers, Intake, OwnQueue};
use super::mover::{Mover, POSTPONE_FOR};
use super::moves::Moves;
use super::pool::Pool;
use super::{ServiceServer, ServiceServerBuilder};
use crate::error::{Error, ErrorKind, Result};
use crate::name::check_service;
use crate::registry::{CAPABILITIES, Instance, OWN_QUEUE};
use crate::topology::{self, Topology};
use crate::transport::{LinkSpec, Sink};

/// More attempts than anybody needs, each with a queue of its own.
const MOST_RETRIES: usize = 20;

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
        self.check()?;
        let mut actions: Vec<String> = self.handlers.keys().cloned().collect();
        actions.sort_unstable();
        let health = self.start_health()?;
        let verdict = health.as_ref().and_then(Health::first_verdict);
        let mut delays = self.retry_delays.clone();
        delays.extend(self.deduplication.is_some().then_some(POSTPONE_FOR));
        let topology = topology::for_service(&self.service, &delays, self.quorum);
        let (running, stopping) = bounded(0);
        let (mover, intake) = self.start_workers(topology.clone(), stopping)?;
        let consumers = self.consume(topology, &intake, verdict.is_some());
        let consumers = Arc::new(consumers.inspect_err(|_| drop(intake.pool.stop()))?);
        let mut server = ServiceServer {
            stopped: AtomicBool::new(false),
            service: self.service.clone(),
            consumers,
            registration: None,
            health: Mutex::new(None),
            running: Mutex::new(Some((running, mover))),
            shutdown_timeout: self.shutdown_timeout,
            _broker: self.broker.clone(),
        };
        if let Some(registry) = &self.registry {
            let instance = described(self.instance, &actions, &verdict);
            let registration = registry.register(&self.service, instance)?;
            server.registration = Some(Arc::new(registration));
        }
        if let Some(health) = health {
            health.watch(Watched {
                consumers: Arc::clone(&server.consumers),
                registration: server.registration.clone(),
            });
            server.health = Mutex::new(Some(health));
        }
        let (service, workers) = (&self.service, self.workers);
        let actions = actions.join(", ");
        match verdict {
            None => log::info!(
                target: "coney::server", "{service} serves {actions} with {workers} workers"
            ),
            Some(fault) => log::warn!(
                target: "coney::server", "{service} is not well, and takes no requests: {fault}"
            ),
        }
        Ok(server)
    }

    fn check(&mut self) -> Result<()> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        check_service(&self.service)?;
        if self.workers == 0 || self.prefetch == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("{}: workers and prefetch must be at least 1", self.service),
            ));
        }
        let is_delay = |delay: &Duration| (1..=u32::MAX.into()).contains(&delay.as_millis());
        if self.retry_delays.len() > MOST_RETRIES || !self.retry_delays.iter().all(is_delay) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{}: there may be {MOST_RETRIES} retry delays, from a millisecond to 49 days",
                    self.service
                ),
            ));
        }
        if self.handlers.is_empty() {
            log::warn!(
                target: "coney::server",
                "{} has no handlers: every request gets an error", self.service
            );
        }
        Ok(())
    }

    fn start_health(&mut self) -> Result<Option<Health>> {
        if self.checks.is_empty() {
            return Ok(None);
        }
        let checks = std::mem::take(&mut self.checks);
        let health = Health::start(&self.service, checks, self.health_interval);
        health.map(Some).map_err(|error| self.no_thread(error))
    }

    fn start_workers(
        &mut self,
        topology: Topology,
        stopping: Receiver<()>,
    ) -> Result<(Moves, Arc<Intake>)> {
        let (mover, moves) = Moves::start(&self.service, self.broker.clone(), topology, stopping)
            .map_err(|error| self.no_thread(error))?;
        let deduplication = self.deduplication.take().map(|(store, ttl)| Deduplication {
            service: self.service.clone(),
            store,
            ttl,
            lease: self.deduplication_lease,
        });
        let registered = self.registry.is_some();
        let dispatch = Dispatch {
            service: self.service.clone(),
            instance_id: registered.then(|| self.instance.id().to_owned()),
            handlers: std::mem::take(&mut self.handlers),
            max_body: self.broker.max_body(),
            mover: Mover {
                broker: self.broker.clone(),
                service: self.service.clone(),
                retry_delays: std::mem::take(&mut self.retry_delays),
                redelivery_limit: self.redelivery_limit,
                quorum: self.quorum,
                moves,
            },
            deduplication,
            nested: Nested {
                broker: self.broker.clone(),
                service: self.service.clone(),
                client: Mutex::new(self.client.take()),
            },
        };
        let pool = Pool::start(
            &self.service,
            self.workers,
            self.broker.awake(),
            move |delivery| {
                // A reply store is the user's code too. The delivery goes back
                // into its queue, which counts.
                if catch_unwind(AssertUnwindSafe(|| dispatch.process(delivery))).is_err() {
                    log::error!(target: "coney::server", "a worker panicked over a request");
                }
            },
        )
        .map_err(|error| self.no_thread(error))?;
        Ok((mover, Arc::new(Intake { pool })))
    }

    /// Opens the links it takes requests from.
    fn consume(&self, topology: Topology, intake: &Arc<Intake>, paused: bool) -> Result<Consumers> {
        let sink = || Arc::clone(intake) as Arc<dyn Sink>;
        let spec = LinkSpec::new(topology)
            .consume(topology::request_queue(&self.service), self.prefetch)
            .paused(paused);
        let shared = self.broker.open(spec, sink())?;
        let own = match &self.registry {
            None => None,
            Some(_) => {
                let name = topology::instance_queue(&self.service, self.instance.id());
                let options = topology::instance_queue_options(&self.service);
                let spec = LinkSpec::default()
                    .consume_own(&*name, options, self.prefetch)
                    .paused(paused);
                let wire = self.broker.open(spec, sink());
                let wire = wire.inspect_err(|_| shared.close())?;
                Some(OwnQueue { wire, name })
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

    fn no_thread(&self, error: std::io::Error) -> Error {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("{}: cannot start {} workers", self.service, self.workers),
        )
        .with_source(error)
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
