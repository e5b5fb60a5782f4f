//! Header names of the envelope.

/// The header with the moment at which the caller stops waiting, in Unix milliseconds. An extension
/// that other peers ignore.
pub(crate) const DEADLINE_HEADER: &str = "deadline_ms";

/// The header with the time that was left to the caller when the request was made, in milliseconds.
/// [`DEADLINE_HEADER`] less this is that moment by the caller's clock.
pub(crate) const TIMEOUT_HEADER: &str = "timeout_ms";

/// The header that marks an asynchronous call.
pub(crate) const ASYNC_HEADER: &str = "async_callback";

/// The header with the number of this attempt at a call, from 1 on, as the caller's retries count;
/// absent in the first. An extension that other peers ignore.
pub(crate) const ATTEMPT_HEADER: &str = "attempt";

/// Returns true for the headers that coney sets itself, each for one request.
pub(crate) fn is_reserved_header(name: &str) -> bool {
    matches!(
        name,
        DEADLINE_HEADER | TIMEOUT_HEADER | ASYNC_HEADER | ATTEMPT_HEADER
    )
}
