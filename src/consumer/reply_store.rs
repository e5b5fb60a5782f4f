//! The interface to stores of handled requests and their replies.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

/// The error of a [`ReplyStore`]: any error.
pub type StoreError = Box<dyn StdError + Send + Sync>;

/// A store of handled requests and their replies, so that a repeated request is not run again.
/// Called by worker threads, and by the thread that renews leases; may block for as long as
/// a query to a database takes.
///
/// [`MemoryReplyStore`](crate::deduplication::MemoryReplyStore) serves one process,
/// `redis::RedisReplyStore` all servers of a service. Each operation of an
/// implementation must be atomic.
///
/// A *claim* is the right to handle a request. It belongs to an `owner`, a random number drawn
/// for this claim alone, and ends with its lease unless that is renewed. Operations of an owner
/// whose claim has passed to another change nothing.
pub trait ReplyStore: Send + Sync {
    /// Claims the request `key` for `owner`, for at most `lease`, unless it is claimed or
    /// has been handled.
    ///
    /// # Errors
    ///
    /// Fails with any error of the store. The request is not handled then: a call gets a reply with
    /// the code `busy`; a command or an event is retried later and uses up no attempt.
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError>;

    /// Extends the claim of `owner` to `lease` from now; returns false if it has passed to another
    /// owner or has ended. Called every third of a lease while the handler runs.
    ///
    /// # Errors
    ///
    /// Fails with any error of the store. It is logged, and the renewal is tried again.
    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError>;

    /// Replaces the claim of `owner` by the reply, which is kept for `ttl`. Changes nothing and
    /// returns false if the claim has passed to another owner or a reply is stored already. A
    /// claim that has ended still belongs to its owner as long as no other has taken it.
    ///
    /// # Errors
    ///
    /// Fails with any error of the store. It is logged, and the request may be run again if it is
    /// repeated.
    fn complete(
        &self,
        key: &str,
        owner: u64,
        reply: &[u8],
        ttl: Duration,
    ) -> Result<bool, StoreError>;

    /// Releases the claim of `owner`: the request has failed and may be claimed again.
    ///
    /// # Errors
    ///
    /// Fails with any error of the store. It is logged, and the claim ends with its lease.
    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError>;

    /// Checks that the store answers. Called while the store is unavailable, to detect when it is
    /// available again.
    ///
    /// # Errors
    ///
    /// Fails with any error as long as the store does not answer.
    fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl<S: ReplyStore + ?Sized> ReplyStore for Arc<S> {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        (**self).claim(key, owner, lease)
    }

    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError> {
        (**self).renew(key, owner, lease)
    }

    fn complete(
        &self,
        key: &str,
        owner: u64,
        reply: &[u8],
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        (**self).complete(key, owner, reply, ttl)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        (**self).release(key, owner)
    }

    fn ping(&self) -> Result<(), StoreError> {
        (**self).ping()
    }
}

/// The outcome of [`ReplyStore::claim`].
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The request may be handled by this owner.
    Granted,
    /// Another owner is handling the request.
    InProgress,
    /// The request has been handled; the stored reply.
    Done(Vec<u8>),
}
