//! Registrations of instances, which last until they are dropped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::heartbeat::{HeartbeatCommand, RegisteredInstance};
use super::registration_state::{RegistrationState, RegistrationStatus};
use super::{Instance, Registry};
use crate::base::deadline;
use crate::base::name::check_service;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Phase, Result};

/// The time for which `register` and drop wait for the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(3);

/// The registration of an instance: dropping it deregisters the instance.
///
/// Until then a thread of the [`Registry`], `coney-heartbeat-N`, renews the instance's heartbeat, and
/// registers it again when the store has lost its data. Dropping it blocks until the instance is
/// deregistered, at most 3 s. An instance that could not be deregistered counts as dead once its
/// last heartbeat is older than the store's
/// [`heartbeat_ttl`](super::RegistryStore::heartbeat_ttl).
///
/// ```
/// use coney::registry::RegistrationState;
/// use coney::{Instance, Registry};
///
/// let registry = Registry::memory();
/// let registration = registry.register("web", Instance::new().with_port(8080))?;
/// assert_eq!(registration.state(), RegistrationState::Registered);
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the registration deregisters the instance"]
pub struct Registration {
    /// Declared, and so dropped, before the registry: its drop waits for the heartbeat thread,
    /// which ends when all senders are gone.
    commands: Sender<HeartbeatCommand>,
    _registry: Registry,
    number: u64,
    service: String,
    id: String,
    status: Arc<RegistrationStatus>,
    owner: OwnerProcess,
}

impl Registry {
    /// Registers an instance of `service`, and renews its heartbeat until the [`Registration`]
    /// is dropped.
    ///
    /// Blocks until the store has the instance, at most 3 s. An unreachable store is no error:
    /// registering is retried until it succeeds; see [`Registration::state`].
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::InvalidConfig`] if the name of the service or the id is invalid, and
    /// [`ErrorKind::Io`] if the heartbeat thread cannot be started.
    ///
    /// ```
    /// use coney::{Instance, Registry};
    ///
    /// let registry = Registry::memory();
    /// let registration = registry.register("web", Instance::new().with_port(8080))?;
    /// assert_eq!(registry.pick("web", &coney::balance::Random)?.port(), Some(8080));
    /// drop(registration);
    /// registry.refresh("web")?;
    /// assert!(registry.pick("web", &coney::balance::Random).is_err());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn register(&self, service: &str, instance: Instance) -> Result<Registration> {
        check_service(service)?;
        instance.check()?;
        let instance = instance.registered(service);
        let sender = self.inner.heartbeats.lock().commands()?;
        let registration = Registration::start(self.clone(), sender, instance);
        Ok(registration)
    }
}

impl Registration {
    pub(super) fn start(
        registry: Registry,
        commands: Sender<HeartbeatCommand>,
        instance: Instance,
    ) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let registration = Self {
            commands,
            _registry: registry,
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            service: instance.service().to_owned(),
            id: instance.id().to_owned(),
            status: Arc::default(),
            owner: OwnerProcess::current(),
        };
        let (done, written) = bounded(1);
        let _ = registration.commands.send(HeartbeatCommand::Register {
            number: registration.number,
            member: RegisteredInstance::new(instance, Arc::clone(&registration.status)),
            done,
        });
        let _ = written.recv_timeout(STORE_TIMEOUT);
        registration
    }

    /// Returns the name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Returns the instance's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether the instance is in the registry, as far as it is known.
    pub fn state(&self) -> RegistrationState {
        self.status.state.lock().clone()
    }

    /// Marks the instance as unhealthy for good: its connection to the broker is lost.
    pub(crate) fn set_disconnected(&self, cause: &str) {
        *self.status.lost.lock() = Some(cause.to_owned());
        self.send_health();
    }

    /// Marks the instance as unhealthy for the given reason, so that look-ups leave it out;
    /// `None` marks it as healthy again.
    ///
    /// Every reader of the registry sees the reason, of which 200 bytes are kept. Does not block:
    /// a heartbeat with the new health is sent at once.
    ///
    /// ```
    /// # use coney::{Instance, Registry};
    /// # let registry = Registry::memory();
    /// let registration = registry.register("web", Instance::new())?;
    /// registration.set_unhealthy(Some("the disk is full"));
    /// # while registry.refresh("web")?.iter().count() > 0 {}
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn set_unhealthy(&self, reason: Option<&str>) {
        *self.status.fault.lock() = reason.map(str::to_owned);
        self.send_health();
    }

    fn send_health(&self) {
        // One command is enough for several changes.
        if !self.status.has_changed.swap(true, Ordering::SeqCst) {
            let number = self.number;
            let _ = self.commands.send(HeartbeatCommand::Health { number });
        }
    }

    /// Deregisters the instance for good. Blocks until that is done, at most `timeout`.
    ///
    /// Does nothing the second time, and nothing in a forked child: the instance is its
    /// parent's.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Registry`] if the store fails, and [`ErrorKind::TimedOut`] if it does
    /// not answer in time. Deregistering is retried, and the instance counts as dead once its
    /// last heartbeat is too old.
    pub fn deregister(&self, timeout: Duration) -> Result<()> {
        if self.owner.is_another() || self.state() == RegistrationState::Deregistered {
            return Ok(());
        }
        let (done, deregistered) = bounded(1);
        let _ = self.commands.send(HeartbeatCommand::Deregister {
            number: self.number,
            done,
        });
        match deregistered.recv_deadline(deadline::after(timeout)) {
            Ok(result) => result,
            Err(error) if error.is_timeout() => Err(Error::timed_out(
                Phase::Shutdown,
                format!(
                    "the registry did not deregister the instance {:?} of {} within {timeout:?}",
                    self.id, self.service
                ),
            )),
            Err(_) => Err(Error::new(
                ErrorKind::Registry,
                format!(
                    "the instance {:?} of {} has no heartbeat thread",
                    self.id, self.service
                ),
            )),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.deregister(STORE_TIMEOUT) {
            log::warn!(target: "coney::registry", "{error}");
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("service", &self.service)
            .field("id", &self.id)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
