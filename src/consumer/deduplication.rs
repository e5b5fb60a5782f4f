//! The use of a reply store for one queue: is a request a repeated one?

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::leases::Leases;
use super::request::Request;
use super::{ClaimOutcome, ReplyStore};
use crate::base::random;

/// A reply store as one server or subscription uses it.
pub(crate) struct Deduplication {
    /// The first part of each key: a service, or a subscription's queue.
    scope: String,
    store: Arc<dyn ReplyStore>,
    ttl: Duration,
    lease: Duration,
    leases: Leases,
    outage: Mutex<Outage>,
    /// The time for which the store may be away before consumption pauses.
    patience: Duration,
}

/// For how long a store has been away. A plain struct that is told the time.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// True for the first failure of an outage.
    fn failed(&mut self, now: Instant) -> bool {
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        is_first
    }

    /// True if it was away.
    fn succeeded(&mut self) -> bool {
        self.since.take().is_some()
    }

    fn is_longer_than(&self, patience: Duration, now: Instant) -> bool {
        self.since
            .is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }
}

/// Whether a request may be run.
pub(super) enum Admission<'a> {
    Run(Claimed<'a>),
    Repeated(Vec<u8>),
    InProgress,
    /// The store does not answer.
    Unknown,
}

/// The right to run a request, given back when dropped.
pub(super) struct Claimed<'a> {
    by: &'a Deduplication,
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
        patience: Duration,
    ) -> std::io::Result<Self> {
        Ok(Self {
            leases: Leases::start(scope, Arc::clone(&store), lease)?,
            scope: scope.to_owned(),
            store,
            ttl,
            lease,
            outage: Mutex::default(),
            patience,
        })
    }

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
                            by: self,
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
                Admission::Unknown
            }
        }
    }

    /// A request is the same only if all of these are: ids are the sender's, and a sender
    /// may use one for several actions.
    fn key(&self, request: &Request<'_>) -> String {
        let mut key = self.scope.clone();
        for part in [request.action, request.source_service, request.message_id] {
            key.push('/');
            push_escaped(part, &mut key);
        }
        key
    }

    /// The fault of the store, once it has been away for so long that consuming is of no
    /// use. Asks the store whether it is back.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self
            .outage
            .lock()
            .is_longer_than(self.patience, Instant::now())
        {
            return Ok(());
        }
        match self.store.ping() {
            Ok(()) => {
                self.answered();
                Ok(())
            }
            Err(error) => Err(format!("the reply store is away: {error}")),
        }
    }

    fn answered(&self) {
        if self.outage.lock().succeeded() {
            log::info!(target: "coney::worker", "{}: the reply store answers again", self.scope);
        }
    }

    /// Logs once for each outage.
    fn failed(&self, error: &dyn fmt::Display) {
        if self.outage.lock().failed(Instant::now()) {
            log::error!(
                target: "coney::worker",
                "{}: the reply store does not answer, so requests are put off: {error}", self.scope
            );
        }
    }
}

/// Parts of a key may hold what stands between them.
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
    /// Keeps the answer of a request that has been handled.
    pub(super) fn complete(mut self, reply: &[u8]) {
        self.completed = true;
        let Deduplication {
            scope, store, ttl, ..
        } = self.by;
        match store.complete(&self.key, self.owner, reply, *ttl) {
            Ok(true) => {}
            Ok(false) => log::warn!(
                target: "coney::worker",
                "{scope}: the request {:?} was handled by another worker too; the reply of that \
                 one counts", self.key
            ),
            Err(error) => self.by.failed(&error),
        }
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.by.leases.let_go(self.owner);
        if !self.completed
            && let Err(error) = self.by.store.release(&self.key, self.owner)
        {
            self.by.failed(&error);
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
    fn the_same_id_for_another_action_or_from_another_source_is_another_request() {
        let deduplication = deduplication();
        let first = deduplication.admit(&request("reserve", "shop", "1"));
        assert!(matches!(first, Admission::Run(_)));
        for other in [
            request("capture", "shop", "1"),
            request("reserve", "pos", "1"),
        ] {
            assert!(matches!(deduplication.admit(&other), Admission::Run(_)));
        }
        let again = deduplication.admit(&request("reserve", "shop", "1"));
        assert!(matches!(again, Admission::InProgress));
        let key = |a, b, c| deduplication.key(&request(a, b, c));
        assert_ne!(key("a/b", "c", "d"), key("a", "b/c", "d"));
        assert_ne!(key("a%2Fb", "c", "d"), key("a/b", "c", "d"));
    }

    #[test]
    fn an_outage_is_long_after_so_long() {
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
