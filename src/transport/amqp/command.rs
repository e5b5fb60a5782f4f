//! The commands and messages that other threads send to the I/O thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::coalesce_buffer::CoalesceBuffer;
use super::link_outlet::LinkOutlet;
use crate::error::Result;
use crate::transport::{
    Budget, ConfirmSender, Delivery, Disposition, LinkSpec, Publication, QueueDepth, Room, Settler,
    Sink,
};

pub(super) type LinkId = u64;

/// The number of messages that may wait to be sent. While the connection is down or blocked,
/// messages wait here, the oldest first, and further callers wait for room, until their
/// deadlines; a longer queue would only hold staler messages. Their bytes have a bound of
/// their own.
const MOST_OUTGOING: usize = 1_024;

/// A command to the I/O thread.
pub(super) enum Command {
    Open {
        link: LinkId,
        registered: Box<RegisteredLink>,
    },
    Settle {
        link: LinkId,
        session: u64,
        tag: u64,
        outcome: Disposition,
    },
    /// Sends messages before all others: a sink has returned them for a delivery.
    SendFirst {
        link: LinkId,
        publications: Vec<Publication>,
    },
    /// Passes on the deliveries that had to wait until others were settled.
    PassOnWaiting {
        link: LinkId,
    },
    /// Sends the messages in the link's coalesce buffer.
    SendCoalesced {
        link: LinkId,
    },
    /// Gets the first message of a queue; without a name, of the link's own queue.
    Get {
        link: LinkId,
        queue: Option<String>,
        done: Sender<GetResult>,
    },
    /// Counts the messages and the consumers of a queue, unless it is too late.
    Depth {
        queue: String,
        deadline: Instant,
        done: Sender<Result<QueueDepth>>,
    },
    /// Signals `done` when the broker has all that was sent before.
    Flush {
        link: LinkId,
        done: Sender<()>,
    },
    /// Starts or stops a link's consumer.
    Consume {
        link: LinkId,
        on: bool,
        done: Sender<()>,
    },
    /// Changes a link's prefetch.
    SetPrefetch {
        link: LinkId,
        count: u16,
        done: Sender<()>,
    },
    DeleteOwnQueue {
        link: LinkId,
        done: Sender<()>,
    },
    CloseLink {
        link: LinkId,
    },
    Close,
}

/// The first message of a queue, and the number of messages behind it.
pub(super) type GetResult = Result<Option<(Delivery, usize)>>;

/// The reason why the broker refused to reopen a link, until it is open again; shared with its
/// handle.
pub(super) type Refusal = Arc<Mutex<Option<String>>>;

/// A registered link, which outlives the sessions that open it.
pub(super) struct RegisteredLink {
    pub(super) spec: LinkSpec,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) settler: Arc<dyn Settler>,
    pub(super) outlet: Arc<LinkOutlet>,
    pub(super) commands: Sender<Command>,
    pub(super) coalesce_buffer: Arc<CoalesceBuffer>,
    pub(super) refusal: Refusal,
    /// The result channel of the thread that waits for the link to be opened for the first time.
    pub(super) opening: Option<Sender<Result<()>>>,
}

/// A message to be sent over a link's channel.
pub(super) struct Outgoing {
    pub(super) link: LinkId,
    pub(super) publication: Publication,
    pub(super) confirm: Option<ConfirmSender>,
    /// The place among the messages that wait.
    place: Option<Room>,
    /// The mark that a message of the link waits, which later ones must not overtake.
    pub(super) waits: Option<WaitingMark>,
}

/// The number of a link's messages that wait for the I/O thread.
pub(super) type WaitingCount = Arc<AtomicUsize>;

/// A share in a link's count of waiting messages, until it is dropped.
pub(super) struct WaitingMark(WaitingCount);

impl WaitingMark {
    pub(super) fn new(count: &WaitingCount) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for WaitingMark {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Outgoing {
    pub(super) fn new(
        link: LinkId,
        publication: Publication,
        confirm: Option<ConfirmSender>,
    ) -> Self {
        Self {
            link,
            publication,
            confirm,
            place: None,
            waits: None,
        }
    }

    /// Returns true if the deadline has passed or the owner has abandoned the message.
    pub(super) fn is_expired(&self) -> bool {
        self.publication.is_expired()
    }
}

/// The sending ends, of which everything that uses the connection has a clone.
#[derive(Clone)]
pub(super) struct CommandSender {
    /// Never full: it holds at most one command for each unsettled delivery,
    /// whose number the prefetch counts bound (those that are held while the dead letters are
    /// listed are settled as one), one for each settlement that makes room for a delivery that
    /// waits, one for each delivery for which a sink returns messages, one for each link with
    /// messages in its coalesce buffer, and
    /// one or two for each thread that opens, closes or changes a link, gets a message from a
    /// queue or counts those in it.
    pub(super) commands: Sender<Command>,
    /// Bounded by the two budgets.
    outgoing: Sender<Outgoing>,
    places: Arc<Budget>,
    bytes: Arc<Budget>,
    /// The receiving end, to drop messages that are queued after the I/O thread has closed it.
    leftovers: Receiver<Outgoing>,
    closed: Arc<AtomicBool>,
}

impl CommandSender {
    /// Reserves room for a message, unless it has some. Blocks while there is none, at most
    /// until `deadline`; returns false if that has passed, or if the connection is
    /// [closed](CommandSender::is_closed).
    pub(super) fn make_room(&self, publication: &mut Publication, deadline: Instant) -> bool {
        if self.is_closed() {
            return false;
        }
        if publication.room.is_none() {
            publication.room = self.reserve(publication.body.len(), Some(deadline));
        }
        publication.room.is_some()
    }

    /// Reserves room for `bytes`. Blocks while there is none, at most until `deadline`; without
    /// a deadline it does not block.
    pub(super) fn reserve(&self, bytes: usize, deadline: Option<Instant>) -> Option<Arc<Room>> {
        self.bytes.take(bytes, deadline).map(Arc::new)
    }

    /// Queues a message for sending. Blocks while there is no room, at most until `deadline`;
    /// returns false if that has passed, or if the connection is
    /// [closed](CommandSender::is_closed).
    pub(super) fn send(&self, mut outgoing: Outgoing, deadline: Instant) -> bool {
        if !self.make_room(&mut outgoing.publication, deadline) {
            return false;
        }
        outgoing.place = self.places.take(1, Some(deadline));
        if outgoing.place.is_none() {
            return false;
        }
        let sent = self.outgoing.send(outgoing).is_ok();
        // Closed meanwhile: dropping the messages settles the confirms that callers wait for.
        if self.is_closed() {
            self.leftovers.try_iter().for_each(drop);
        }
        sent
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// The receiving ends, owned by the I/O thread. It receives commands at any time, messages
/// only while they can be sent.
pub(super) struct CommandReceiver {
    pub(super) commands: Receiver<Command>,
    pub(super) outgoing: Receiver<Outgoing>,
    closed: Arc<AtomicBool>,
}

impl CommandReceiver {
    /// Accepts no more messages, and drops those that wait.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.outgoing.try_iter().for_each(drop);
    }
}

/// Creates both ends for a connection with room for `bytes` of messages that wait to be sent.
pub(super) fn channels(bytes: usize) -> (CommandSender, CommandReceiver) {
    let (commands, commands_in) = crossbeam_channel::unbounded();
    let (outgoing, outgoing_in) = crossbeam_channel::unbounded();
    let closed = Arc::new(AtomicBool::new(false));
    let sender = CommandSender {
        commands,
        outgoing,
        places: Arc::new(Budget::new(MOST_OUTGOING)),
        bytes: Arc::new(Budget::new(bytes)),
        leftovers: outgoing_in.clone(),
        closed: Arc::clone(&closed),
    };
    let receiver = CommandReceiver {
        commands: commands_in,
        outgoing: outgoing_in,
        closed,
    };
    (sender, receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    /// A sender that has room for its bytes does not wait behind one that waits for room.
    #[test]
    fn senders_at_the_limit_of_bytes_do_not_deadlock() {
        let (sender, receiver) = channels(4);
        let deadline = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let senders: Vec<_> = (0..40)
                .map(|_| {
                    scope.spawn(|| {
                        (0..50).all(|_| {
                            let publication = Publication::new("", "queue", b"x".to_vec());
                            sender.send(Outgoing::new(0, publication, None), deadline)
                        })
                    })
                })
                .collect();
            for _ in 0..40 * 50 {
                let sent = receiver.outgoing.recv_deadline(deadline);
                assert!(sent.is_ok(), "the senders wait for each other");
            }
            assert!(senders.into_iter().all(|it| it.join().unwrap()));
        });
    }
}
