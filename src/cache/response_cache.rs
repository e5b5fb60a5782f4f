//! The cache that programs create and give to their clients.

use std::fmt;
use std::sync::Arc;

use super::action::Action;
use super::cached::Cached;
use super::cached_action::CachedAction;
use super::core::Core;
use super::stats::CacheStats;

/// A cache of responses in memory, for clients that call the same actions again and again.
///
/// Give it to a client for each action by
/// [`ServiceClientBuilder::cache`](crate::client::ServiceClientBuilder::cache). Cheap to clone: all
/// clones share the responses and the bound. Clients with the same cache share its bound and its
/// threads, not their responses: each may call on another broker.
///
/// ```
/// use std::time::Duration;
/// use coney::cache::{Cached, ResponseCache};
/// use coney::{Broker, ServiceClient};
///
/// let cache = ResponseCache::new().max_bytes(16 << 20);
/// let client = ServiceClient::builder(&Broker::memory(), "shop")
///     .cache(&cache, "stock", "count", Cached::fresh_for(Duration::from_secs(1)))
///     .build()?;
/// assert_eq!(cache.stats().entries, 0);
/// # let _ = client;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "a cache has no effect until a client gets it"]
pub struct ResponseCache {
    core: Arc<Core>,
}

/// The default bound in bytes.
const MAX_BYTES: u64 = 64 << 20;

impl ResponseCache {
    /// Creates an empty cache with the default bound.
    pub fn new() -> Self {
        Self {
            core: Arc::new(Core::new(MAX_BYTES)),
        }
    }

    /// Sets the bound on the stored responses with their keys, in bytes; at the bound, those that are
    /// used least are removed. The cache is a new and empty one: set the bound before a client gets
    /// it. A response larger than a sixteenth of the bound is not stored. Beside the responses a
    /// cache takes half a MiB for the versions of tags. Defaults to 64 MiB.
    pub fn max_bytes(self, bytes: u64) -> Self {
        Self {
            core: Arc::new(Core::new(bytes)),
        }
    }

    /// Returns the numbers of hits, misses and so on. Does not block.
    pub fn stats(&self) -> CacheStats {
        self.core.stats()
    }

    /// Invalidates the responses of an action that have one of these [tags](Cached::tags), in this
    /// process, and those of requests that are on their way. Does not block.
    ///
    /// ```
    /// # use coney::cache::ResponseCache;
    /// let cache = ResponseCache::new();
    /// cache.invalidate("user-service", "get_user", [7]);
    /// ```
    pub fn invalidate<I>(&self, service: &str, action: &str, tags: I)
    where
        I: IntoIterator,
        I::Item: ToString,
    {
        let versions = &self.core.tags;
        for tag in tags {
            versions.invalidate(versions.tag(service, action, &tag.to_string()));
        }
    }

    /// Invalidates all responses of an action, as [`invalidate`](ResponseCache::invalidate).
    pub fn invalidate_action(&self, service: &str, action: &str) {
        let versions = &self.core.tags;
        versions.invalidate(versions.action(service, action));
    }

    /// Removes all responses. Those of requests that are on their way are not stored.
    pub fn clear(&self) {
        self.core.tags.invalidate_all();
        self.core.entries.clear();
    }

    pub(super) fn action(&self, service: &str, action: &str, settings: Cached) -> CachedAction {
        CachedAction(Arc::new(Action::new(&self.core, service, action, settings)))
    }
}

impl Default for ResponseCache {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ResponseCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
