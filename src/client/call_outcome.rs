use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::message::CorrelationId;
use crate::transport::Publication;

/// How a call ended.
#[derive(Clone, Debug)]
pub(crate) enum CallOutcome {
    Reply {
        body: ReplyBody,
        /// How long it took, if somebody wants to know.
        after: Option<Duration>,
        /// The request, if it was kept: freed fastest by the thread that made it.
        _request: Option<Box<Publication>>,
    },
    NoRoute {
        reason: String,
        /// The queue, if it was for one in particular.
        queue: Option<String>,
    },
    /// A message was larger than its receiver takes.
    TooLarge(TooLarge),
    /// The broker would not take the request; why.
    Refused(String),
    Lost(Arc<str>),
    /// Closed before the request was sent.
    NotSent(Arc<str>),
    /// Closed when it was.
    Closed(Arc<str>),
    /// Decided, and not told: whoever was to tell it has died, or is about to.
    Untold,
}

/// The message that was too large.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TooLarge {
    /// The request, for the broker.
    Request { bytes: usize, limit: Option<usize> },
    /// The reply, for this client.
    Reply { bytes: u64 },
}

/// The body of a reply, or where it stands among others.
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

/// What a callback is told: how the call ended, or that its time is over.
pub(crate) type Callback = Box<dyn FnOnce(Option<CallOutcome>) + Send>;

/// What the callback thread is woken by.
pub(crate) enum CallbackEvent {
    /// A call has a callback from now on. Its outcome may be in its slot
    /// already.
    Watch {
        id: CorrelationId,
        deadline: Instant,
        slot: Receiver<CallOutcome>,
        callback: Callback,
    },
    /// A call has ended.
    Done {
        id: CorrelationId,
        outcome: CallOutcome,
    },
    /// The client is gone.
    Stop,
}
