//! The answer to a call, and where it comes from.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

use super::call_outcome::ReplyBody;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Span;

/// The source of an answer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The service's reply to this call.
    Service,
    /// The client's [response cache](crate::cache::ResponseCache), fresh.
    Cache,
    /// The client's response cache, past the entry's time to live: it is being refreshed, or the
    /// service is unavailable.
    Stale,
    /// A registered [fallback](crate::client::ServiceClientBuilder::fallback), as the service is
    /// unavailable.
    Fallback,
    /// A [layer](crate::client::CallLayer) of the client.
    Layer,
}

impl Origin {
    /// Returns the name in snake case, for labels of metrics and fields of logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Cache => "cache",
            Self::Stale => "stale",
            Self::Fallback => "fallback",
            Self::Layer => "layer",
        }
    }
}

impl fmt::Display for Origin {
    /// Writes the name in snake case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The decoded answer to a call, with its source. Made by
/// [`ServiceClient::call_detailed`](crate::ServiceClient::call_detailed).
///
/// Dereferences to the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    value: T,
    origin: Origin,
    attempts: u32,
}

impl<T> Answer<T> {
    pub(super) fn new(value: T, origin: Origin, attempts: u32) -> Self {
        Self {
            value,
            origin,
            attempts,
        }
    }

    /// Returns the source of the answer.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Returns the number of attempts that were begun for it: 0 if the cache or a layer answered
    /// before the first, more than 1 after a [retry](crate::resilience::Retry).
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the value, also where it has methods with the names of these.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Returns the value.
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> Deref for Answer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The undecoded answer to a call, as [layers](crate::client::CallLayer) see it.
#[derive(Clone)]
pub struct CallReply {
    text: ReplyText,
    pub(super) origin: Origin,
    pub(super) attempts: u32,
}

#[derive(Clone)]
enum ReplyText {
    /// The data within the body of a reply.
    Reply(ReplyBody, Span),
    Shared(Arc<str>),
}

impl CallReply {
    /// Creates an answer with the origin [`Origin::Layer`], for a layer that answers a call by itself.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Encode`] if serde_json cannot encode the value.
    pub fn new(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let text = serde_json::to_string(value).map_err(|error| {
            let fault = "cannot encode the answer of a layer";
            Error::new(ErrorKind::Encode, fault).with_source(error)
        })?;
        Ok(Self::shared(text.into(), Origin::Layer))
    }

    /// Creates the answer that a reply holds: its data are this part of the body.
    pub(super) fn of_reply(body: ReplyBody, data: Span) -> Self {
        Self {
            text: ReplyText::Reply(body, data),
            origin: Origin::Service,
            attempts: 1,
        }
    }

    pub(super) fn shared(text: Arc<str>, origin: Origin) -> Self {
        Self {
            text: ReplyText::Shared(text),
            origin,
            attempts: 0,
        }
    }

    pub(super) fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Returns the data as JSON text.
    pub fn json(&self) -> &str {
        match &self.text {
            ReplyText::Reply(body, data) => data.get(body),
            ReplyText::Shared(text) => text,
        }
    }

    /// Returns the source of the answer.
    pub fn origin(&self) -> Origin {
        self.origin
    }
}

impl fmt::Debug for CallReply {
    /// Shows the size only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallReply")
            .field("bytes", &self.json().len())
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}
