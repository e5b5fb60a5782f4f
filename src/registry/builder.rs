//! The options of a registry.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::cache::Cache;
use super::cached_service::LONGEST;
use super::caught_store::caught;
use super::handle::Inner;
use super::heartbeat::HeartbeatThread;
use super::memory::MemoryRegistryStore;
use super::{Registry, RegistryStore};
use crate::error::{Error, ErrorKind, Result};

/// Options of a [`Registry`]; made by [`Registry::builder`].
#[must_use = "a builder does nothing until build is called"]
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
            store: caught(store),
            heartbeat_interval: heartbeat_ttl / 4,
            cache_ttl: heartbeat_ttl,
            lookup_timeout: Duration::from_secs(1),
        }
    }

    /// Sets the time between two heartbeats of the instances registered here, varied by up to
    /// a tenth so that many processes do not write at the same moment. Defaults to a quarter of
    /// the store's [`heartbeat_ttl`](RegistryStore::heartbeat_ttl), that is, 15 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval.min(LONGEST);
        self
    }

    /// Sets the greatest age of a cached result. Defaults to the store's
    /// [`heartbeat_ttl`](RegistryStore::heartbeat_ttl), that is, 60 s.
    ///
    /// While a service is looked up, its result is refreshed in the background after half that
    /// time. A result of any age is refreshed when the last heartbeat of one of its instances
    /// is too old, as the store may have a newer one.
    pub fn cache_ttl(mut self, ttl: Duration) -> Self {
        self.cache_ttl = ttl.min(LONGEST);
        self
    }

    /// Sets the longest time for which a look-up waits for the store. Defaults to 1 s.
    pub fn lookup_timeout(mut self, timeout: Duration) -> Self {
        self.lookup_timeout = timeout;
        self
    }

    /// Creates the registry. Does not call the store, which may be down.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::InvalidConfig`] if the heartbeat interval is zero or more than half
    /// of the store's [`heartbeat_ttl`](RegistryStore::heartbeat_ttl).
    pub fn build(self) -> Result<Registry> {
        let heartbeat_ttl = self.store.heartbeat_ttl();
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval > heartbeat_ttl / 2 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "a heartbeat interval of {:?} does not fit a heartbeat TTL of \
                     {heartbeat_ttl:?}: set it to at most half of that, and not to zero",
                    self.heartbeat_interval
                ),
            ));
        }
        Ok(Registry::from_builder(self))
    }
}

impl Registry {
    /// Creates a registry inside this process, with the default options. Clone it to share it
    /// between servers and clients: each call creates another registry.
    pub fn memory() -> Self {
        Self::with_defaults(MemoryRegistryStore::new())
    }

    /// Creates a registry over a store whose heartbeat TTL is not zero.
    pub(crate) fn with_defaults(store: impl RegistryStore + 'static) -> Self {
        Self::from_builder(RegistryBuilder::new(store))
    }

    /// Returns a builder for a registry over a store.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::Registry;
    /// use coney::registry::MemoryRegistryStore;
    ///
    /// let store = MemoryRegistryStore::new().with_heartbeat_ttl(Duration::from_secs(10));
    /// let registry = Registry::builder(store).cache_ttl(Duration::from_secs(5)).build()?;
    /// # let _ = registry;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn builder(store: impl RegistryStore + 'static) -> RegistryBuilder {
        RegistryBuilder::new(store)
    }

    fn from_builder(builder: RegistryBuilder) -> Self {
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
            .field("heartbeat_interval", &self.heartbeat_interval)
            .field("cache_ttl", &self.cache_ttl)
            .field("lookup_timeout", &self.lookup_timeout)
            .finish_non_exhaustive()
    }
}
