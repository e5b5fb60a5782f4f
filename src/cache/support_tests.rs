//! Requests for the tests of the cache.

use std::time::{Duration, Instant};

use super::cached::Cached;
use super::cached_action::CachedAction;
use super::response_cache::ResponseCache;
use crate::client::{ActionCache, BackgroundCall, CacheRead, CachedAnswer, CachedRequest, Fill};
use crate::error::{Error, ErrorKind, Phase, Result};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A request with one header, and the response to its repetition in the background.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) payload: String,
    pub(super) user: Option<String>,
    pub(super) timeout: Duration,
    pub(super) refreshed: fn() -> Result<String>,
}

pub(super) fn request(payload: &str) -> Request {
    Request {
        payload: payload.to_owned(),
        user: None,
        timeout: PATIENCE,
        refreshed: || Err(unavailable()),
    }
}

impl Request {
    pub(super) fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    pub(super) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(super) fn refreshed(mut self, refreshed: fn() -> Result<String>) -> Self {
        self.refreshed = refreshed;
        self
    }

    pub(super) fn with<T>(&self, used: impl FnOnce(&CachedRequest<'_>) -> T) -> T {
        let header = |name: &str| (name == "user").then(|| self.user.clone()).flatten();
        used(&CachedRequest {
            payload: &self.payload,
            headers: &header,
            deadline: Instant::now() + self.timeout,
            refresh: &|| Box::new(self.refreshed) as BackgroundCall,
        })
    }

    pub(super) fn read(&self, cache: &CachedAction) -> CacheRead {
        self.with(|request| cache.read(request))
    }

    /// Returns the text of the response, and whether it is stale.
    pub(super) fn peek(&self, cache: &CachedAction) -> Option<(String, bool)> {
        let found = self.with(|request| cache.peek(request));
        found.map(|found| seen(&found.unwrap()))
    }

    pub(super) fn begin(&self, cache: &CachedAction) -> Fill {
        self.with(|request| cache.begin_fill(request))
    }

    /// Stores a response.
    pub(super) fn fill(&self, cache: &CachedAction, text: &str) {
        assert_eq!(self.begin(cache).finish(Ok(text)), None);
    }

    /// Takes the lead.
    pub(super) fn lead(&self, cache: &CachedAction) -> Fill {
        match self.read(cache) {
            CacheRead::Lead(fill) => fill,
            CacheRead::Answer(_) | CacheRead::Error(_) => panic!("there is a response"),
        }
    }
}

pub(super) fn seen(answer: &CachedAnswer) -> (String, bool) {
    (answer.text.to_string(), answer.is_stale)
}

pub(super) fn cached(settings: Cached) -> (ResponseCache, CachedAction) {
    let cache = ResponseCache::new();
    let action = cache.action("user-service", "get_user", settings);
    (cache, action)
}

pub(super) fn unavailable() -> Error {
    Error::new(ErrorKind::NoInstance, "no instance")
}

pub(super) fn timed_out() -> Error {
    Error::timed_out(Phase::Reply, "no reply")
}

pub(super) fn refused(code: &str) -> Error {
    Error::new(ErrorKind::Remote, "refused").with_code(Some(code.to_owned()))
}
