//! The envelope that travels between services: what the wire contract calls a
//! request and a reply. Nothing in here knows how a message is transported.

mod at_most;
pub(crate) mod batch;
mod body;
pub(crate) mod bundle;
mod headers;
mod id;
mod json;
mod not_json;
mod reply;
mod request;
mod span;

pub(crate) use at_most::AtMost;
pub use body::Body;
pub use headers::Headers;
pub(crate) use id::CorrelationId;
pub use id::{new_correlation_id, new_message_id};
pub use json::Json;
pub(crate) use json::decode;
pub use reply::Reply;
pub use request::ServiceMessage;
pub(crate) use span::{Span, range_in};

/// The header that tells a server when the caller stops waiting, in Unix
/// milliseconds. An extension: peers that do not know it ignore it.
pub(crate) const DEADLINE_HEADER: &str = "deadline_ms";

/// The header that says how many milliseconds of the caller's time were left when the
/// request was made. With [`DEADLINE_HEADER`] it tells when that was by the caller's clock.
pub(crate) const TIMEOUT_HEADER: &str = "timeout_ms";

/// The error codes of refusals: nothing ran.
pub(crate) const CODE_BUSY: &str = "busy";
pub(crate) const CODE_RATE_LIMITED: &str = "rate_limited";
pub(crate) const CODE_TOO_LARGE: &str = "too_large";

/// The error code a coney server adds to `Unknown action: …`.
pub(crate) const CODE_UNKNOWN_ACTION: &str = "unknown_action";
