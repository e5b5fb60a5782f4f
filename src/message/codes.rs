//! Header names and error codes of the envelope.

/// The header with the moment at which the caller stops waiting, in Unix milliseconds. An extension
/// that other peers ignore.
pub(crate) const DEADLINE_HEADER: &str = "deadline_ms";

/// The header with the time that was left to the caller when the request was made, in milliseconds.
/// [`DEADLINE_HEADER`] less this is that moment by the caller's clock.
pub(crate) const TIMEOUT_HEADER: &str = "timeout_ms";

/// The header that marks an asynchronous call.
pub(crate) const ASYNC_HEADER: &str = "async_callback";

/// The header with the number of this attempt at a call, from 1 on, as the caller's retries count.
pub(crate) const ATTEMPT_HEADER: &str = "attempt";

/// Returns true for the headers that coney sets itself, each for one request.
pub(crate) fn is_reserved_header(name: &str) -> bool {
    matches!(
        name,
        DEADLINE_HEADER | TIMEOUT_HEADER | ASYNC_HEADER | ATTEMPT_HEADER
    )
}

/// The error codes of refusals: the handler did not run.
pub(crate) const CODE_BUSY: &str = "busy";
pub(crate) const CODE_RATE_LIMITED: &str = "rate_limited";
pub(crate) const CODE_TOO_LARGE: &str = "too_large";

/// The error code that a coney server adds to `Unknown action: …`.
pub(crate) const CODE_UNKNOWN_ACTION: &str = "unknown_action";

/// The error code of a handler whose nested call was refused as busy.
pub(crate) const CODE_BUSY_DOWNSTREAM: &str = "busy_downstream";

/// Returns true for the codes that coney's servers put into replies themselves.
pub(crate) fn is_reserved_code(code: &str) -> bool {
    matches!(
        code,
        CODE_BUSY
            | CODE_RATE_LIMITED
            | CODE_TOO_LARGE
            | CODE_UNKNOWN_ACTION
            | "bad_envelope"
            | "bad_reply"
            | "bad_request"
            | "deduplication_failed"
            | "expired"
            | "in_progress"
            | "panic"
            | "poison"
            | "reply_too_large"
    )
}

/// Returns true for the codes by which a server says that the handler did not begin.
pub(crate) fn claims_nothing_ran(code: &str) -> bool {
    matches!(
        code,
        CODE_BUSY
            | CODE_RATE_LIMITED
            | CODE_TOO_LARGE
            | CODE_UNKNOWN_ACTION
            | "bad_envelope"
            | "bad_request"
            | "expired"
    )
}
