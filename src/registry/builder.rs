use super::cache::Cache;
use super::handle::Inner;
use super::heartbeat::HeartbeatThread;
use super::memory::MemoryRegistryStore;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::cached_service::LONGEST;
use super::{Registry, RegistryStore};
use crate::error::{Error, ErrorKind, Result};

/// Options for a [`Registry`]; made by [`Registry::builder`].
#[must_use = "a registry is made by build"]
pub struct RegistryBuilder {
    pub(super) store: Arc<dyn RegistryStore>,
    pub(super) heartbeat_interval: Duration,
    pub(super) cache_ttl: Duration,
    pub(super) lookup_timeout: Duration,
}

impl RegistryBuilder {
    pub(super) fn new(store: impl RegistryStore + 'static) -> Self {
        let heartbeat_ttl = store.heartbeat_ttl().min(LONGEST);
        Self {
            store: Arc::new(store),
            heartbeat_interval: heartbeat_ttl / 4,
            cache_ttl: heartbeat_ttl,
            lookup_timeout: Duration::from_secs(1),
        }
    }

    /// How often what was registered is heard of, give or take a tenth, so that many
    /// processes do not beat at the same moment. Default: four times in the time after
    /// which an instance counts as dead, that is, every 15 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval.min(LONGEST);
        self
    }

    /// How long the answer for a service may be used. It is renewed in the background
    /// before that, while the service is asked for. Whatever its age, when the last heartbeat
    /// of an instance in it is too old, the store is asked whether there is a newer one. Default: the time after
    /// which an instance counts as dead, that is, 60 s.
    pub fn cache_ttl(mut self, time: Duration) -> Self {
        self.cache_ttl = time.min(LONGEST);
        self
    }

    /// How long a look-up may wait for the store. Default: 1 s.
    pub fn lookup_timeout(mut self, timeout: Duration) -> Self {
        self.lookup_timeout = timeout;
        self
    }

    /// Makes the registry. Does not wait for the store, which may be down.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if instances would count as dead between two
    /// beats.
    pub fn build(self) -> Result<Registry> {
        let heartbeat_ttl = self.store.heartbeat_ttl();
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval > heartbeat_ttl / 2 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "beating every {:?} is not often enough where an instance counts as dead after \
                     {heartbeat_ttl:?}: at most half of that is",
                    self.heartbeat_interval
                ),
            ));
        }
        Ok(Registry::from_builder(self))
    }
}

impl Registry {
    /// A registry inside this process, with the default options. Each call makes another
    /// one: clone it to share it between servers and clients.
    pub fn memory() -> Self {
        Self::from_builder(RegistryBuilder::new(MemoryRegistryStore::new()))
    }

    /// Options for a registry over a store.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::{MemoryRegistryStore, Registry};
    ///
    /// let store = MemoryRegistryStore::new().with_heartbeat_ttl(Duration::from_secs(10));
    /// let registry = Registry::builder(store).cache_ttl(Duration::from_secs(5)).build()?;
    /// # let _ = registry;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn builder(store: impl RegistryStore + 'static) -> RegistryBuilder {
        RegistryBuilder::new(store)
    }

    pub(super) fn from_builder(builder: RegistryBuilder) -> Self {
        let store = builder.store;
        let cache = Cache::new(
            Arc::clone(&store),
            builder.cache_ttl,
            builder.lookup_timeout,
        );
        let cache = Arc::new(cache);
        let heartbeats = HeartbeatThread::new(
            Arc::clone(&store),
            builder.heartbeat_interval,
            Arc::clone(&cache),
        );
        Self {
            inner: Arc::new(Inner {
                store,
                cache,
                heartbeats: Mutex::new(heartbeats),
            }),
        }
    }
}

impl fmt::Debug for RegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBuilder")
            .field("beat_every", &self.heartbeat_interval)
            .field("cache_for", &self.cache_ttl)
            .field("lookup_timeout", &self.lookup_timeout)
            .finish_non_exhaustive()
    }
}
