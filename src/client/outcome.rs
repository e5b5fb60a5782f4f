//! From how a call ended to what its caller is told.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::event::Outcome;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::message::{CODE_UNKNOWN_ACTION, Reply};
use crate::registry::Lookup;
use crate::topology;
use crate::transport::{Fate, Ticket};

/// Why a transport lets go of a message.
const LET_GO: &str =
    "the connection was closed, or the broker refuses coney's channel (see the log)";

/// What was called, for decoding replies and for every error text.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) service: &'a str,
    pub(super) action: &'a str,
}

impl Target<'_> {
    pub(super) fn result<T: DeserializeOwned>(self, outcome: Outcome, peer: &str) -> Result<T> {
        let Self { service, action } = self;
        match outcome {
            Outcome::Reply { body, .. } => self.decode(&body),
            Outcome::NoRoute {
                reason,
                queue: None,
            } => Err(self.no_route(&reason, peer)),
            Outcome::NoRoute {
                reason,
                queue: Some(queue),
            } => Err(Error::new(
                ErrorKind::NoRoute,
                format!(
                    "{service}.{action} has nowhere to go: the instance it is for is not there, \
                     or does not serve now (no queue {queue} on {peer}; {reason})"
                ),
            )),
            Outcome::Lost(cause) => Err(Error::new(
                ErrorKind::ConnectionLost,
                format!(
                    "the connection to {peer} was lost while {service}.{action} was called \
                     ({cause}); whether it ran is unknown"
                ),
            )),
            Outcome::NotSent(cause) => Err(self.never_sent(&cause)),
            Outcome::Closed(cause) => Err(Error::new(
                ErrorKind::Closed,
                format!("{service}.{action} was sent, but {cause}; whether it ran is unknown"),
            )),
        }
    }

    /// What became of a command.
    pub(super) fn confirmed(self, fate: Fate, ticket: &Ticket, peer: &str) -> Result<()> {
        let Self { service, action } = self;
        let unknown = |cause: &str| {
            Error::new(
                ErrorKind::ConnectionLost,
                format!(
                    "the connection to {peer} was lost before {service}.{action} was confirmed \
                     ({cause}); whether the broker has it is unknown"
                ),
            )
        };
        match fate {
            Fate::Confirmed => Ok(()),
            Fate::Returned(_) if ticket.was_sent_again() => {
                Err(unknown("sent again, it had no queue to go to"))
            }
            Fate::Returned(reason) => Err(self.no_route(&reason, peer)),
            Fate::Refused if ticket.was_sent_again() => Err(unknown("sent again, it was refused")),
            Fate::Refused => Err(Error::new(
                ErrorKind::Broker,
                format!(
                    "{peer} refused {service}.{action}: the queue {} is full or has failed",
                    topology::request_queue(service)
                ),
            )),
            Fate::Lost(cause) => Err(unknown(&cause)),
            Fate::Dropped if ticket.abandon() => Err(self.never_sent(LET_GO)),
            Fate::Dropped => Err(unknown(LET_GO)),
        }
    }

    fn no_route(self, reason: &str, peer: &str) -> Error {
        let Self { service, action } = self;
        Error::new(
            ErrorKind::NoRoute,
            format!(
                "{service}.{action} has nowhere to go: no such service has ever run on {peer} (no \
                 queue {}; {reason})",
                topology::request_queue(service)
            ),
        )
    }

    fn never_sent(self, cause: &str) -> Error {
        let Self { service, action } = self;
        Error::new(
            ErrorKind::NotSent,
            format!("{service}.{action} was not sent and will not be: {cause}"),
        )
    }

    fn decode<T: DeserializeOwned>(self, body: &[u8]) -> Result<T> {
        let Self { service, action } = self;
        let reply = Reply::decode(body).map_err(|error| {
            Error::new(
                ErrorKind::Decode,
                format!("what {service}.{action} answered is {error}"),
            )
            .with_text(error.raw_text().unwrap_or_default())
        })?;
        if reply.success {
            return reply.data.decode().map_err(|fault| {
                Error::new(
                    ErrorKind::Decode,
                    format!(
                        "the reply of {service}.{action} cannot be read as {}: {fault}",
                        std::any::type_name::<T>()
                    ),
                )
                .with_text(reply.data.as_str())
            });
        }
        let unknown_action = reply.error_code.as_deref() == Some(CODE_UNKNOWN_ACTION)
            || reply.error.strip_prefix("Unknown action: ") == Some(action);
        let (kind, message) = if unknown_action {
            let text = format!("{service} has no action {action:?}");
            (ErrorKind::UnknownAction, text)
        } else {
            let text = format!("{service}.{action} answered with an error: {}", reply.error);
            (ErrorKind::Remote, text)
        };
        Err(Error::new(kind, message)
            .with_text(reply.error)
            .with_code(reply.error_code.map(Into::into)))
    }

    /// The deadline has passed. Gives up on the request first, so that the
    /// answer to "can it still run?" is certain.
    pub(super) fn timed_out(self, ticket: &Ticket, timeout: Duration, peer: &str) -> Error {
        let Self { service, action } = self;
        if ticket.abandon() {
            return self.too_late_to_send(timeout, peer);
        }
        Error::timed_out(
            Phase::Reply,
            format!(
                "{service}.{action} did not answer within {timeout:?}: it is slow, or no \
                 server of {service} is running; the request was sent and may still run"
            ),
        )
    }

    /// The same for a command.
    pub(super) fn unconfirmed(self, ticket: &Ticket, timeout: Duration, peer: &str) -> Error {
        let Self { service, action } = self;
        if ticket.abandon() {
            return self.too_late_to_send(timeout, peer);
        }
        Error::timed_out(
            Phase::Confirm,
            format!(
                "{peer} did not confirm {service}.{action} within {timeout:?}; it was sent, and \
                 whether the broker has it is unknown"
            ),
        )
    }

    fn too_late_to_send(self, timeout: Duration, peer: &str) -> Error {
        let Self { service, action } = self;
        Error::timed_out(
            Phase::Send,
            format!(
                "{service}.{action} could not be sent to {peer} within {timeout:?} and will \
                 not be; the connection is down, blocked or too slow"
            ),
        )
    }

    /// Says what was being called in an error from further down.
    pub(super) fn not_sent(self, error: Error) -> Error {
        let Self { service, action } = self;
        let message = format!("cannot call {service}.{action}: {error}");
        match error.phase() {
            Some(phase) => Error::timed_out(phase, message),
            None => Error::new(error.kind(), message),
        }
        .with_source(error)
    }

    /// The registry knows nobody who would answer.
    pub(super) fn nobody(self, lookup: &Lookup) -> Error {
        let Self { service, action } = self;
        let nobody = lookup.nobody();
        Error::new(
            ErrorKind::NoInstance,
            format!("{service}.{action} was not sent: {nobody}"),
        )
    }

    pub(super) fn closed(self, cause: &str) -> Error {
        let Self { service, action } = self;
        Error::new(
            ErrorKind::Closed,
            format!("cannot call {service}.{action}: {cause}"),
        )
    }

    pub(super) fn too_many_in_flight(self, max: usize) -> Error {
        let Self { service, action } = self;
        Error::new(
            ErrorKind::Rejected,
            format!(
                "{service}.{action} was not sent: {max} calls are in flight already (max_in_flight)"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result<T: DeserializeOwned>(reply: &str) -> Result<T> {
        let target = Target {
            service: "user-service",
            action: "get_user",
        };
        let body = reply.as_bytes().to_vec();
        target.result(Outcome::Reply { body, after: None }, "memory")
    }

    #[test]
    fn peers_unknown_action_is_told_apart_from_a_handlers_error() {
        let error = result::<()>(r#"{"success":false,"error":"Unknown action: get_user"}"#);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::UnknownAction);
        let error = result::<()>(r#"{"success":false,"error":"Unknown action: other"}"#);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Remote);
        let coded = r#"{"success":false,"error":"x","error_code":"unknown_action"}"#;
        let error = result::<()>(coded).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownAction);
        assert_eq!(error.remote_message(), Some("x"));
    }

    #[test]
    fn what_does_not_decode_keeps_the_raw_text() {
        let error = result::<u64>(r#"{"success":true,"data":{"a":1}}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert_eq!(error.raw_text(), Some(r#"{"a":1}"#));
        assert!(
            error.to_string().contains("user-service.get_user"),
            "{error}"
        );
        let error = result::<u64>("<html>").unwrap_err();
        assert_eq!(error.raw_text(), Some("<html>"));
    }

    #[test]
    fn phps_empty_array_decodes_into_a_struct() {
        #[derive(serde::Deserialize)]
        struct Nothing {}
        assert!(result::<Nothing>(r#"{"success":true,"data":[]}"#).is_ok());
    }
}
