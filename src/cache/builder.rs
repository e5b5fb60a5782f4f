//! The cache as an option of clients.

use std::sync::Arc;

use super::{Cached, ResponseCache};
use crate::client::ServiceClientBuilder;

impl ServiceClientBuilder {
    /// Caches the responses of an action of a service. Calls, blocking and asynchronous, of this
    /// client and its clones then get a stored response while it is fresh, in well under a
    /// microsecond and the time of decoding it. Of several threads that call with the same payload
    /// and find no response, one sends its request, and the others wait for its response. Commands
    /// and [batches](crate::Batch) do not use the cache. Defaults to none; for the same action, the
    /// last settings count.
    ///
    /// Cache actions that only read, and see [`vary`](Cached::vary) if a response depends on the
    /// user. [`build`](ServiceClientBuilder::build) also blocks until the broker has started the
    /// subscriptions to the events that invalidate responses, at most 10 s for each, and fails with
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for settings that are not valid.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coney::cache::{Cached, ResponseCache};
    /// use coney::{Broker, ServiceClient};
    ///
    /// let cache = ResponseCache::new();
    /// let users = Cached::fresh_for(Duration::from_secs(60))
    ///     .tags(|user_id: &u64| [*user_id])
    ///     .invalidated_by("user.*", |user_id: &u64| [*user_id]);
    /// let client = ServiceClient::builder(&Broker::memory(), "shop")
    ///     .cache(&cache, "user-service", "get_user", users)
    ///     .build()?;
    /// # let _ = client;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn cache(self, cache: &ResponseCache, service: &str, action: &str, cached: Cached) -> Self {
        let cached = cache.action(service, action, cached);
        self.action_cache(service, action, Arc::new(cached))
    }
}
