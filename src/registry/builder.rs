use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::entry::LONGEST;
use super::{Registry, ServiceRegistry};
use crate::error::{Error, ErrorKind, Result};

/// Options for a [`Registry`]; made by [`Registry::builder`].
#[must_use = "a registry is made by build"]
pub struct RegistryBuilder {
    pub(super) store: Arc<dyn ServiceRegistry>,
    pub(super) beat_every: Duration,
    pub(super) cache_for: Duration,
    pub(super) lookup_timeout: Duration,
}

impl RegistryBuilder {
    pub(super) fn new(store: impl ServiceRegistry + 'static) -> Self {
        let dead_after = store.dead_after().min(LONGEST);
        Self {
            store: Arc::new(store),
            beat_every: dead_after / 4,
            cache_for: dead_after,
            lookup_timeout: Duration::from_secs(1),
        }
    }

    /// How often what was registered is heard of, give or take a tenth, so that many
    /// processes do not beat at the same moment. Default: four times in the time after
    /// which an instance counts as dead, that is, every 15 s.
    pub fn beat_every(mut self, interval: Duration) -> Self {
        self.beat_every = interval.min(LONGEST);
        self
    }

    /// How long the answer for a service may be used. It is renewed in the background
    /// before that, while the service is asked for. Whatever its age, when the last heartbeat
    /// of an instance in it is too old, the store is asked whether there is a newer one. Default: the time after
    /// which an instance counts as dead, that is, 60 s.
    pub fn cache_for(mut self, time: Duration) -> Self {
        self.cache_for = time.min(LONGEST);
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
        let dead_after = self.store.dead_after();
        if self.beat_every.is_zero() || self.beat_every > dead_after / 2 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "beating every {:?} is not often enough where an instance counts as dead after \
                     {dead_after:?}: at most half of that is",
                    self.beat_every
                ),
            ));
        }
        Ok(Registry::from_builder(self))
    }
}

impl fmt::Debug for RegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBuilder")
            .field("beat_every", &self.beat_every)
            .field("cache_for", &self.cache_for)
            .field("lookup_timeout", &self.lookup_timeout)
            .finish_non_exhaustive()
    }
}
