use std::error::Error as StdError;
use std::time::Duration;

/// The error of a [`ReplyStore`]: any error.
pub type StoreError = Box<dyn StdError + Send + Sync>;

/// A store of the requests that have been handled, and of their replies, so that a
/// repeated request is not run again. Called by worker threads, and by the thread that
/// renews leases; may block for as long as it takes to ask a database.
///
/// [`MemoryReplyStore`](crate::MemoryReplyStore) serves one process,
/// [`RedisReplyStore`](crate::redis::RedisReplyStore) all servers of a service. In one of your
/// own each operation must be atomic.
///
/// A *claim* is the right to handle a request. It belongs to an `owner`, a number drawn
/// for it alone, and ends with its lease unless that is renewed. An owner whose claim has
/// passed to another changes nothing any more.
pub trait ReplyStore: Send + Sync {
    /// Claims the request `key` for `owner`, for at most `lease`, unless it is claimed or
    /// has been handled.
    ///
    /// # Errors
    ///
    /// Any. The request is not handled then: a call is answered with the code `busy`, a
    /// command or an event is tried again later, at no attempt's cost.
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError>;

    /// Extends the claim of `owner`, to `lease` from now; false if it has passed to
    /// another, or has ended. Called every third of a lease while the handler runs.
    ///
    /// # Errors
    ///
    /// Any; it is logged and tried again.
    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError>;

    /// Keeps the reply for `ttl` in place of the claim of `owner`; false, and nothing
    /// changes, if the claim has passed to another or a reply is there. A claim that has
    /// ended and that no other has taken counts as its owner's still.
    ///
    /// # Errors
    ///
    /// Any; it is logged, and the request may be run again if it is repeated.
    fn complete(
        &self,
        key: &str,
        owner: u64,
        reply: &[u8],
        ttl: Duration,
    ) -> Result<bool, StoreError>;

    /// Gives up the claim of `owner`: the request has failed and may be claimed again.
    ///
    /// # Errors
    ///
    /// Any; it is logged, and the claim ends with its lease.
    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError>;

    /// Checks that the store answers. Called while it is away, to find out when it is back.
    ///
    /// # Errors
    ///
    /// Any, as long as it does not.
    fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The outcome of [`ReplyStore::claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The request is the owner's to handle.
    Granted,
    /// Another owner is handling the request.
    InProgress,
    /// The request has been handled; its reply.
    Done(Vec<u8>),
}
