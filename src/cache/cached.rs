//! The settings of the cached responses of one action.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::standing::Ages;
use crate::base::name::check_subscription;
use crate::error::{Error, ErrorKind, Result};
use crate::message;

/// The settings of the cached responses of one action: for how long they are used, and the events
/// that invalidate them. For
/// [`ServiceClientBuilder::cache`](crate::client::ServiceClientBuilder::cache).
///
/// A response's age counts from the moment at which its request was sent.
///
/// | age | a call gets |
/// | --- | --- |
/// | up to `ttl` | the response, at once |
/// | up to `ttl` + [`stale_for`](Cached::stale_for) | the response, at once, while it is refreshed in the background |
/// | up to `ttl` + [`stale_if_error`](Cached::stale_if_error) | a new response; the old one if the service is unavailable |
/// | more | a new response |
///
/// A response that an [event](Cached::invalidated_by) has invalidated is not used at all.
///
/// ```
/// use std::time::Duration;
/// use coney::cache::Cached;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct GetUser { user_id: u64 }
///
/// #[derive(Serialize, Deserialize)]
/// struct UserChanged { user_id: u64 }
///
/// let users = Cached::fresh_for(Duration::from_secs(60))
///     .stale_for(Duration::from_secs(300))
///     .stale_if_error(Duration::from_secs(3_600))
///     .tags(|request: &GetUser| [request.user_id])
///     .invalidated_by("user.*", |event: &UserChanged| [event.user_id]);
/// # let _ = users;
/// ```
#[derive(Clone)]
#[must_use = "settings have no effect until a client gets them"]
pub struct Cached {
    pub(super) ages: Ages,
    /// The headers that the response depends on.
    pub(super) vary: Vec<String>,
    pub(super) tags: Option<TagsOf>,
    pub(super) events: Vec<InvalidatingEvent>,
    /// The codes of the errors that are remembered, and for how long.
    errors: Vec<(String, Duration)>,
}

/// Returns the tags of a payload, or the reason why it cannot be decoded.
pub(super) type TagsOf =
    Arc<dyn Fn(&str) -> std::result::Result<Vec<String>, String> + Send + Sync>;

/// An event that invalidates responses.
#[derive(Clone)]
pub(super) struct InvalidatingEvent {
    pub(super) pattern: String,
    /// `None` if it invalidates all responses of the action.
    pub(super) tags: Option<TagsOf>,
}

impl Cached {
    /// Creates settings by which a response is used for `ttl`, and no longer.
    pub fn fresh_for(ttl: Duration) -> Self {
        Self {
            ages: Ages {
                ttl,
                stale_for: Duration::ZERO,
                stale_if_error: Duration::ZERO,
            },
            vary: Vec::new(),
            tags: None,
            events: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Sets for how long after its time to live a response is still returned, at once, while one
    /// call in the background replaces it; if that call fails, the response stays. The calls in the
    /// background of all actions of a cache are made one after the other. Defaults to zero.
    pub fn stale_for(mut self, time: Duration) -> Self {
        self.ages.stale_for = time;
        self
    }

    /// Sets for how long after its time to live a response is returned instead of an error, if the
    /// service [is unavailable](crate::Error::is_unavailable): no instance, no connection, no reply in
    /// time, overload, or a handler that panicked. A handler's own error is returned as it is. Defaults
    /// to zero: never.
    ///
    /// A response that an event has invalidated is not used, but while the connection is down,
    /// events are missed. Leave it at zero where an outdated response does damage, such as a
    /// permission.
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.ages.stale_if_error = time;
        self
    }

    /// Adds a header on which the response depends: calls with different values of it do not share
    /// responses. Defaults to none.
    ///
    /// **If a response depends on the user, and the user is in a header, name that header here.
    /// Otherwise one user gets the response of another.** The payload need not be named: calls with
    /// different payloads never share responses.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::cache::Cached;
    /// let orders = Cached::fresh_for(Duration::from_secs(5)).vary("user");
    /// # let _ = orders;
    /// ```
    pub fn vary(mut self, header: impl Into<String>) -> Self {
        self.vary.push(header.into());
        self
    }

    /// Sets the tags of a response, by which [events](Cached::invalidated_by) and
    /// [`ResponseCache::invalidate`](super::ResponseCache::invalidate) find it: what the response
    /// is about, such as the ids of users. Tags belong to the action. Defaults to none.
    ///
    /// `tags` runs on the calling thread before a request is sent, and on `coney-cache-NAME`. The
    /// response to a request that does not decode into `Req` is not stored.
    pub fn tags<Req, F, I>(mut self, tags: F) -> Self
    where
        Req: DeserializeOwned,
        F: Fn(&Req) -> I + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: ToString,
    {
        self.tags = Some(tags_of(tags));
        self
    }

    /// Invalidates responses by events: those with one of the tags that `tags` returns for an event
    /// whose name matches `pattern` (dotted words, `*` for one word, `#` for any number). Needs
    /// [`tags`](Cached::tags). May be called for several patterns.
    ///
    /// Every process that calls the action gets every event, while it is connected. Publish the
    /// event after the change that it reports: a response to a request that was sent before the event
    /// arrived is not stored. When the connection was lost, events have been missed, and no earlier
    /// response is fresh any more; a loss without a word from the network is noticed by the missing
    /// heartbeats.
    ///
    /// `tags` runs on the thread `coney-invalidate-NAME`, which all actions of a cache share: it must
    /// not block. An event that does not decode into `Event` invalidates all responses of the action.
    pub fn invalidated_by<Event, F, I>(mut self, pattern: impl Into<String>, tags: F) -> Self
    where
        Event: DeserializeOwned,
        F: Fn(&Event) -> I + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: ToString,
    {
        self.events.push(InvalidatingEvent {
            pattern: pattern.into(),
            tags: Some(tags_of(tags)),
        });
        self
    }

    /// Invalidates all responses of the action by every event whose name matches `pattern`, as
    /// [`invalidated_by`](Cached::invalidated_by), but without tags: for lists and searches.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::cache::Cached;
    /// let search = Cached::fresh_for(Duration::from_secs(30)).cleared_by("article.#");
    /// # let _ = search;
    /// ```
    pub fn cleared_by(mut self, pattern: impl Into<String>) -> Self {
        self.events.push(InvalidatingEvent {
            pattern: pattern.into(),
            tags: None,
        });
        self
    }

    /// Remembers errors with this [code](Error::remote_code) for `ttl`, such as `not_found`: calls
    /// get the error without a request. Defaults to none.
    pub fn remember_errors(mut self, code: impl Into<String>, ttl: Duration) -> Self {
        self.errors.push((code.into(), ttl));
        self
    }

    /// Returns for how long an error is remembered, if it is.
    pub(super) fn error_ages(&self, error: &Error) -> Option<Ages> {
        let code = error.remote_code()?;
        let (_, ttl) = self
            .errors
            .iter()
            .find(|(remembered, _)| remembered == code)?;
        Some(Ages {
            ttl: *ttl,
            stale_for: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        })
    }

    /// Checks the patterns, and that there are tags where events name some.
    pub(super) fn check(&self, service: &str, action: &str) -> Result<()> {
        for event in &self.events {
            check_subscription("pattern", &event.pattern)?;
            if event.tags.is_some() && self.tags.is_none() {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "the responses of {action} of {service} are invalidated by {} and have no \
                         tags: add Cached::tags, or use Cached::cleared_by",
                        event.pattern
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn tags_of<T, F, I>(tags: F) -> TagsOf
where
    T: DeserializeOwned,
    F: Fn(&T) -> I + Send + Sync + 'static,
    I: IntoIterator,
    I::Item: ToString,
{
    Arc::new(move |payload| {
        let value = message::decode::<T>(payload)?;
        let tags = tags(&value).into_iter();
        Ok(tags.map(|tag| tag.to_string()).collect())
    })
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<&str> = self.events.iter().map(|it| &*it.pattern).collect();
        f.debug_struct("Cached")
            .field("ttl", &self.ages.ttl)
            .field("stale_for", &self.ages.stale_for)
            .field("stale_if_error", &self.ages.stale_if_error)
            .field("vary", &self.vary)
            .field("tags", &self.tags.is_some())
            .field("invalidated_by", &patterns)
            .field("errors", &self.errors)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_with_tags_need_tags() {
        let cached =
            Cached::fresh_for(Duration::from_secs(1)).invalidated_by("user.*", |id: &u64| [*id]);
        let error = cached.check("user-service", "get_user").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error.to_string().contains("get_user of user-service"),
            "{error}"
        );
        let cached = cached.tags(|id: &u64| [*id]).cleared_by("all.users");
        assert!(cached.check("user-service", "get_user").is_ok());
        assert!(cached.cleared_by("").check("s", "a").is_err());
    }

    #[test]
    fn only_errors_with_the_code_are_remembered() {
        let second = Duration::from_secs(1);
        let cached = Cached::fresh_for(second * 60).remember_errors("not_found", second);
        let error = |code: Option<&str>| {
            Error::new(ErrorKind::Remote, "").with_code(code.map(str::to_owned))
        };
        let ages = cached.error_ages(&error(Some("not_found"))).unwrap();
        assert_eq!(ages.ttl, second);
        assert!(cached.error_ages(&error(Some("other"))).is_none());
        assert!(cached.error_ages(&error(None)).is_none());
    }
}
