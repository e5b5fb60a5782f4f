//! What other threads ask of the I/O thread.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use crate::error::Result;
use crate::transport::{Delivery, LinkSpec, Outcome, Publication, Receipt, Settle, Sink};

pub(super) type LinkId = u64;

/// How many messages wait to be sent. While the connection is down or blocked
/// callers wait here, the oldest first, and then for room, until their
/// deadlines. At 2 KiB a message it is 2 MiB; more would only be staler.
const OUTGOING_BOUND: usize = 1_024;

pub(super) enum Command {
    Open {
        link: LinkId,
        registered: Registered,
    },
    Settle {
        link: LinkId,
        session: u64,
        tag: u64,
        outcome: Outcome,
    },
    Get {
        link: LinkId,
        queue: String,
        done: Sender<Got>,
    },
    StopConsuming {
        link: LinkId,
        done: Sender<()>,
    },
    CloseLink {
        link: LinkId,
    },
    Close,
}

/// The first message of a queue, and how many are behind it.
pub(super) type Got = Result<Option<(Delivery, usize)>>;

/// A link as its owner knows it: what outlives a session.
pub(super) struct Registered {
    pub(super) spec: LinkSpec,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) settler: Arc<dyn Settle>,
    /// Who waits for the link to be opened for the first time.
    pub(super) opening: Option<Sender<Result<()>>>,
}

/// A message to be sent over a link's channel.
pub(super) struct Outgoing {
    pub(super) link: LinkId,
    pub(super) publication: Publication,
    pub(super) receipt: Option<Receipt>,
}

/// The sending ends, shared by everything that uses the connection.
#[derive(Clone)]
pub(super) struct Outbox {
    /// Never full: it holds at most one command for each unsettled delivery,
    /// whose number the prefetch counts bound, and one or two for each thread
    /// that opens or closes a link or takes a message off a queue.
    pub(super) commands: Sender<Command>,
    /// Bounded by [`OUTGOING_BOUND`].
    pub(super) outgoing: Sender<Outgoing>,
}

/// The receiving ends, owned by the I/O thread. Commands are taken always,
/// messages only while they can be sent.
pub(super) struct Inbox {
    pub(super) commands: Receiver<Command>,
    pub(super) outgoing: Receiver<Outgoing>,
}

pub(super) fn channels() -> (Outbox, Inbox) {
    let (commands, commands_in) = crossbeam_channel::unbounded();
    let (outgoing, outgoing_in) = crossbeam_channel::bounded(OUTGOING_BOUND);
    (
        Outbox { commands, outgoing },
        Inbox {
            commands: commands_in,
            outgoing: outgoing_in,
        },
    )
}
