//! The rate limits of a server's actions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ServiceServerBuilder;
use crate::consumer::{Context, LimitSettings};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::Registry;
use crate::resilience::{CountPeers, RateLimit};

/// The longest time for which the thread of a shared limit waits for the registry.
const COUNT_TIMEOUT: Duration = Duration::from_secs(1);

impl ServiceServerBuilder {
    /// Sets the rate at which the handler of an action gets requests, in this process; a limit that
    /// is [shared](crate::resilience::RateLimit) holds for all that share it. Defaults to no limit.
    ///
    /// Over the limit, a call is answered with the code `rate_limited` without having run, and
    /// fails with [`ErrorKind::Busy`](crate::ErrorKind::Busy) and the time after which to
    /// [retry](crate::Error::retry_after). Each request of a batch counts for itself. A command is
    /// not refused: it waits in a retry queue of the broker until its turn, at the pace of the
    /// limit, and no attempt is used up. Commands that wait for longer than the longest of the
    /// [`retry_delays`](ServiceServerBuilder::retry_delays) look for a turn after each such time,
    /// and others may overtake them.
    ///
    /// A request whose deadline has passed does not count. One that is repeated does, even if it is
    /// then answered from the store of the
    /// [deduplication](ServiceServerBuilder::deduplicate): the limit is checked before the store
    /// is asked. An action may have this limit and one [by key](ServiceServerBuilder::limit_by);
    /// [`start`](ServiceServerBuilder::start) refuses two of one kind, a limit of an action without
    /// a handler, and one that is invalid.
    ///
    /// ```
    /// use coney::resilience::RateLimit;
    /// use coney::{Broker, ErrorKind, ServiceClient, ServiceServer};
    ///
    /// let broker = Broker::memory();
    /// let server = ServiceServer::builder(&broker, "reports")
    ///     .respond("build", |month: u32| format!("report {month}"))
    ///     .limit("build", RateLimit::per_minute(2).burst(1))
    ///     .start()?;
    /// let client = ServiceClient::new(&broker, "shop")?;
    /// assert_eq!(client.call::<String>("reports", "build", &1)?, "report 1");
    /// let error = client.call::<String>("reports", "build", &2).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Busy);
    /// assert!(error.retry_after().is_some());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn limit(self, action: &str, rate: RateLimit) -> Self {
        self.add_limit(action, LimitSettings { rate, key: None })
    }

    /// Sets a rate for each key, as [`limit`](ServiceServerBuilder::limit) does for all requests:
    /// for each caller, for example. `key` returns the key of a request. It runs on a worker for
    /// each request; if it panics, the request fails as if its handler had panicked.
    ///
    /// 10,000 keys have a state, which takes a few hundred bytes each. Beyond that, a new key takes
    /// the place of one that is idle, or of the one that is idle soonest, whose next calls then
    /// begin with a new burst. Of keys longer than 128 bytes the hash is kept.
    ///
    /// ```
    /// use coney::resilience::RateLimit;
    /// use coney::{Broker, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "search-service")
    ///     .respond("search", |query: String| vec![query])
    ///     .limit("search", RateLimit::per_second(1_000))
    ///     .limit_by("search", RateLimit::per_second(50), |context| {
    ///         context.source_service().to_owned()
    ///     })
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn limit_by<F>(self, action: &str, rate: RateLimit, key: F) -> Self
    where
        F: Fn(&Context<'_>) -> String + Send + Sync + 'static,
    {
        let key = Some(Arc::new(key) as _);
        self.add_limit(action, LimitSettings { rate, key })
    }

    fn add_limit(mut self, action: &str, limit: LimitSettings) -> Self {
        self.limits.push((action.to_owned(), limit));
        self
    }

    /// Checks the limits, once all handlers are known.
    pub(super) fn check_limits(&self) -> Result<()> {
        let service = &self.service;
        for (n, (action, limit)) in self.limits.iter().enumerate() {
            let invalid = |fault: &str| {
                let fault = format!("{service}.{action} has {fault}");
                Err(Error::new(ErrorKind::InvalidConfig, fault))
            };
            if !self.handlers.contains_key(action) {
                return invalid("a rate limit and no handler: is the name of the action right?");
            }
            let is_same = |(other, it): &(String, LimitSettings)| {
                other == action && it.key.is_some() == limit.key.is_some()
            };
            if self.limits[..n].iter().any(is_same) {
                return invalid("two rate limits of one kind: leave one of them out");
            }
            limit.check(format_args!("{service}.{action}"), self.registry.is_some())?;
        }
        Ok(())
    }
}

/// Returns a function that counts the instances of a service, as the registry knows them.
pub(super) fn count_instances(registry: &Registry, service: &str) -> CountPeers {
    let (registry, service) = (registry.clone(), service.to_owned());
    Arc::new(move || {
        let found = registry.refresh_until(&service, Instant::now() + COUNT_TIMEOUT);
        u32::try_from(found.ok()?.iter().len()).ok()
    })
}
