//! The settings of a rate limit.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::rate::Rate;
use super::shared_limit::SharedLimit;
use super::token_source::TokenSource;
use crate::error::{Error, ErrorKind, Result};

/// A limit of the rate at which calls are made, or at which a server takes them.
///
/// Calls are admitted evenly spaced, except for a [burst](RateLimit::burst) after a pause. In any
/// time *t*, at most *rate × t + burst* calls are admitted. A turn that a call waits for and does not use,
/// as it is dropped, is lost.
///
/// | given to | over the limit |
/// | --- | --- |
/// | a client: [`Resilience::rate`](super::Resilience::rate) | a call waits for its turn, or is refused at once if that would come after its deadline |
/// | a server: [`limit`](crate::server::ServiceServerBuilder::limit), [`limit_by`](crate::server::ServiceServerBuilder::limit_by) | a call is answered as busy; a command waits for its turn in the broker |
/// | a subscription: [`limit`](crate::Subscription::limit) | an event waits for its turn |
///
/// The limit holds for one client, server or subscription in one process: those of other processes
/// have limits of their own, unless it is `shared` in Redis (feature `redis`).
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::RateLimit;
///
/// let search = RateLimit::per_second(200).burst(50);
/// let mails = RateLimit::per_minute(30);
/// let report = RateLimit::every(Duration::from_secs(10));
/// # let _ = (search, mails, report);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a rate limit has no effect until a client or a server gets it"]
pub struct RateLimit {
    rate: Rate,
    sharing: Option<Sharing>,
    /// The number of processes that share the limit, if it is set.
    peers: Option<u32>,
}

/// The part of a limit that is in a shared store.
#[derive(Clone)]
struct Sharing {
    name: String,
    source: Arc<dyn TokenSource>,
    /// The state in this process, which clones of the settings share, once it is needed.
    limit: Arc<OnceLock<Arc<SharedLimit>>>,
}

/// The longest time until a shared limit is idle after its burst, in a store that counts
/// microseconds.
const LONGEST_SHARED: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The longest name of a shared limit, in bytes.
const LONGEST_NAME: usize = 200;

impl RateLimit {
    /// Creates a limit of `calls` in a second.
    pub fn per_second(calls: u32) -> Self {
        Self::of(Rate::per_second(calls))
    }

    /// Creates a limit of `calls` in a minute.
    pub fn per_minute(calls: u32) -> Self {
        let mut limit = Self::per_second(calls);
        limit.rate.period = Duration::from_secs(60);
        limit
    }

    /// Creates a limit of one call in each `period`.
    pub fn every(period: Duration) -> Self {
        Self::of(Rate::every(period))
    }

    fn of(rate: Rate) -> Self {
        Self {
            rate,
            sharing: None,
            peers: None,
        }
    }

    /// Sets the number of calls that are admitted at once after a pause. Defaults to the calls of
    /// a tenth of a second, and to at least 1.
    pub fn burst(mut self, calls: u32) -> Self {
        self.rate.burst = Some(calls);
        self.apart()
    }

    /// Sets the number of processes that share a limit that is `shared` in Redis. While Redis does
    /// not answer, each of them admits its part of the rate. Defaults, for a server with a
    /// [registry](crate::server::ServiceServerBuilder::registry), to the number of its service's
    /// instances; without one, for clients and for subscriptions, it must be set. Without effect on
    /// a limit that is not shared.
    ///
    /// ```
    /// # #[cfg(feature = "redis")] {
    /// use coney::redis::Redis;
    /// use coney::resilience::RateLimit;
    ///
    /// let redis = Redis::new("redis://localhost")?;
    /// let limit = RateLimit::per_second(2_000).shared(&redis, "search").shared_by(8);
    /// # let _ = limit;
    /// # }
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn shared_by(mut self, processes: u32) -> Self {
        self.peers = Some(processes);
        self.apart()
    }

    /// Shares the limit by `source`, under a name.
    #[cfg(any(test, feature = "redis"))]
    pub(crate) fn with_source(mut self, source: Arc<dyn TokenSource>, name: String) -> Self {
        self.sharing = Some(Sharing {
            name,
            source,
            limit: Arc::default(),
        });
        self
    }

    /// Parts the state from that of clones whose settings are others.
    fn apart(mut self) -> Self {
        if let Some(sharing) = &mut self.sharing {
            sharing.limit = Arc::default();
        }
        self
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    pub(super) fn is_shared(&self) -> bool {
        self.sharing.is_some()
    }

    /// Returns the state in this process of a limit that is shared.
    pub(super) fn shared_limit(&self) -> Option<Arc<SharedLimit>> {
        let sharing = self.sharing.as_ref()?;
        let new = || {
            let source = Arc::clone(&sharing.source);
            Arc::new(SharedLimit::new(
                &sharing.name,
                self.rate,
                source,
                self.peers,
            ))
        };
        Some(Arc::clone(sharing.limit.get_or_init(new)))
    }

    /// Checks the settings. `counts_peers` is true if the number of processes is known from a
    /// registry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a limit that admits no call, or all at once; for a shared one
    /// without a valid name, or of an unknown number of processes.
    pub(crate) fn check(&self, counts_peers: bool) -> Result<()> {
        self.rate.check()?;
        let invalid = |fault: String| Err(Error::new(ErrorKind::InvalidConfig, fault));
        let Some(Sharing { name, .. }) = &self.sharing else {
            return Ok(());
        };
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(char::is_control) {
            return invalid(format!(
                "the name of a shared rate limit must have 1 to {LONGEST_NAME} bytes and no control \
                 characters: {name:?}"
            ));
        }
        let burst = self.rate.most_at_once();
        if self.rate.interval().saturating_mul(burst) > LONGEST_SHARED {
            return invalid(format!(
                "the shared rate limit {name:?} takes more than a year to admit its burst: raise the \
                 rate or lower the burst"
            ));
        }
        match self.peers {
            Some(0) => invalid(format!(
                "the rate limit {name:?} is shared by 0 processes: set `shared_by` to at least 1"
            )),
            None if !counts_peers => invalid(format!(
                "nothing says how many processes share the rate limit {name:?}, of which each admits \
                 its part while Redis does not answer: set `shared_by`"
            )),
            _ => Ok(()),
        }
    }
}

impl PartialEq for Sharing {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.source, &other.source)
    }
}

impl Eq for Sharing {}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing")
            .field("name", &self.name)
            .field("source", &self.source.describe())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::token_source::{Lease, LeaseRequest, LeaseTerms};

    struct NoSource;

    impl TokenSource for NoSource {
        fn lease(&self, _: &str, _: &LeaseTerms, _: &[LeaseRequest<'_>]) -> Result<Vec<Lease>> {
            Ok(Vec::new())
        }

        fn describe(&self) -> String {
            "no source".to_owned()
        }
    }

    #[test]
    fn limits_that_admit_nothing_or_all_are_refused() {
        for limit in [
            RateLimit::per_second(0),
            RateLimit::per_minute(0),
            RateLimit::every(Duration::ZERO),
            RateLimit::per_second(1).burst(0),
        ] {
            let error = limit.check(true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{limit:?}");
        }
    }

    #[test]
    fn a_shared_limit_has_a_name_and_a_number_of_processes() {
        let shared =
            |limit: RateLimit, name: &str| limit.with_source(Arc::new(NoSource), name.to_owned());
        let ten = || RateLimit::per_second(10);
        for (limit, counts_peers, wanted) in [
            (shared(ten(), "").shared_by(1), true, "name"),
            (shared(ten(), "a\nb").shared_by(1), true, "name"),
            (shared(ten(), "a").shared_by(0), true, "0 processes"),
            (shared(ten(), "a"), false, "shared_by"),
            (shared(RateLimit::every(Duration::MAX), "a"), true, "a year"),
        ] {
            let error = limit.check(counts_peers).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(wanted), "{error}");
        }
        assert!(shared(ten(), "a").check(true).is_ok());
        assert!(shared(ten(), "a").shared_by(8).check(false).is_ok());
    }

    #[test]
    fn clones_share_a_state_and_other_settings_have_their_own() {
        let limit = RateLimit::per_second(10).with_source(Arc::new(NoSource), "a".to_owned());
        let state = |limit: &RateLimit| limit.shared_limit().expect("it is shared");
        assert!(Arc::ptr_eq(&state(&limit), &state(&limit.clone())));
        let other = limit.clone().burst(7);
        assert!(!Arc::ptr_eq(&state(&limit), &state(&other)));
        assert!(limit == limit.clone() && limit != other);
    }
}
