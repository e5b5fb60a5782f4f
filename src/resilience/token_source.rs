//! The source of the tokens of a rate limit that several processes share.

use std::time::Duration;

use super::rate::Rate;
use crate::error::Result;

/// A store that counts the calls of several processes: Redis. Called by the thread of the limit
/// only; may block, for as long as the store's own timeout allows.
pub(crate) trait TokenSource: Send + Sync {
    /// Leases tokens for several keys of the limit `name`, in one round trip. Returns one lease for
    /// each request, in their order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the store does not answer, or refuses.
    fn lease(
        &self,
        name: &str,
        terms: &LeaseTerms,
        requests: &[LeaseRequest<'_>],
    ) -> Result<Vec<Lease>>;

    /// Returns the name of the store for logs, without credentials.
    fn describe(&self) -> String;
}

/// The terms of the leases of a limit.
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "only the token source in Redis reads all fields")
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseTerms {
    pub(crate) rate: Rate,
    /// The largest number of tokens that are free after a pause.
    pub(crate) most_free: u32,
}

/// A request for tokens.
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "only the token source in Redis reads all fields")
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseRequest<'a> {
    /// The key of a limit with keys; `None` for one without.
    pub(crate) key: Option<&'a str>,
    pub(crate) wanted: u32,
}

/// An answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// At most as many as are wanted.
    pub(crate) granted: u32,
    /// The time until another token is free, if fewer than wanted are granted.
    pub(crate) next_in: Duration,
}
