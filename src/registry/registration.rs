use super::registration_state::RegistrationState;
use crate::base::name::check_service;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::heartbeat::{HeartbeatCommand, RegisteredInstance};
use super::registration_state::RegistrationStatus;
use super::{Instance, Registry};
use crate::base::deadline;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Phase, Result};

/// How long registering waits to be written, and dropping to be deregistered.
const PATIENCE: Duration = Duration::from_secs(3);

/// An instance that is registered as long as this is kept: dropping it deregisters it.
///
/// A thread of the [`Registry`], `coney-beat-N`, beats for it meanwhile, and registers it again when
/// the store has lost its data. Dropping it blocks until it is deregistered, at most
/// 3 s; where that cannot be done, it counts as dead when it has not been heard of
/// for long enough.
///
/// ```
/// use coney::{Instance, Registry, RegistrationState};
///
/// let registry = Registry::memory();
/// let registration = registry.register("web", Instance::new().with_port(8080))?;
/// assert_eq!(registration.state(), RegistrationState::Registered);
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "dropping the registration deregisters the instance"]
pub struct Registration {
    /// Before the registry, whose end waits for the thread to find nobody at these.
    orders: Sender<HeartbeatCommand>,
    _registry: Registry,
    number: u64,
    service: String,
    id: String,
    status: Arc<RegistrationStatus>,
    home: OwnerProcess,
}

impl Registry {
    /// Registers an instance of `service`, and beats for it until the
    /// [`Registration`] is dropped, which deregisters it.
    ///
    /// Blocks until it is written, at most 3 s. If the store cannot be reached
    /// that is no error: it is written as soon as it can be, and
    /// [`Registration::state`] says so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a name that
    /// does not fit, or if no thread can be started.
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
        let sender = self.inner.heartbeats.lock().thread()?;
        let registration = Registration::start(self.clone(), sender, instance);
        Ok(registration)
    }
}

impl Registration {
    pub(super) fn start(
        registry: Registry,
        orders: Sender<HeartbeatCommand>,
        instance: Instance,
    ) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let registration = Self {
            orders,
            _registry: registry,
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            service: instance.service().to_owned(),
            id: instance.id().to_owned(),
            status: Arc::default(),
            home: OwnerProcess::current(),
        };
        let (done, written) = bounded(1);
        let _ = registration.orders.send(HeartbeatCommand::Register {
            number: registration.number,
            member: RegisteredInstance::new(instance, Arc::clone(&registration.status)),
            done,
        });
        let _ = written.recv_timeout(PATIENCE);
        registration
    }

    /// The service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The instance's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is in the registry, as far as is known.
    pub fn state(&self) -> RegistrationState {
        self.status.state.lock().clone()
    }

    /// Marks the instance as unhealthy for good: what it serves through is gone.
    pub(crate) fn set_disconnected(&self, cause: &str) {
        *self.status.lost.lock() = Some(cause.to_owned());
        self.tell();
    }

    /// Marks the instance as not well, and why, so that look-ups leave it out; `None`
    /// marks it as well again. Everybody can read the reason, of which 200 bytes are kept.
    /// Does not block: the registry is told by the next beat, which comes at once.
    ///
    /// ```
    /// # use coney::{Instance, Registry};
    /// # let registry = Registry::memory();
    /// let registration = registry.register("web", Instance::new())?;
    /// registration.set_unhealthy(Some("the disk is full"));
    /// # while registry.refresh("web")?.iter().count() > 0 {}
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn set_unhealthy(&self, because: Option<&str>) {
        *self.status.fault.lock() = because.map(str::to_owned);
        self.tell();
    }

    fn tell(&self) {
        // One order is enough for several changes.
        if !self.status.has_changed.swap(true, Ordering::SeqCst) {
            let number = self.number;
            let _ = self.orders.send(HeartbeatCommand::Health { number });
        }
    }

    /// Deregisters the instance, for good. Blocks until it is, at most `timeout`; a second
    /// time it has nothing to do, and in a forked child neither: the instance is its parent's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`] if the store fails, [`ErrorKind::TimedOut`] if it does not
    /// answer in time. The instance then counts as dead when it has not been heard of
    /// for long enough.
    pub fn deregister(&self, timeout: Duration) -> Result<()> {
        if self.home.is_another() || self.state() == RegistrationState::Deregistered {
            return Ok(());
        }
        let (done, left) = bounded(1);
        let _ = self.orders.send(HeartbeatCommand::Deregister {
            number: self.number,
            done,
        });
        let left = left.recv_deadline(deadline::after(timeout));
        match left {
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
                    "the instance {:?} of {} is not beating",
                    self.id, self.service
                ),
            )),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.deregister(PATIENCE) {
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
