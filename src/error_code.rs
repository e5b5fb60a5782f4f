//! The error codes that coney's servers put into replies.

/// The error codes of refusals: the handler did not run.
pub(crate) const BUSY: &str = "busy";
pub(crate) const RATE_LIMITED: &str = "rate_limited";
pub(crate) const TOO_LARGE: &str = "too_large";
pub(crate) const BAD_ENVELOPE: &str = "bad_envelope";
pub(crate) const BAD_REQUEST: &str = "bad_request";
pub(crate) const EXPIRED: &str = "expired";

/// The error code that a coney server adds to `Unknown action: …`.
pub(crate) const UNKNOWN_ACTION: &str = "unknown_action";

/// The error codes of failures of the server itself: the handler may have run.
pub(crate) const BAD_REPLY: &str = "bad_reply";
pub(crate) const DEDUPLICATION_FAILED: &str = "deduplication_failed";
pub(crate) const IN_PROGRESS: &str = "in_progress";
pub(crate) const PANIC: &str = "panic";
pub(crate) const POISON: &str = "poison";
pub(crate) const REPLY_TOO_LARGE: &str = "reply_too_large";

/// The error code of a handler whose own nested call was refused as busy: the caller must not
/// retry it, since the handler has run.
pub(crate) const BUSY_DOWNSTREAM: &str = "busy_downstream";

/// Returns true for the codes that coney's servers put into replies themselves.
pub(crate) fn is_reserved(code: &str) -> bool {
    matches!(
        code,
        BUSY | RATE_LIMITED
            | TOO_LARGE
            | BAD_ENVELOPE
            | BAD_REQUEST
            | EXPIRED
            | UNKNOWN_ACTION
            | BAD_REPLY
            | DEDUPLICATION_FAILED
            | IN_PROGRESS
            | PANIC
            | POISON
            | REPLY_TOO_LARGE
    )
}
