use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outcome::{never_sent, no_route, request_too_large, too_late_to_send};
use crate::deadline;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology;
use crate::transport::{Broker, Confirmation, Fate, Ticket};

/// Why a transport lets go of a message.
const LET_GO: &str =
    "the connection was closed, or the broker refuses coney's channel (see the log)";

/// The broker's confirmation of a command or an event, still to come.
///
/// The deadline runs from the start: what has not been sent by then is not sent any
/// more. Dropping this takes nothing back; the outcome is then nobody's.
#[must_use = "only the outcome says whether the broker has it"]
pub struct PendingSend {
    /// Keeps the connection open until the outcome is known.
    broker: Broker,
    what: What,
    confirmation: Confirmation,
    ticket: Arc<Ticket>,
    timeout: Duration,
    /// The size of its body.
    bytes: usize,
}

/// What was sent, for texts.
pub(crate) enum What {
    Command { service: String, action: String },
    Event { name: String },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { service, action } => write!(f, "{service}.{action}"),
            Self::Event { name } => write!(f, "the event {name}"),
        }
    }
}

impl PendingSend {
    pub(crate) fn new(
        broker: &Broker,
        what: What,
        confirmation: Confirmation,
        ticket: Arc<Ticket>,
        timeout: Duration,
        bytes: usize,
    ) -> Self {
        Self {
            broker: broker.clone(),
            what,
            confirmation,
            ticket,
            timeout,
            bytes,
        }
    }

    /// Blocks until the broker has spoken, at most until the deadline.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::send`](crate::ServiceClient::send) and
    /// [`EventPublisher::publish`](crate::EventPublisher::publish).
    pub fn wait(self) -> Result<()> {
        self.wait_until(self.ticket.deadline())
            .unwrap_or_else(|| Err(self.timed_out()))
    }

    /// Blocks until the broker has spoken, at most `timeout`; `None` means not
    /// yet. Once the deadline has passed, `Some` with the error; a
    /// confirmation that comes later than that still counts if it is asked again.
    ///
    /// # Errors
    ///
    /// As [`wait`](PendingSend::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.wait_until(deadline::after(timeout).min(self.ticket.deadline()))
            .or_else(|| (Instant::now() >= self.ticket.deadline()).then(|| Err(self.timed_out())))
    }

    /// The outcome if it is known; never blocks.
    ///
    /// # Errors
    ///
    /// As [`wait`](PendingSend::wait).
    pub fn try_wait(&self) -> Option<Result<()>> {
        self.wait_timeout(Duration::ZERO)
    }

    fn wait_until(&self, until: Instant) -> Option<Result<()>> {
        if let Err(error) = self.broker.check_home(&self.what) {
            return Some(Err(error));
        }
        let fate = self.confirmation.wait(until)?;
        // Let go of because it is too late to send it.
        if fate == Fate::Dropped && Instant::now() >= self.ticket.deadline() {
            return Some(Err(self.timed_out()));
        }
        Some(self.result(fate))
    }

    fn result(&self, fate: Fate) -> Result<()> {
        let (what, peer) = (&self.what, self.broker.peer());
        let unknown = |cause: &str| {
            Error::new(
                ErrorKind::ConnectionLost,
                format!(
                    "the connection to {peer} was lost before {what} was confirmed ({cause}); \
                     whether the broker has it is unknown"
                ),
            )
        };
        let again = self.ticket.was_sent_again();
        match fate {
            Fate::Confirmed => Ok(()),
            Fate::Returned(_) if again => Err(unknown("sent again, it had no queue to go to")),
            Fate::Returned(reason) => Err(match what {
                What::Command { service, .. } => no_route(what, service, &reason, peer),
                What::Event { name } => Error::new(
                    ErrorKind::NoRoute,
                    format!("nobody on {peer} has subscribed to the event {name} ({reason})"),
                ),
            }),
            Fate::TooLarge(limit) => Err(request_too_large(what, self.bytes, limit, peer)),
            Fate::Refused(_) if again => Err(unknown("sent again, it was refused")),
            Fate::Refused(reason) => Err(Error::new(
                ErrorKind::Broker,
                match what {
                    What::Command { service, .. } => format!(
                        "{peer} refused {what} for the queue {}: {reason}",
                        topology::request_queue(service)
                    ),
                    What::Event { .. } => format!("{peer} refused {what}: {reason}"),
                },
            )),
            Fate::Lost(cause) => Err(unknown(&cause)),
            Fate::Dropped if self.ticket.abandon() => Err(never_sent(what, LET_GO)),
            Fate::Dropped => Err(unknown(LET_GO)),
        }
    }

    /// The deadline has passed. Gives up first, so that the answer to "can it still be
    /// sent?" is certain.
    fn timed_out(&self) -> Error {
        let (what, peer, timeout) = (&self.what, self.broker.peer(), self.timeout);
        if self.ticket.abandon() {
            return too_late_to_send(what, timeout, peer);
        }
        Error::timed_out(
            Phase::Confirm,
            format!(
                "{peer} did not confirm {what} within {timeout:?}; it was sent, and whether the \
                 broker has it is unknown"
            ),
        )
    }
}

impl fmt::Debug for PendingSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingSend")
            .field("what", &format_args!("{}", self.what))
            .finish_non_exhaustive()
    }
}
