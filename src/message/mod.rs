//! The envelope that travels between services: the requests, replies and events of the wire
//! contract. Nothing in here depends on the transport.

pub(crate) mod batch;
mod body;
mod bounded_seq;
mod codes;
mod headers;
mod id;
mod json;
mod not_json;
mod reply;
pub(crate) mod reply_batch;
mod request;
mod span;

pub use self::body::Body;
pub(crate) use self::bounded_seq::BoundedSeq;
pub(crate) use self::codes::{
    ASYNC_HEADER, ATTEMPT_HEADER, CODE_BUSY, CODE_BUSY_DOWNSTREAM, CODE_RATE_LIMITED,
    CODE_TOO_LARGE, CODE_UNKNOWN_ACTION, DEADLINE_HEADER, TIMEOUT_HEADER, claims_nothing_ran,
    is_reserved_code, is_reserved_header,
};
pub use self::headers::Headers;
pub(crate) use self::id::CorrelationId;
pub use self::id::{new_correlation_id, new_message_id};
pub use self::json::Json;
pub(crate) use self::json::decode;
pub use self::reply::Reply;
pub use self::request::ServiceMessage;
pub(crate) use self::span::{Span, range_in};
