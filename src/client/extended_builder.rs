//! The options of a client beyond sending: policies, layers and fallbacks.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::action_cache::ActionCache;
use super::builder::ServiceClientBuilder;
use super::fallback;
use super::layer::{CallLayer, LayeredCall, NextCall, OutgoingCall};
use crate::error::Error;
use crate::resilience::Resilience;

impl ServiceClientBuilder {
    /// Sets the policies for the services that are slow, failing, overloaded or gone, except for those
    /// with policies [of their own](ServiceClientBuilder::resilience_for). Each service has a state of
    /// its own. Defaults to none: each call is sent once.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, resilience::Resilience};
    /// let client = ServiceClient::builder(&Broker::memory(), "shop")
    ///     .resilience(Resilience::new())
    ///     .build()?;
    /// # let _ = client;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn resilience(mut self, resilience: Resilience) -> Self {
        self.extensions.resilience = resilience;
        self
    }

    /// Sets the policies for one service, in place of those for all. Defaults to those for all.
    pub fn resilience_for(mut self, service: impl Into<String>, resilience: Resilience) -> Self {
        let resilience_for = &mut self.extensions.resilience_for;
        resilience_for.insert(service.into(), resilience);
        self
    }

    /// Adds a layer round each whole call: its retries, its fallback and its cache are within. See
    /// [`CallLayer`]. It applies to blocking and asynchronous calls and to those of a proxy, and not to
    /// batches, commands and events.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "math")
    /// #     .respond("double", |n: u64| n * 2).start()?;
    /// let client = ServiceClient::builder(&broker, "shop")
    ///     .layer(|call, next| {
    ///         call.set_header("tenant", "blue");
    ///         let (action, begun) = (call.action().to_owned(), std::time::Instant::now());
    ///         next.run(call).map(move |result| {
    ///             println!("{action}: {:?}, {}", begun.elapsed(), result.is_ok());
    ///             result
    ///         })
    ///     })
    ///     .build()?;
    /// assert_eq!(client.call::<u64>("math", "double", &4)?, 8);
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn layer<F>(mut self, layer: F) -> Self
    where
        F: Fn(&mut OutgoingCall<'_>, NextCall<'_>) -> LayeredCall + Send + Sync + 'static,
    {
        self.extensions.layers.push(Arc::new(layer));
        self
    }

    /// Adds a layer round each attempt, within the policies: it runs again for each
    /// [retry](crate::resilience::Retry), and not for a call that a policy refuses or the cache answers. So
    /// a header that a cached response [varies](crate::cache::Cached::vary) by is not to be set here.
    /// Otherwise it is as [`layer`](ServiceClientBuilder::layer).
    pub fn attempt_layer<F>(mut self, layer: F) -> Self
    where
        F: Fn(&mut OutgoingCall<'_>, NextCall<'_>) -> LayeredCall + Send + Sync + 'static,
    {
        self.extensions.attempt_layers.push(Arc::new(layer));
        self
    }

    /// Adds a layer that is a type of its own, round each whole call, as
    /// [`layer`](ServiceClientBuilder::layer).
    pub fn layer_impl(mut self, layer: impl CallLayer) -> Self {
        self.extensions.layers.push(Arc::new(layer));
        self
    }

    /// Adds a layer that is a type of its own, round each attempt, as
    /// [`attempt_layer`](ServiceClientBuilder::attempt_layer).
    pub fn attempt_layer_impl(mut self, layer: impl CallLayer) -> Self {
        self.extensions.attempt_layers.push(Arc::new(layer));
        self
    }

    /// Sets the cache of an action, in place of an earlier one.
    pub(crate) fn action_cache(
        mut self,
        service: &str,
        action: &str,
        cache: Arc<dyn ActionCache>,
    ) -> Self {
        self.extensions.action_mut(service, action).cache = Some(cache);
        self
    }

    /// Sets the fallback of an action: it gets the request and the error of a call whose service
    /// [is unavailable](Error::is_unavailable), after all attempts, and may return an answer in its
    /// place. With `None`, or if it panics, the call fails with its error.
    /// [`call_detailed`](crate::ServiceClient::call_detailed) shows that an answer is a fallback's.
    /// Defaults to none.
    ///
    /// A service that returns the error of a call that it made itself has answered: a fallback belongs
    /// into the service whose call failed. If the payload does not decode into `Req`, the log has a
    /// warning, and the call fails.
    ///
    /// It runs on the thread that waits for the call. An answer from the
    /// [response cache](crate::cache::ResponseCache) that may stand in for the error comes before it.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient};
    /// let client = ServiceClient::builder(&Broker::memory(), "shop")
    ///     .fallback("reviews", "stars", |_article: &u64, _error| Some(Vec::<u8>::new()))
    ///     .build()?;
    /// assert!(client.call::<Vec<u8>>("reviews", "stars", &7)?.is_empty());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn fallback<Req, Resp, F>(mut self, service: &str, action: &str, fallback: F) -> Self
    where
        F: Fn(&Req, &Error) -> Option<Resp> + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
    {
        let extensions = self.extensions.action_mut(service, action);
        extensions.fallback = Some(fallback::typed(fallback));
        self
    }
}
