//! The outcome of a call, before it is decoded.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Duration;

use crate::transport::Publication;

/// The outcome of a call.
#[derive(Clone, Debug)]
pub(crate) enum CallOutcome {
    Reply {
        body: ReplyBody,
        /// True if the request was sent again after a loss: the first sending may have run.
        was_resent: bool,
        /// The time from sending to the reply, if it is measured.
        after: Option<Duration>,
        /// True if a balancer picked an instance, and its queue took the request.
        is_of_pick: bool,
        /// The copy of the request, if there is one: freed fastest by the thread that made it.
        _request: Option<Box<Publication>>,
    },
    NoRoute {
        reason: String,
        /// The queue of the instance, if the call was addressed to one.
        queue: Option<String>,
    },
    /// A message was larger than its receiver takes.
    TooLarge(TooLarge),
    /// The broker refused the request, for this reason.
    Refused(String),
    Lost(Arc<str>),
    /// The client or the connection was closed before the request was sent.
    NotSent(Arc<str>),
    /// The client or the connection was closed after the request was sent.
    Closed(Arc<str>),
    /// The call was taken out of the table, and its outcome never came: the thread that took it
    /// has died.
    Unreported,
}

/// The message that was too large.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TooLarge {
    /// The request was too large for the broker.
    Request { bytes: usize, limit: Option<usize> },
    /// The reply was too large for this client.
    Reply { bytes: u64 },
}

/// The body of a reply, in a message of its own or among others.
#[derive(Clone)]
pub(crate) enum ReplyBody {
    Own(Vec<u8>),
    Part(Arc<Vec<u8>>, Range<usize>),
}

impl Deref for ReplyBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(body) => body,
            Self::Part(bodies, range) => bodies.get(range.clone()).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for ReplyBody {
    /// Shows the size only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyBody({} bytes)", self.len())
    }
}
