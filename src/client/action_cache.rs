//! The seam between the client and a cache of responses: the cache implements it, and the client
//! does not know the cache.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::transport::Broker;

/// The responses of one action, cached for a client that calls it.
pub(crate) trait ActionCache: Send + Sync {
    /// Subscribes to the events that invalidate responses, for the client of this name. Called once,
    /// before any other method. Blocks until the broker has started the subscriptions, at most 10 s
    /// for each and at most until `deadline`.
    fn open(&self, broker: &Broker, client: &str, deadline: Option<Instant>) -> Result<()>;

    /// Looks a response up for a blocking call. If there is none, makes the caller the one that
    /// calls, or blocks until another caller has, at most until the request's deadline.
    fn read(&self, request: &CachedRequest<'_>) -> CacheRead;

    /// Looks a response up, or a remembered error, for an asynchronous call. Never blocks.
    fn peek(&self, request: &CachedRequest<'_>) -> Option<Result<CachedAnswer>>;

    /// Prepares to store the response of a request that is about to be sent, without looking one
    /// up: for asynchronous calls, and for those that want a new response. Never blocks.
    fn begin_fill(&self, request: &CachedRequest<'_>) -> Fill;
}

/// A request, as far as a cache needs it.
pub(crate) struct CachedRequest<'a> {
    /// The payload as JSON text.
    pub(crate) payload: &'a str,
    /// Returns a header of the call by its name, as JSON text.
    pub(crate) headers: &'a dyn Fn(&str) -> Option<String>,
    /// The moment until which the caller can wait.
    pub(crate) deadline: Instant,
    /// Returns a call that repeats the request later, on another thread: with the same headers, its
    /// own deadline, and without the cache. It should not keep the client open.
    pub(crate) refresh: &'a dyn Fn() -> BackgroundCall,
}

/// A call that returns the JSON text of the reply's data.
pub(crate) type BackgroundCall = Box<dyn FnOnce() -> Result<String> + Send>;

/// A response from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachedAnswer {
    /// The JSON text of the reply's data.
    pub(crate) text: Arc<str>,
    /// True if its time to live is over.
    pub(crate) is_stale: bool,
}

/// The result of looking a response up for a blocking call.
pub(crate) enum CacheRead {
    Answer(CachedAnswer),
    /// The error of another caller's request, or a remembered one.
    Error(Error),
    /// None: the caller calls, and finishes the fill.
    Lead(Fill),
}

/// The place of the response to a request that is on its way. To drop it unfinished is allowed:
/// one of the callers that wait then calls.
pub(crate) type Fill = Box<dyn PendingFill>;

/// The receiver of a response, in the cache.
pub(crate) trait PendingFill: Send + Sync {
    /// Stores a response, given as the JSON text of the reply's data, and passes it, or the error,
    /// to the callers that wait. Returns a stale response if one may stand in for the error.
    fn finish(self: Box<Self>, result: std::result::Result<&str, &Error>) -> Option<CachedAnswer>;
}
