//! The one classification of how calls end, by which the library decides whether to try again, and
//! which instance or service an end speaks against.

use crate::error_code;
use crate::error_kind::{ErrorKind, Phase};

/// The end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The service replied with a result.
    Ok,
    /// The service replied with its handler's own error, or with a result that the caller cannot
    /// read: it works.
    Business,
    /// The service does not take such a request: the action, the payload or the size. Nothing ran.
    Invalid,
    /// The service refused the request as too much at this time. Nothing ran.
    Busy,
    /// The caller's deadline had passed when the service took up the request. Nothing ran.
    Expired,
    /// The service failed: a panic, workers that died, a result that cannot be sent.
    Failed,
    /// The request was sent, and no reply came in time.
    TimedOut,
    /// The connection was lost after the request was sent.
    Lost,
    /// The request never left this process.
    NotSent,
    /// The service has no queue.
    NoRoute,
    /// The registry has no instance of the service.
    NoInstance,
    /// This process refused the request: a limit, a policy, an invalid name or payload.
    Local,
    /// The client, its connection or its broker does not work any more for this call.
    Closed,
}

/// The answer to whether a request's handler has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    No,
    Maybe,
    Yes,
}

impl Verdict {
    /// Classifies an error by its kind, the operation that ran out of time, and the code of the
    /// service's reply.
    pub(crate) fn of(kind: ErrorKind, phase: Option<Phase>, code: Option<&str>) -> Self {
        match kind {
            ErrorKind::NoRoute => Self::NoRoute,
            ErrorKind::NoInstance => Self::NoInstance,
            ErrorKind::NotSent => Self::NotSent,
            ErrorKind::TimedOut if phase == Some(Phase::Send) => Self::NotSent,
            ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::ConnectionLost => Self::Lost,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::UnknownAction => Self::Invalid,
            ErrorKind::Remote => Self::of_code(code),
            ErrorKind::Decode => Self::Business,
            ErrorKind::Rejected
            | ErrorKind::Encode
            | ErrorKind::PayloadTooLarge
            | ErrorKind::InvalidConfig
            | ErrorKind::Io => Self::Local,
            ErrorKind::Connect
            | ErrorKind::Broker
            | ErrorKind::Registry
            | ErrorKind::Closed
            | ErrorKind::Misuse => Self::Closed,
        }
    }

    /// Classifies an error reply by its code.
    pub(crate) fn of_code(code: Option<&str>) -> Self {
        match code {
            Some(error_code::BUSY | error_code::RATE_LIMITED) => Self::Busy,
            Some(
                error_code::TOO_LARGE
                | error_code::UNKNOWN_ACTION
                | error_code::BAD_ENVELOPE
                | error_code::BAD_REQUEST,
            ) => Self::Invalid,
            Some(error_code::EXPIRED) => Self::Expired,
            Some(
                error_code::PANIC
                | error_code::POISON
                | error_code::BAD_REPLY
                | error_code::DEDUPLICATION_FAILED,
            ) => Self::Failed,
            _ => Self::Business,
        }
    }

    /// Returns whether the handler has run.
    pub(crate) fn ran(self) -> Ran {
        match self {
            Self::Ok | Self::Business => Ran::Yes,
            Self::Failed | Self::TimedOut | Self::Lost | Self::Closed => Ran::Maybe,
            Self::Invalid
            | Self::Busy
            | Self::Expired
            | Self::NotSent
            | Self::NoRoute
            | Self::NoInstance
            | Self::Local => Ran::No,
        }
    }

    /// Returns true if the end speaks against the instance that had the request: it failed, or did
    /// not reply in time. A handler's own error does not.
    pub(crate) fn counts_against_instance(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut)
    }

    /// Returns true if the end speaks against the service: it failed, or did not begin or reply in
    /// time. The broker's faults and refusals do not.
    pub(crate) fn counts_against_service(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Expired)
    }

    /// Returns true if the service has said something: its reply, whatever is in it, shows that it
    /// was reached.
    pub(crate) fn is_reply(self) -> bool {
        matches!(
            self,
            Self::Ok | Self::Business | Self::Invalid | Self::Busy | Self::Expired | Self::Failed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handlers_own_error_speaks_against_nothing() {
        for code in [None, Some("not_found"), Some("busy_downstream"), Some("")] {
            let verdict = Verdict::of(ErrorKind::Remote, None, code);
            assert_eq!(verdict, Verdict::Business, "{code:?}");
            assert!(!verdict.counts_against_instance() && !verdict.counts_against_service());
            assert_eq!(verdict.ran(), Ran::Yes);
        }
    }

    #[test]
    fn the_library_codes_have_their_verdicts() {
        let of = |code| Verdict::of_code(Some(code));
        for (code, verdict) in [
            ("busy", Verdict::Busy),
            ("rate_limited", Verdict::Busy),
            ("too_large", Verdict::Invalid),
            ("unknown_action", Verdict::Invalid),
            ("bad_request", Verdict::Invalid),
            ("bad_envelope", Verdict::Invalid),
            ("expired", Verdict::Expired),
            ("panic", Verdict::Failed),
            ("poison", Verdict::Failed),
            ("bad_reply", Verdict::Failed),
            ("deduplication_failed", Verdict::Failed),
            ("reply_too_large", Verdict::Business),
            ("in_progress", Verdict::Business),
        ] {
            assert_eq!(of(code), verdict, "{code}");
        }
    }

    #[test]
    fn a_timeout_is_judged_by_its_phase() {
        let of = |phase| Verdict::of(ErrorKind::TimedOut, Some(phase), None);
        assert_eq!(of(Phase::Send), Verdict::NotSent);
        assert_eq!(of(Phase::Reply), Verdict::TimedOut);
        assert!(of(Phase::Reply).counts_against_instance());
        assert!(!of(Phase::Send).counts_against_service());
    }
}
