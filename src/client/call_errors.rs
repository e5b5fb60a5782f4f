//! The errors of calls that were refused, not sent or not answered.

use std::time::Duration;

use super::decode::{CallTarget, too_late_to_send};
use crate::error::{Error, ErrorKind, Phase};
use crate::error_kind::Refusal;
use crate::registry::Lookup;
use crate::resilience::Refused;
use crate::transport::SendState;

impl CallTarget<'_> {
    /// Creates the error of a call whose deadline has passed. Abandons the request first, so
    /// that it is certain whether it can still be sent.
    pub(super) fn timed_out(self, send_state: &SendState, timeout: Duration, peer: &str) -> Error {
        let Self { service, action } = self;
        if send_state.abandon() {
            return too_late_to_send(&self, timeout, peer);
        }
        Error::timed_out(
            Phase::Reply,
            format!(
                "{service}.{action} did not answer within {timeout:?}: it is slow, or no \
                 server of {service} is running; the request was sent and may still run"
            ),
        )
    }

    /// Adds the target to an error of the transport.
    pub(super) fn not_sent(self, error: Error) -> Error {
        error.about(format_args!("cannot call {self}"))
    }

    /// Creates the error of a service that the registry has no instance of.
    pub(super) fn no_instance(self, lookup: &Lookup) -> Error {
        let Self { service, action } = self;
        let fault = lookup.no_instance();
        Error::new(
            ErrorKind::NoInstance,
            format!("{service}.{action} was not sent: {fault}"),
        )
    }

    pub(super) fn closed(self, cause: &str) -> Error {
        let Self { service, action } = self;
        Error::new(
            ErrorKind::Closed,
            format!("cannot call {service}.{action}: {cause}"),
        )
        .with_nothing_ran(true)
    }

    /// Creates the error of a call that a policy has refused.
    pub(super) fn refused(self, refused: Refused) -> Error {
        let Refused { by, retry_after } = refused;
        let service = self.service;
        let left = retry_after.unwrap_or_default();
        let fault = match by {
            Refusal::Breaker if retry_after.is_none() => format!(
                "the circuit breaker of {service} is half-open, and its probes are under way"
            ),
            Refusal::Breaker => format!(
                "the circuit breaker of {service} is open for another {left:?}, since its calls \
                 have failed or the program holds it open"
            ),
            Refusal::Throttle => format!("{service} answers too many calls as busy"),
            Refusal::RateLimit => format!(
                "the rate limit of {service} has its next free place in {left:?}, after the \
                 deadline"
            ),
            Refusal::InFlight => format!(
                "too many calls of {service} are in flight already (max_in_flight of its policies)"
            ),
            Refusal::Backlog => format!("{service} has too large a backlog"),
            Refusal::Layer => "a layer refused it".to_owned(),
        };
        let text = format!("{self} was not sent: {fault}");
        Error::refused(by, text).with_retry_after(retry_after)
    }

    /// Creates the error of a call whose layer panicked.
    pub(super) fn layer_panicked(self, panic: &str) -> Error {
        let fault = format!("a layer round {self} panicked: {panic}");
        Error::new(ErrorKind::Misuse, fault)
    }

    /// Creates the error of a command whose service has too many messages waiting.
    pub(super) fn backlog(self, waiting: usize, most: usize) -> Error {
        Error::refused(
            Refusal::Backlog,
            format!(
                "{self} was not sent: {waiting} messages wait for {} already, and at most {most} \
                 may (max_backlog)",
                self.service
            ),
        )
    }

    pub(super) fn too_many_in_flight(self, max: usize) -> Error {
        Error::refused(
            Refusal::InFlight,
            format!("{self} was not sent: {max} calls are in flight already (max_in_flight)"),
        )
    }
}
