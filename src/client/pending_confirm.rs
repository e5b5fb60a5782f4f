//! The publisher confirm of a command or an event, still to come.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::decode::{never_sent, no_route, request_too_large, too_late_to_send};
use super::pending::{Pending, Progress, ReadyOn};
use crate::base::callbacks::{Notifier, Watched};
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology;
use crate::transport::{Broker, ConfirmOutcome, ConfirmReceiver, SendState};

/// The reason why a transport drops a message.
const DROPPED: &str =
    "the connection was closed, or the broker refuses coney's channel (see the log)";

/// The publisher confirm of a command or an event, still to come.
///
/// The deadline runs from the start: a message that has not been sent by then is not sent any
/// more. Dropping this takes nothing back; the outcome is then unknown.
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

/// The command or event that was sent, for error texts.
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

    /// Blocks until the broker has confirmed, at most until the deadline.
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::send`](crate::ServiceClient::send) and
    /// [`EventPublisher::publish`](crate::EventPublisher::publish) do.
    pub fn wait(self) -> Result<()> {
        self.wait_until(self.send_state.deadline())
            .unwrap_or_else(|| Err(self.timed_out()))
    }

    /// Blocks until the broker has confirmed, at most `timeout`; `None` means not
    /// yet. Once the deadline has passed, returns `Some` with the error; a
    /// confirm that comes later still counts if this is called again.
    ///
    /// # Errors
    ///
    /// Fails as [`wait`](PendingConfirm::wait) does.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<()>> {
        self.wait_deadline(deadline::after(timeout))
    }

    /// Blocks until the broker has confirmed, at most until `deadline`; `None` means not yet.
    ///
    /// # Errors
    ///
    /// Fails as [`wait`](PendingConfirm::wait) does.
    pub fn wait_deadline(&mut self, deadline: Instant) -> Option<Result<()>> {
        let end = self.send_state.deadline();
        self.wait_until(deadline.min(end))
            .or_else(|| (Instant::now() >= end).then(|| Err(self.timed_out())))
    }

    /// Returns the outcome if it is known; never blocks.
    ///
    /// # Errors
    ///
    /// Fails as [`wait`](PendingConfirm::wait) does.
    pub fn try_wait(&mut self) -> Option<Result<()>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Runs `callback` when the broker has confirmed, has refused, or the deadline has passed.
    /// Returns at once. Callbacks run one after the other on the connection's one callback
    /// thread, which starts with the first: one that blocks holds up the others. A panic in a
    /// callback is logged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] in a forked child, [`ErrorKind::Io`] if the callback thread cannot be
    /// started or has ended. The callback does not run then.
    ///
    /// ```
    /// # use coney::{Broker, EventPublisher};
    /// # let (sender, receiver) = std::sync::mpsc::channel();
    /// let publisher = EventPublisher::new(&Broker::memory(), "order-service")?;
    /// publisher.publish_async("order.created", &4711)?.then(move |outcome| {
    ///     sender.send(outcome).unwrap();
    /// })?;
    /// assert!(receiver.recv().unwrap().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn then<F>(self, callback: F) -> Result<()>
    where
        F: FnOnce(Result<()>) + Send + 'static,
    {
        let broker = self.broker.clone();
        broker.watch(Box::new(ConfirmCallback {
            pending: self,
            callback,
        }))
    }

    fn wait_until(&self, until: Instant) -> Option<Result<()>> {
        if let Err(error) = self.broker.check_owner_process(&self.what) {
            return Some(Err(error));
        }
        let outcome = self.confirmation.wait(until)?;
        // Dropped because it is too late to send it.
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
                    format!("no subscription on {peer} matches the event {name} ({reason})"),
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
            ConfirmOutcome::Dropped if self.send_state.abandon() => Err(never_sent(what, DROPPED)),
            ConfirmOutcome::Dropped => Err(unknown(DROPPED)),
        }
    }

    /// Creates the error of a message whose deadline has passed. Abandons it first, so that it is
    /// certain whether it can still be sent.
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

/// A callback that waits for a publisher confirm.
struct ConfirmCallback<F> {
    pending: PendingConfirm,
    callback: F,
}

impl<F> Watched for ConfirmCallback<F>
where
    F: FnOnce(Result<()>) + Send + 'static,
{
    fn start(&mut self, ready: &Notifier) {
        self.pending.confirmation.set_notifier(ready.clone());
    }

    fn is_ready(&mut self, _ready: &Notifier) -> bool {
        self.pending.confirmation.is_decided()
    }

    fn deadline(&self) -> Instant {
        self.pending.send_state.deadline()
    }

    fn finish(self: Box<Self>) {
        let Self { pending, callback } = *self;
        callback(pending.wait());
    }
}

impl Progress for PendingConfirm {
    fn is_ready(&mut self) -> bool {
        self.confirmation.is_decided()
    }

    fn deadline(&self) -> Instant {
        self.send_state.deadline()
    }

    fn ready_on(&self) -> ReadyOn<'_> {
        ReadyOn::Confirm(&self.confirmation)
    }
}

impl Pending for PendingConfirm {}

impl fmt::Debug for PendingConfirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingConfirm")
            .field("what", &format_args!("{}", self.what))
            .finish_non_exhaustive()
    }
}
