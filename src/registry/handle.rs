use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::cache::Cache;
use super::heartbeat::HeartbeatThread;
use super::{Balancer, Lookup, PickedInstance, RegistryStore};
use crate::error::Result;

/// A handle on a registry: where programs register, look up and balance.
///
/// Cheap to clone and free to share between threads. Look-ups are answered from a
/// cache, which one thread of its own keeps fresh; another beats for what was
/// registered here. Both start when they are first needed and end with the last
/// handle.
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

pub(super) struct Inner {
    pub(super) store: Arc<dyn RegistryStore>,
    pub(super) cache: Arc<Cache>,
    pub(super) heartbeats: Mutex<HeartbeatThread>,
}

impl Registry {
    /// The living and healthy instances of a service, from the cache.
    ///
    /// The first look-up of a service blocks until the store has answered, at most the
    /// look-up timeout, and so does the first one after what is known has become too old:
    /// when it has not been asked for longer than the cache holds, or an instance in it
    /// should have been heard of. Others do not block. While the store does not answer,
    /// look-ups give what was last known and [say so](Lookup::stale_reason), or fail at once.
    ///
    /// Whoever comes, leaves or is not well any more is thus seen after half the time the
    /// [cache holds](RegistryBuilder::cache_ttl), 30 s by default, by other processes than its
    /// own: [`refresh`](Registry::refresh) sees it now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if nothing is known, as the
    /// store has never answered for this service.
    pub fn lookup(&self, service: &str) -> Result<Lookup> {
        self.inner.cache.lookup(service, None)
    }

    /// Looks up at the store, now. Blocks until it has answered, at most the
    /// look-up timeout.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Registry::lookup); what was last known is not an answer here.
    pub fn refresh(&self, service: &str) -> Result<Lookup> {
        self.inner.cache.refresh(service, None)
    }

    /// Looks up and picks one of the living and healthy instances. Blocks as
    /// [`lookup`](Registry::lookup) does. Until the [`PickedInstance`] is dropped, the instance
    /// counts as busy with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoInstance`](crate::ErrorKind::NoInstance) if there is none; as
    /// [`lookup`](Registry::lookup).
    pub fn pick(&self, service: &str, balancer: &dyn Balancer) -> Result<PickedInstance> {
        self.lookup(service)?.pick(balancer, None)
    }

    /// [`pick`](Registry::pick) for a key, which
    /// [`ConsistentHash`](balance::ConsistentHash) takes to the same instance as long as
    /// there is that one.
    ///
    /// # Errors
    ///
    /// As [`pick`](Registry::pick).
    pub fn pick_with_key(
        &self,
        service: &str,
        balancer: &dyn Balancer,
        key: &str,
    ) -> Result<PickedInstance> {
        self.lookup(service)?.pick(balancer, Some(key))
    }

    /// The services that have instances, in order, asked for at the store. Blocks as
    /// long as that takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if it does not answer.
    pub fn services(&self) -> Result<Vec<String>> {
        self.inner.store.services()
    }

    /// The cache, for those that have a deadline.
    pub(crate) fn lookup_until(&self, service: &str, deadline: Instant) -> Result<Lookup> {
        self.inner.cache.lookup(service, Some(deadline))
    }

    /// The same, asked for at the store.
    pub(crate) fn refresh_until(&self, service: &str, deadline: Instant) -> Result<Lookup> {
        self.inner.cache.refresh(service, Some(deadline))
    }

    /// Somebody had to find out that what is known is not so: the next look-up asks.
    pub(crate) fn invalidate(&self, service: &str) {
        self.inner.cache.invalidate(service);
    }

    /// What is known of a service without asking anybody.
    pub(crate) fn known(&self, service: &str) -> Option<Lookup> {
        self.inner.cache.known(service)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}
