//! The envelope that travels between services: the requests, replies and events of the wire
//! contract. Nothing in here depends on the transport.

pub(crate) mod batch;
mod body;
mod bounded_seq;
mod header_names;
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
pub(crate) use self::header_names::{
    ASYNC_HEADER, ATTEMPT_HEADER, DEADLINE_HEADER, TIMEOUT_HEADER, is_reserved_header,
};
pub use self::headers::Headers;
pub(crate) use self::id::{CorrelationId, MessageId};
pub use self::id::{new_correlation_id, new_message_id};
pub use self::json::Json;
pub(crate) use self::json::decode;
pub use self::reply::Reply;
pub use self::request::ServiceMessage;
pub(crate) use self::span::{Span, range_in};
