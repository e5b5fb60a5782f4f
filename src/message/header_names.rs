//! Header names of the envelope.

/// The header with the moment at which the caller stops waiting, in Unix milliseconds. An extension
/// that other peers ignore.
pub(crate) const DEADLINE_HEADER: &str = "deadline_ms";

/// The header with the time that was left to the caller when the request was made, in milliseconds.
/// [`DEADLINE_HEADER`] less this is that moment by the caller's clock.
pub(crate) const TIMEOUT_HEADER: &str = "timeout_ms";

/// The header with the number of this attempt at a call, from 1 on; absent in the first. An
/// extension that other peers ignore.
pub(crate) const ATTEMPT_HEADER: &str = "attempt";
