//! Deduplication of one queue's requests through a reply store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::leases::Leases;
use super::request::Request;
use super::{ClaimOutcome, ReplyStore};
use crate::base::random;

/// The deduplication of one server or subscription: its reply store, and the leases it holds there.
pub(crate) struct Deduplication {
    /// The first part of each key: a service, or a subscription's queue.
    scope: String,
    store: Arc<dyn ReplyStore>,
    ttl: Duration,
    lease: Duration,
    leases: Leases,
    outage: Mutex<Outage>,
    /// The time for which the store may be unavailable before consuming is paused.
    outage_limit: Duration,
}

/// An outage of a store. Reads no clock: the caller passes the time.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// Notes a failure; returns true for the first one of an outage.
    fn failed(&mut self, now: Instant) -> bool {
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        is_first
    }

    /// Notes a success; returns true if it ends an outage.
    fn succeeded(&mut self) -> bool {
        self.since.take().is_some()
    }

    fn is_longer_than(&self, outage_limit: Duration, now: Instant) -> bool {
        self.since
            .is_some_and(|since| now.saturating_duration_since(since) >= outage_limit)
    }
}

/// The result of claiming a request.
pub(super) enum Admission<'a> {
    /// The request is new: run it.
    Run(Claimed<'a>),
    /// The request was handled before; the reply.
    Repeated(Vec<u8>),
    /// Another worker is handling the request.
    InProgress,
    /// The store does not answer.
    StoreUnavailable,
}

/// The claim of a request, released when dropped.
pub(super) struct Claimed<'a> {
    deduplication: &'a Deduplication,
    key: String,
    owner: u64,
    completed: bool,
}

impl Deduplication {
    /// Starts the thread that renews leases.
    pub(crate) fn start(
        scope: &str,
        store: Arc<dyn ReplyStore>,
        ttl: Duration,
        lease: Duration,
        outage_limit: Duration,
    ) -> std::io::Result<Self> {
        Ok(Self {
            leases: Leases::start(scope, Arc::clone(&store), lease)?,
            scope: scope.to_owned(),
            store,
            ttl,
            lease,
            outage: Mutex::default(),
            outage_limit,
        })
    }

    /// Claims a request in the store. Blocks until the store answers or fails.
    pub(super) fn admit(&self, request: &Request<'_>) -> Admission<'_> {
        let key = self.key(request);
        let owner = random::random_u64();
        match self.store.claim(&key, owner, self.lease) {
            Ok(claim) => {
                self.answered();
                match claim {
                    ClaimOutcome::Granted => {
                        self.leases.hold(owner, &key);
                        Admission::Run(Claimed {
                            deduplication: self,
                            key,
                            owner,
                            completed: false,
                        })
                    }
                    ClaimOutcome::Done(reply) => Admission::Repeated(reply),
                    ClaimOutcome::InProgress => Admission::InProgress,
                }
            }
            Err(error) => {
                self.failed(&error);
                Admission::StoreUnavailable
            }
        }
    }

    /// Returns the key of a request: its action, source and id. An id alone is not unique: each
    /// sender makes its own, and may use one for several actions.
    fn key(&self, request: &Request<'_>) -> String {
        let mut key = self.scope.clone();
        for part in [request.action, request.source_service, request.message_id] {
            key.push('/');
            push_escaped(part, &mut key);
        }
        key
    }

    /// Pings the store once it has been unavailable for the limit, and fails while it does not
    /// answer: consuming is paused meanwhile, as no request can be handled.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self
            .outage
            .lock()
            .is_longer_than(self.outage_limit, Instant::now())
        {
            return Ok(());
        }
        match self.store.ping() {
            Ok(()) => {
                self.answered();
                Ok(())
            }
            Err(error) => Err(format!("the reply store is unavailable: {error}")),
        }
    }

    fn answered(&self) {
        if self.outage.lock().succeeded() {
            log::info!(
                target: "coney::worker", "{}: the reply store is available again", self.scope
            );
        }
    }

    /// Notes a failure of the store. Logs once per outage.
    fn failed(&self, error: &dyn fmt::Display) {
        if self.outage.lock().failed(Instant::now()) {
            log::error!(
                target: "coney::worker",
                "{}: the reply store is unavailable, requests are put off: {error}", self.scope
            );
        }
    }
}

/// Appends a part of a key with the separator escaped.
fn push_escaped(part: &str, key: &mut String) {
    for c in part.chars() {
        match c {
            '/' => key.push_str("%2F"),
            '%' => key.push_str("%25"),
            _ => key.push(c),
        }
    }
}

impl Claimed<'_> {
    /// Stores the reply of a request that has been handled.
    pub(super) fn complete(mut self, reply: &[u8]) {
        self.completed = true;
        let Deduplication {
            scope, store, ttl, ..
        } = self.deduplication;
        match store.complete(&self.key, self.owner, reply, *ttl) {
            Ok(true) => {}
            Ok(false) => log::warn!(
                target: "coney::worker",
                "{scope}: the request {:?} was also handled by another worker, and that worker's \
                 reply is kept", self.key
            ),
            Err(error) => self.deduplication.failed(&error),
        }
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.deduplication.leases.release(self.owner);
        if !self.completed
            && let Err(error) = self.deduplication.store.release(&self.key, self.owner)
        {
            self.deduplication.failed(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::MemoryReplyStore;
    use crate::message::Headers;

    fn request<'a>(action: &'a str, source: &'a str, id: &'a str) -> Request<'a> {
        Request {
            message_id: id,
            source_service: source,
            action,
            timestamp: 0,
            headers: Headers::new(),
            payload: "null",
        }
    }

    fn deduplication() -> Deduplication {
        let store = Arc::new(MemoryReplyStore::new(10));
        let long = Duration::from_secs(60);
        Deduplication::start("s", store, long, long, long).unwrap()
    }

    #[test]
    fn a_request_is_identified_by_action_source_and_id() {
        let deduplication = deduplication();
        let first = deduplication.admit(&request("reserve", "shop", "1"));
        assert!(matches!(first, Admission::Run(_)));
        for other in [
            request("capture", "shop", "1"),
            request("reserve", "pos", "1"),
        ] {
            assert!(matches!(deduplication.admit(&other), Admission::Run(_)));
        }
        let repeated = deduplication.admit(&request("reserve", "shop", "1"));
        assert!(matches!(repeated, Admission::InProgress));
        let key = |a, b, c| deduplication.key(&request(a, b, c));
        assert_ne!(key("a/b", "c", "d"), key("a", "b/c", "d"));
        assert_ne!(key("a%2Fb", "c", "d"), key("a/b", "c", "d"));
    }

    #[test]
    fn an_outage_is_over_the_limit_after_that_time() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert!(outage.failed(start));
        assert!(!outage.failed(start + seconds(29)));
        assert!(!outage.is_longer_than(seconds(30), start + seconds(29)));
        assert!(outage.is_longer_than(seconds(30), start + seconds(30)));
        assert!(outage.succeeded());
        assert!(!outage.succeeded());
        assert!(!outage.is_longer_than(seconds(30), start + seconds(60)));
    }
}
