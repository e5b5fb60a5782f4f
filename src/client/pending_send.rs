use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use super::outcome::Target;
use crate::deadline;
use crate::error::Result;
use crate::transport::{Confirmation, Fate, Ticket};

/// The broker's confirmation of a command, still to come.
///
/// The deadline runs from the start: a command that has not been sent by then is
/// not sent any more. Dropping this takes nothing back; the outcome is then nobody's.
#[must_use = "only the outcome says whether the broker has the command"]
pub struct PendingSend {
    /// Keeps the connection open until the outcome is known.
    pub(super) client: Arc<Inner>,
    pub(super) service: String,
    pub(super) action: String,
    pub(super) confirmation: Confirmation,
    pub(super) ticket: Arc<Ticket>,
    pub(super) timeout: Duration,
}

impl PendingSend {
    /// Blocks until the broker has spoken, at most until the command's deadline.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::send`](crate::ServiceClient::send).
    pub fn wait(self) -> Result<()> {
        self.wait_until(self.ticket.deadline())
            .unwrap_or_else(|| self.timed_out())
    }

    /// Blocks until the broker has spoken, at most `timeout`; `None` means not
    /// yet. Once the command's own deadline has passed, `Some` with the error; a
    /// confirmation that comes later than that still counts if it is asked again.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::send`](crate::ServiceClient::send).
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.wait_until(deadline::after(timeout).min(self.ticket.deadline()))
            .or_else(|| (Instant::now() >= self.ticket.deadline()).then(|| self.timed_out()))
    }

    /// The outcome if it is known; never blocks.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::send`](crate::ServiceClient::send).
    pub fn try_wait(&self) -> Option<Result<()>> {
        self.wait_timeout(Duration::ZERO)
    }

    fn wait_until(&self, until: Instant) -> Option<Result<()>> {
        let fate = self.confirmation.wait(until)?;
        // Let go of because it is too late to send it.
        if fate == Fate::Dropped && Instant::now() >= self.ticket.deadline() {
            return Some(self.timed_out());
        }
        Some(
            self.target()
                .confirmed(fate, &self.ticket, self.client.peer()),
        )
    }

    fn timed_out(&self) -> Result<()> {
        let peer = self.client.peer();
        Err(self.target().unconfirmed(&self.ticket, self.timeout, peer))
    }

    fn target(&self) -> Target<'_> {
        Target {
            service: &self.service,
            action: &self.action,
        }
    }
}

impl fmt::Debug for PendingSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingSend")
            .field("service", &self.service)
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}
