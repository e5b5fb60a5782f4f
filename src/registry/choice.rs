//! The choice that a balancer makes.

use std::fmt;
use std::sync::Arc;

use super::Candidate;

/// The input of a [`Balancer`](super::Balancer): the service, its candidates, and the caller's key.
///
/// To test a balancer of your own, give it to [`Registry::pick`](crate::Registry::pick) of a
/// [memory registry](crate::Registry::memory).
pub struct Choice<'a> {
    service: &'a str,
    candidates: &'a [Arc<Candidate>],
    key: Option<&'a str>,
}

impl<'a> Choice<'a> {
    /// Creates a choice between at least one candidate.
    pub(super) fn new(
        service: &'a str,
        candidates: &'a [Arc<Candidate>],
        key: Option<&'a str>,
    ) -> Self {
        Self {
            service,
            candidates,
            key,
        }
    }

    /// Returns the name of the service.
    pub fn service(&self) -> &'a str {
        self.service
    }

    /// Returns the live and healthy instances, ordered by their ids. There is at least one.
    pub fn candidates(&self) -> &'a [Arc<Candidate>] {
        self.candidates
    }

    /// Returns the caller's [`balance_key`](crate::CallOptions::balance_key), if it gave one.
    pub fn key(&self) -> Option<&'a str> {
        self.key
    }
}

impl fmt::Debug for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice")
            .field("service", &self.service)
            .field("candidates", &self.candidates)
            .field("key", &self.key)
            .finish()
    }
}
