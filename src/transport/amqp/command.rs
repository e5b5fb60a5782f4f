//! What other threads ask of the I/O thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::coalesce_buffer::CoalesceBuffer;
use crate::error::Result;
use crate::transport::{
    Budget, ConfirmSender, Delivery, Disposition, LinkSpec, Publication, Room, Settler, Sink,
};

pub(super) type LinkId = u64;

/// How many messages wait to be sent. While the connection is down or blocked
/// callers wait here, the oldest first, and then for room, until their
/// deadlines; more would only be staler. Their bytes have a bound of their own.
const MOST_OUTGOING: usize = 1_024;

pub(super) enum Command {
    Open {
        link: LinkId,
        registered: RegisteredLink,
    },
    Settler {
        link: LinkId,
        session: u64,
        tag: u64,
        outcome: Disposition,
    },
    /// Messages wait that may share one.
    SendWaiting {
        link: LinkId,
    },
    /// Takes the first message off a queue; without a name, off the link's own.
    Get {
        link: LinkId,
        queue: Option<String>,
        done: Sender<Got>,
    },
    /// Counts the messages in a queue.
    Backlog {
        link: LinkId,
        queue: String,
        done: Sender<Result<usize>>,
    },
    /// Answers when the broker has all that was sent before.
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
    DeleteOwnQueue {
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
pub(super) struct RegisteredLink {
    pub(super) spec: LinkSpec,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) settler: Arc<dyn Settler>,
    pub(super) waiting: Arc<CoalesceBuffer>,
    /// Who waits for the link to be opened for the first time.
    pub(super) opening: Option<Sender<Result<()>>>,
}

/// A message to be sent over a link's channel.
pub(super) struct Outgoing {
    pub(super) link: LinkId,
    pub(super) publication: Publication,
    pub(super) confirm: Option<ConfirmSender>,
    /// Its place among those that wait.
    place: Option<Room>,
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
        }
    }

    /// Its deadline has passed, or its owner has given up on it.
    pub(super) fn is_expired(&self) -> bool {
        self.publication.is_expired()
    }
}

/// The sending ends, shared by everything that uses the connection.
#[derive(Clone)]
pub(super) struct CommandSender {
    /// Never full: it holds at most one command for each unsettled delivery,
    /// whose number the prefetch counts bound (those that a look at the dead letters holds are
    /// settled as one), one for each link that has messages waiting, and one or two for each
    /// thread that opens or closes a link or takes a message off a queue.
    pub(super) commands: Sender<Command>,
    /// Bounded by the budget.
    outgoing: Sender<Outgoing>,
    places: Arc<Budget>,
    bytes: Arc<Budget>,
    /// Its other end, for what is put in when nobody takes it out any more.
    leftovers: Receiver<Outgoing>,
    closed: Arc<AtomicBool>,
}

impl CommandSender {
    /// Gives a message its room, unless it has some. Blocks while there is none, at most
    /// until `deadline`; false if it is too late, or [closed](CommandSender::is_closed).
    pub(super) fn make_room(&self, publication: &mut Publication, deadline: Instant) -> bool {
        if self.is_closed() {
            return false;
        }
        if publication.room.is_none() {
            publication.room = self.reserve(publication.body.len(), Some(deadline));
        }
        publication.room.is_some()
    }

    /// Room for so many bytes; without a deadline, if there is some now.
    pub(super) fn reserve(&self, bytes: usize, deadline: Option<Instant>) -> Option<Arc<Room>> {
        self.bytes.take(bytes, deadline).map(Arc::new)
    }

    /// Hands a message over. Blocks while there is no room, at most until
    /// `deadline`; false if it is too late, or [closed](CommandSender::is_closed).
    pub(super) fn send(&self, mut outgoing: Outgoing, deadline: Instant) -> bool {
        if !self.make_room(&mut outgoing.publication, deadline) {
            return false;
        }
        outgoing.place = self.places.take(1, Some(deadline));
        if outgoing.place.is_none() {
            return false;
        }
        let sent = self.outgoing.send(outgoing).is_ok();
        // Closed meanwhile: whoever waits for a receipt must hear of it.
        if self.is_closed() {
            self.leftovers.try_iter().for_each(drop);
        }
        sent
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// The receiving ends, owned by the I/O thread. Commands are taken always,
/// messages only while they can be sent.
pub(super) struct CommandReceiver {
    pub(super) commands: Receiver<Command>,
    pub(super) outgoing: Receiver<Outgoing>,
    closed: Arc<AtomicBool>,
}

impl CommandReceiver {
    /// Takes no more messages, and lets go of those that wait.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.outgoing.try_iter().for_each(drop);
    }
}

/// The ends of a connection that may hold so many bytes of messages to be sent.
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

    /// Those who have room for their bytes wait for nothing that those need who do not.
    #[test]
    fn many_large_messages_get_through() {
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
                assert!(sent.is_ok(), "they wait for each other");
            }
            assert!(senders.into_iter().all(|it| it.join().unwrap()));
        });
    }
}
