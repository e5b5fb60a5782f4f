//! The result of a call: decoding its outcome, and the error texts.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::answer::CallReply;
use super::call_outcome::{CallOutcome, TooLarge};
use crate::base::name::{check_action, check_service};
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::error_code;
use crate::message::batch::BATCH_ACTION;
use crate::message::{self, Json, Reply, Span};
use crate::topology;

/// The service and the action of a call, for decoding replies and for error texts.
#[derive(Clone, Copy)]
pub(super) struct CallTarget<'a> {
    pub(super) service: &'a str,
    pub(super) action: &'a str,
}

impl CallTarget<'_> {
    /// Checks both names.
    pub(super) fn check(self) -> Result<()> {
        check_service(self.service)?;
        check_action(self.action)
    }

    /// Converts the outcome of a call into its answer, whose data are not decoded yet.
    pub(super) fn reply(self, outcome: CallOutcome, peer: &str) -> Result<CallReply> {
        let Self { service, action } = self;
        match outcome {
            CallOutcome::Reply {
                body, was_resent, ..
            } => {
                let data = self.reply_data(&body, was_resent)?;
                let data = Span::of(data.as_str(), &body);
                Ok(CallReply::of_reply(body, data))
            }
            CallOutcome::NoRoute {
                reason,
                queue: None,
            } => Err(no_route(&self, service, &reason, peer)),
            CallOutcome::NoRoute {
                reason,
                queue: Some(queue),
            } => Err(Error::new(
                ErrorKind::NoRoute,
                format!(
                    "{service}.{action} has nowhere to go: the instance it is for is not there, \
                     or does not serve now (no queue {queue} on {peer}; {reason})"
                ),
            )),
            CallOutcome::TooLarge(TooLarge::Request { bytes, limit }) => {
                Err(request_too_large(&self, bytes, limit, peer))
            }
            CallOutcome::TooLarge(TooLarge::Reply { bytes }) => Err(Error::new(
                ErrorKind::PayloadTooLarge,
                format!(
                    "the reply of {service}.{action} is {bytes} bytes long, more than this \
                     connection takes (max_body)"
                ),
            )
            .with_nothing_ran(false)),
            CallOutcome::Refused(reason) => Err(Error::new(
                ErrorKind::Broker,
                format!("{peer} did not take {service}.{action}: {reason}"),
            )
            .with_nothing_ran(true)),
            CallOutcome::Lost(cause) => Err(Error::new(
                ErrorKind::ConnectionLost,
                format!(
                    "the connection to {peer} was lost while {service}.{action} was called \
                     ({cause}); whether it ran is unknown"
                ),
            )),
            CallOutcome::NotSent(cause) => Err(never_sent(&self, &cause)),
            CallOutcome::Closed(cause) => Err(closed_after(&self, &cause)),
            CallOutcome::Unreported => Err(closed_after(&self, "its outcome never came")),
        }
    }

    /// Decodes a reply. If the request was sent again after a loss, its error says nothing about
    /// the first sending, which may have run.
    pub(super) fn decode_resent<T: DeserializeOwned>(
        self,
        body: &[u8],
        was_resent: bool,
    ) -> Result<T> {
        self.decode(self.reply_data(body, was_resent)?.as_str())
    }

    /// Returns the data of a reply, or its error.
    fn reply_data(self, body: &[u8], was_resent: bool) -> Result<Json<'_>> {
        self.successful_data(body)
            .map_err(|error| match was_resent {
                true => error.with_nothing_ran(false),
                false => error,
            })
    }

    /// Decodes an answer.
    pub(super) fn decode_reply<T: DeserializeOwned>(self, reply: &CallReply) -> Result<T> {
        let decoded = self.decode(reply.json());
        decoded.map_err(|error| error.with_attempts(reply.attempts))
    }

    /// Decodes the data of a reply, or of a cached answer.
    pub(super) fn decode<T: DeserializeOwned>(self, data: &str) -> Result<T> {
        message::decode(data).map_err(|fault| {
            Error::new(
                ErrorKind::Decode,
                format!(
                    "the reply of {}.{} cannot be read as {}: {fault}",
                    self.service,
                    self.action,
                    std::any::type_name::<T>()
                ),
            )
            .with_text(data)
        })
    }

    fn successful_data(self, body: &[u8]) -> Result<Json<'_>> {
        let Self { service, action } = self;
        let reply = Reply::decode(body).map_err(|error| {
            Error::new(
                ErrorKind::Decode,
                format!("what {service}.{action} answered is {error}"),
            )
            .with_text(error.raw_text().unwrap_or_default())
        })?;
        if reply.success {
            return Ok(reply.data);
        }
        let unknown_action = reply.error_code.as_deref() == Some(error_code::UNKNOWN_ACTION)
            || reply.error.strip_prefix("Unknown action: ") == Some(action);
        let code = reply.error_code.as_deref();
        let (kind, message) = match code {
            _ if unknown_action => {
                let text = format!("{service} has no action {action:?}");
                (ErrorKind::UnknownAction, text)
            }
            Some(error_code::BUSY | error_code::RATE_LIMITED) => {
                let text = format!("{service} refused {action}: {}", reply.error);
                (ErrorKind::Busy, text)
            }
            Some(error_code::TOO_LARGE) => {
                let text = format!("{service} did not take {action}: {}", reply.error);
                (ErrorKind::PayloadTooLarge, text)
            }
            _ => {
                let text = format!("{service}.{action} answered with an error: {}", reply.error);
                (ErrorKind::Remote, text)
            }
        };
        Err(Error::new(kind, message)
            .with_retry_after(reply.retry_after)
            .with_text(reply.error.as_ref())
            .with_code(reply.error_code.map(Into::into)))
    }
}

impl fmt::Display for CallTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            BATCH_ACTION => write!(f, "a batch for {}", self.service),
            action => write!(f, "{}.{action}", self.service),
        }
    }
}

/// Creates the error of a message that is larger than the broker takes.
pub(super) fn request_too_large(
    what: &dyn fmt::Display,
    bytes: usize,
    limit: Option<usize>,
    peer: &str,
) -> Error {
    let limit = limit.map(|limit| format!(" of {limit} bytes"));
    Error::new(
        ErrorKind::PayloadTooLarge,
        format!(
            "{what} was not sent: its message of {bytes} bytes is over the limit{} of {peer} \
             (max_message_size)",
            limit.unwrap_or_default()
        ),
    )
}

pub(super) fn no_route(what: &dyn fmt::Display, service: &str, reason: &str, peer: &str) -> Error {
    Error::new(
        ErrorKind::NoRoute,
        format!(
            "{what} has nowhere to go: no such service has ever run on {peer} (no queue {}; \
             {reason})",
            topology::request_queue(service)
        ),
    )
}

fn closed_after(what: &dyn fmt::Display, cause: &str) -> Error {
    Error::new(
        ErrorKind::Closed,
        format!("{what} was sent, but {cause}; whether it ran is unknown"),
    )
}

pub(super) fn never_sent(what: &dyn fmt::Display, cause: &str) -> Error {
    Error::new(
        ErrorKind::NotSent,
        format!("{what} was not sent and will not be: {cause}"),
    )
}

pub(super) fn too_late_to_send(what: &dyn fmt::Display, timeout: Duration, peer: &str) -> Error {
    if timeout.is_zero() {
        let fault = format!("{what} was not sent: its timeout left no time for it");
        return Error::timed_out(Phase::Send, fault);
    }
    Error::timed_out(
        Phase::Send,
        format!(
            "{what} could not be sent to {peer} within {timeout:?} and will not be; the \
             connection is down, blocked or too slow"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::call_outcome::ReplyBody;

    fn result<T: DeserializeOwned>(reply: &str) -> Result<T> {
        let target = CallTarget {
            service: "user-service",
            action: "get_user",
        };
        let outcome = CallOutcome::Reply {
            body: ReplyBody::Own(reply.as_bytes().to_vec()),
            was_resent: false,
            after: None,
            is_of_pick: false,
            _request: None,
        };
        target.decode(target.reply(outcome, "memory")?.json())
    }

    #[test]
    fn an_unknown_action_is_not_a_handlers_error() {
        let error = result::<()>(r#"{"success":false,"error":"Unknown action: get_user"}"#);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::UnknownAction);
        let error = result::<()>(r#"{"success":false,"error":"Unknown action: other"}"#);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Remote);
        let coded = r#"{"success":false,"error":"x","error_code":"unknown_action"}"#;
        let error = result::<()>(coded).unwrap_err();
        assert!(error.is_safe_to_retry());
        assert_eq!(error.kind(), ErrorKind::UnknownAction);
        assert_eq!(error.remote_message(), Some("x"));
    }

    #[test]
    fn a_code_says_whether_anything_ran() {
        let failed = |code: &str, more: &str| {
            let reply = format!(r#"{{"success":false,"error":"x","error_code":"{code}"{more}}}"#);
            result::<()>(&reply).unwrap_err()
        };
        for code in ["expired", "bad_envelope", "bad_request"] {
            assert!(failed(code, "").is_safe_to_retry(), "{code}");
            assert_eq!(failed(code, "").kind(), ErrorKind::Remote, "{code}");
        }
        for code in [
            "panic",
            "poison",
            "reply_too_large",
            "card_declined",
            // The request was handled before, or is being handled.
            "deduplication_failed",
            "in_progress",
        ] {
            assert!(!failed(code, "").is_safe_to_retry(), "{code}");
        }
        let busy = failed("busy", r#","retry_after_ms":1500"#);
        assert_eq!(busy.kind(), ErrorKind::Busy);
        assert_eq!(busy.retry_after(), Some(Duration::from_millis(1_500)));
        assert!(busy.is_safe_to_retry());
        let large = failed("too_large", "");
        assert_eq!(large.kind(), ErrorKind::PayloadTooLarge);
        assert!(large.is_safe_to_retry());
    }

    #[test]
    fn a_refusal_of_the_second_copy_says_nothing_about_the_first() {
        let target = CallTarget {
            service: "user-service",
            action: "get_user",
        };
        let body = br#"{"success":false,"error":"x","error_code":"busy"}"#;
        let error = |was_resent| {
            let result = target.decode_resent::<()>(body, was_resent);
            result.unwrap_err().is_safe_to_retry()
        };
        assert!(error(false) && !error(true));
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
