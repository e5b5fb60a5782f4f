use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::error::Result;
use crate::running::Running;
use crate::topology::Topology;
use crate::transport::{Broker, Confirmation, Delivery, Fate, LinkSpec, NoSink, Publication};

/// How long the broker may take over a move.
pub(super) const MOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the thread waits after a move that failed. The message then goes back
/// into its queue, from which it would return at once.
const PAUSE: Duration = Duration::from_secs(1);

/// A message whose copy is on its way elsewhere.
pub(crate) struct Move {
    pub(super) delivery: Delivery,
    /// To which queue.
    pub(super) to: String,
    /// To be sent when the original is acknowledged.
    pub(super) reply: Option<Publication>,
    pub(super) confirmation: Result<Confirmation>,
    pub(super) deadline: Instant,
}

/// The thread that settles the originals of what was moved, once the broker has
/// confirmed the copies. One for all workers, so that many can be under way and a
/// broker that confirms slowly holds up no handler. It ends when it is told to stop.
pub(super) struct Moves(Running);

impl Moves {
    /// Starts it. The sender takes at most one move for each unsettled delivery,
    /// whose number the prefetch count bounds. When `stopping` disconnects, pauses end,
    /// and with the moves that there are the thread.
    pub(super) fn start(
        service: &str,
        broker: Broker,
        topology: Topology,
        stopping: Receiver<()>,
    ) -> std::io::Result<(Self, Sender<Move>)> {
        let (moves, inbox) = unbounded();
        let mover = Settling {
            service: service.to_owned(),
            broker,
            topology,
            stopping,
        };
        let settle = move || mover.run(&inbox);
        let thread = Running::start(format!("coney-mover-{service}"), settle)?;
        Ok((Self(thread), moves))
    }

    /// Waits for the thread to end, at most until `deadline`.
    pub(super) fn join(self, deadline: Instant) {
        let _ = self.0.join(deadline);
    }
}

struct Settling {
    service: String,
    broker: Broker,
    topology: Topology,
    stopping: Receiver<()>,
}

impl Settling {
    fn run(&self, inbox: &Receiver<Move>) {
        loop {
            crossbeam_channel::select! {
                recv(inbox) -> next => match next {
                    Ok(next) => self.settle(next),
                    Err(_) => return,
                },
                recv(self.stopping) -> _ => break,
            }
        }
        inbox.try_iter().for_each(|next| self.settle(next));
    }

    /// Replies and acknowledges the original once the copy is confirmed. If that
    /// fails, the original goes back into its queue.
    fn settle(&self, moving: Move) {
        let Move {
            delivery,
            to,
            reply,
            confirmation,
            deadline,
        } = moving;
        let fault = match confirmation.map(|confirmation| confirmation.wait(deadline)) {
            Ok(Some(Fate::Confirmed)) => {
                return match reply {
                    Some(reply) => delivery.ack_with(reply),
                    None => delivery.ack(),
                };
            }
            // The delivery is void too: the broker delivers it again.
            Ok(Some(Fate::Lost(_))) => return drop(delivery),
            Ok(Some(Fate::Dropped)) => "the broker was closed, or takes nothing".to_owned(),
            Ok(Some(Fate::Returned(reason))) => {
                self.declare();
                format!("there was no such queue ({reason})")
            }
            Ok(Some(Fate::Refused)) => "the broker refuses it".to_owned(),
            Ok(None) => format!("not confirmed within {MOVE_TIMEOUT:?}"),
            Err(error) => error.to_string(),
        };
        log::error!(
            target: "coney::worker",
            "{}: a message cannot be moved on to {to:?}, so it goes back into its queue: {fault}",
            self.service
        );
        let _ = self.stopping.recv_timeout(PAUSE);
        drop(delivery);
    }

    /// Makes the queues again that somebody has deleted.
    fn declare(&self) {
        let spec = LinkSpec::new(self.topology.clone());
        match self.broker.open(spec, Arc::new(NoSink)) {
            Ok(wire) => wire.close(),
            Err(error) => {
                log::error!(target: "coney::worker", "{}: {error}", self.service);
            }
        }
    }
}
