use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::decode::{never_sent, no_route, request_too_large, too_late_to_send};
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology;
use crate::transport::{Broker, ConfirmOutcome, ConfirmReceiver, SendState};

/// Why a transport lets go of a message.
const LET_GO: &str =
    "the connection was closed, or the broker refuses coney's channel (see the log)";

/// The broker's confirmation of a command or an event, still to come.
///
/// The deadline runs from the start: what has not been sent by then is not sent any
/// more. Dropping this takes nothing back; the outcome is then nobody's.
#[must_use = "only the outcome says whether the broker has it"]
pub struct PendingConfirm {
    /// Keeps the connection open until the outcome is known.
    broker: Broker,
    what: SendTarget,
    confirmation: ConfirmReceiver,
    send_state: Arc<SendState>,
    timeout: Duration,
    /// The size of its body.
    bytes: usize,
}

/// What was sent, for texts.
pub(crate) enum SendTarget {
    Command { service: String, action: String },
    Event { name: String },
}

impl fmt::Display for SendTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { service, action } => write!(f, "{service}.{action}"),
            Self::Event { name } => write!(f, "the event {name}"),
        }
    }
}

impl PendingConfirm {
    pub(crate) fn new(
        broker: &Broker,
        what: SendTarget,
        confirmation: ConfirmReceiver,
        send_state: Arc<SendState>,
        timeout: Duration,
        bytes: usize,
    ) -> Self {
        Self {
            broker: broker.clone(),
            what,
            confirmation,
            send_state,
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
        self.wait_until(self.send_state.deadline())
            .unwrap_or_else(|| Err(self.timed_out()))
    }

    /// Blocks until the broker has spoken, at most `timeout`; `None` means not
    /// yet. Once the deadline has passed, `Some` with the error; a
    /// confirmation that comes later than that still counts if it is asked again.
    ///
    /// # Errors
    ///
    /// As [`wait`](PendingConfirm::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.wait_until(deadline::after(timeout).min(self.send_state.deadline()))
            .or_else(|| {
                (Instant::now() >= self.send_state.deadline()).then(|| Err(self.timed_out()))
            })
    }

    /// The outcome if it is known; never blocks.
    ///
    /// # Errors
    ///
    /// As [`wait`](PendingConfirm::wait).
    pub fn try_wait(&self) -> Option<Result<()>> {
        self.wait_timeout(Duration::ZERO)
    }

    fn wait_until(&self, until: Instant) -> Option<Result<()>> {
        if let Err(error) = self.broker.check_home(&self.what) {
            return Some(Err(error));
        }
        let outcome = self.confirmation.wait(until)?;
        // Let go of because it is too late to send it.
        if outcome == ConfirmOutcome::Dropped && Instant::now() >= self.send_state.deadline() {
            return Some(Err(self.timed_out()));
        }
        Some(self.result(outcome))
    }

    fn result(&self, outcome: ConfirmOutcome) -> Result<()> {
        let (what, peer) = (&self.what, self.broker.address());
        let unknown = |cause: &str| {
            Error::new(
                ErrorKind::ConnectionLost,
                format!(
                    "the connection to {peer} was lost before {what} was confirmed ({cause}); \
                     whether the broker has it is unknown"
                ),
            )
        };
        let again = self.send_state.was_resent();
        match outcome {
            ConfirmOutcome::Confirmed => Ok(()),
            ConfirmOutcome::Returned(_) if again => {
                Err(unknown("sent again, it had no queue to go to"))
            }
            ConfirmOutcome::Returned(reason) => Err(match what {
                SendTarget::Command { service, .. } => no_route(what, service, &reason, peer),
                SendTarget::Event { name } => Error::new(
                    ErrorKind::NoRoute,
                    format!("nobody on {peer} has subscribed to the event {name} ({reason})"),
                ),
            }),
            ConfirmOutcome::TooLarge(limit) => {
                Err(request_too_large(what, self.bytes, limit, peer))
            }
            ConfirmOutcome::Refused(_) if again => Err(unknown("sent again, it was refused")),
            ConfirmOutcome::Refused(reason) => Err(Error::new(
                ErrorKind::Broker,
                match what {
                    SendTarget::Command { service, .. } => format!(
                        "{peer} refused {what} for the queue {}: {reason}",
                        topology::request_queue(service)
                    ),
                    SendTarget::Event { .. } => format!("{peer} refused {what}: {reason}"),
                },
            )),
            ConfirmOutcome::Lost(cause) => Err(unknown(&cause)),
            ConfirmOutcome::Dropped if self.send_state.abandon() => Err(never_sent(what, LET_GO)),
            ConfirmOutcome::Dropped => Err(unknown(LET_GO)),
        }
    }

    /// The deadline has passed. Gives up first, so that the answer to "can it still be
    /// sent?" is certain.
    fn timed_out(&self) -> Error {
        let (what, peer, timeout) = (&self.what, self.broker.address(), self.timeout);
        if self.send_state.abandon() {
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

impl fmt::Debug for PendingConfirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingSend")
            .field("what", &format_args!("{}", self.what))
            .finish_non_exhaustive()
    }
}
