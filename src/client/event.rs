use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::message::CorrelationId;

/// How a call ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Reply {
        body: Vec<u8>,
        /// How long it took, if somebody wants to know.
        after: Option<Duration>,
    },
    NoRoute {
        reason: String,
        /// The queue, if it was for one in particular.
        queue: Option<String>,
    },
    Lost(Arc<str>),
    /// Closed before the request was sent.
    NotSent(Arc<str>),
    /// Closed when it was.
    Closed(Arc<str>),
}

/// What a callback is told: how the call ended, or that its time is over.
pub(crate) type Callback = Box<dyn FnOnce(Option<Outcome>) + Send>;

/// What the callback thread is woken by.
pub(crate) enum Event {
    /// A call has a callback from now on. Its outcome may be in its slot
    /// already.
    Watch {
        id: CorrelationId,
        deadline: Instant,
        slot: Receiver<Outcome>,
        callback: Callback,
    },
    /// A call has ended.
    Done { id: CorrelationId, outcome: Outcome },
    /// The client is gone.
    Stop,
}
