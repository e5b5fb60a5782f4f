//! The handle on a registry: look-ups and picks.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::cache::Cache;
use super::heartbeat::HeartbeatThread;
use super::{Balancer, Lookup, PickedInstance, RegistryStore};
use crate::error::Result;

/// A handle on a registry, in which services are registered and looked up.
///
/// Clones are cheap and may be used by any thread. Look-ups are answered from a cache, which a
/// thread of the registry refreshes; another thread renews the heartbeats of the instances
/// registered here. Both start when they are first needed and end with the last handle.
///
/// ```
/// use coney::{Broker, Registry, ServiceClient, ServiceServer};
///
/// let (broker, registry) = (Broker::memory(), Registry::memory());
/// let server = ServiceServer::builder(&broker, "greeter")
///     .handler("greet", |name: String| Ok::<_, String>(format!("Hello, {name}!")))
///     .registry(&registry) // or Redis::new("redis://localhost")?.registry()
///     .start()?;
/// for instance in registry.lookup("greeter")?.iter() {
///     println!("{} on {:?}", instance.id(), instance.host());
/// }
/// # assert_eq!(registry.lookup("greeter")?.iter().count(), 1);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct Registry {
    pub(super) inner: Arc<Inner>,
}

/// The state that the clones of a handle share.
pub(super) struct Inner {
    pub(super) store: Arc<dyn RegistryStore>,
    pub(super) cache: Arc<Cache>,
    pub(super) heartbeats: Mutex<HeartbeatThread>,
}

impl Registry {
    /// Returns the instances of a service, from the cache.
    ///
    /// Blocks until the store has answered, at most the
    /// [`lookup_timeout`](super::RegistryBuilder::lookup_timeout), if there is no cached result
    /// yet or if it is too old: older than the [`cache_ttl`](super::RegistryBuilder::cache_ttl),
    /// or an instance in it counts as dead by now. Other look-ups do not block. While the store
    /// does not answer, look-ups return the last known instances with a
    /// [`stale_reason`](Lookup::stale_reason).
    ///
    /// Other processes see a change of the instances or of their health after at most half of
    /// the `cache_ttl`, 30 s by default; [`refresh`](Registry::refresh) sees it now.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Registry`](crate::ErrorKind::Registry) if no instances are known, as
    /// the store has never answered for this service.
    pub fn lookup(&self, service: &str) -> Result<Lookup> {
        self.inner.cache.lookup(service, None)
    }

    /// Reads the instances of a service from the store. Blocks until it has answered, at most
    /// the [`lookup_timeout`](super::RegistryBuilder::lookup_timeout).
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the store fails or does
    /// not answer in time, even if a result is cached.
    pub fn refresh(&self, service: &str) -> Result<Lookup> {
        self.inner.cache.refresh(service, None)
    }

    /// Looks up a service and picks one of its live and healthy instances. Blocks as
    /// [`lookup`](Registry::lookup) does. The instance counts as busy until the
    /// [`PickedInstance`] is dropped.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::NoInstance`](crate::ErrorKind::NoInstance) if there is no such
    /// instance, and fails as [`lookup`](Registry::lookup) does.
    pub fn pick(&self, service: &str, balancer: &dyn Balancer) -> Result<PickedInstance> {
        self.lookup(service)?.pick(balancer, None)
    }

    /// Picks an instance as [`pick`](Registry::pick) does, for a key:
    /// [`ConsistentHash`](super::balance::ConsistentHash) picks the same instance for the same
    /// key, as long as it is there.
    ///
    /// # Errors
    ///
    /// Fails as [`pick`](Registry::pick) does.
    pub fn pick_with_key(
        &self,
        service: &str,
        balancer: &dyn Balancer,
        key: &str,
    ) -> Result<PickedInstance> {
        self.lookup(service)?.pick(balancer, Some(key))
    }

    /// Returns the sorted names of the services that have instances, read from the store. Blocks
    /// until it has answered, at most the store's own timeout.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the store fails or does
    /// not answer.
    pub fn services(&self) -> Result<Vec<String>> {
        self.inner.store.services()
    }

    /// Returns the instances of a service as [`lookup`](Registry::lookup) does, with a deadline.
    pub(crate) fn lookup_until(&self, service: &str, deadline: Instant) -> Result<Lookup> {
        self.inner.cache.lookup(service, Some(deadline))
    }

    /// Reads the instances of a service as [`refresh`](Registry::refresh) does, with a deadline.
    pub(crate) fn refresh_until(&self, service: &str, deadline: Instant) -> Result<Lookup> {
        self.inner.cache.refresh(service, Some(deadline))
    }

    /// Makes the next look-up ask the store, after a call found that the result is wrong.
    pub(crate) fn invalidate(&self, service: &str) {
        self.inner.cache.invalidate(service);
    }

    /// Returns the cached result for a service, if there is one. Does not block.
    pub(crate) fn known(&self, service: &str) -> Option<Lookup> {
        self.inner.cache.known(service)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}
