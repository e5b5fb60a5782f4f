//! Handlers without their types.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use super::handler_error::{HandlerError, HandlerResult};
use crate::error_code;
use crate::message::{self, Json, Reply};

/// A handler without its types: from a request's payload, as JSON, to the body of a reply.
pub(crate) type Handler = Box<dyn Fn(&Context<'_>, &str) -> HandlerResult<Vec<u8>> + Send + Sync>;

/// Wraps a handler that may fail.
pub(crate) fn typed<Req, Resp, E, F>(handler: F) -> Handler
where
    F: Fn(&Context<'_>, Req) -> Result<Resp, E> + Send + Sync + 'static,
    Req: DeserializeOwned,
    Resp: Serialize,
    E: Into<HandlerError>,
{
    Box::new(move |context, payload| {
        let request = decode(context, payload)?;
        let response = handler(context, request).map_err(Into::into)?;
        reply(&response, context)
    })
}

/// Wraps a handler that cannot fail.
pub(crate) fn infallible<Req, Resp, F>(handler: F) -> Handler
where
    F: Fn(&Context<'_>, Req) -> Resp + Send + Sync + 'static,
    Req: DeserializeOwned,
    Resp: Serialize,
{
    Box::new(move |context, payload| {
        let request = decode(context, payload)?;
        reply(&handler(context, request), context)
    })
}

/// Returns true for `Result`, which serde serializes, so that its error would be sent as data.
/// Best effort: the compiler does not promise the names of types.
pub(crate) fn is_result<T>() -> bool {
    std::any::type_name::<T>().starts_with("core::result::Result<")
}

/// Wraps a handler that takes and returns JSON text.
pub(crate) fn raw<E, F>(handler: F) -> Handler
where
    F: Fn(&Context<'_>, &str) -> Result<String, E> + Send + Sync + 'static,
    E: Into<HandlerError>,
{
    Box::new(move |context, payload| {
        let response = handler(context, payload).map_err(Into::into)?;
        if !context.wants_reply {
            return Ok(Vec::new());
        }
        let json: Json<'_> = serde_json::from_str(&response).map_err(|fault| {
            let action = context.action();
            HandlerError::new(format!(
                "{action} answered something that is not JSON: {fault}"
            ))
            .with_reserved_code(error_code::BAD_REPLY)
            .do_not_retry()
        })?;
        reply(&json, context)
    })
}

/// Wraps a handler of events, which have no reply.
pub(crate) fn of_event<T, E, F>(handler: F) -> Handler
where
    F: Fn(&Context<'_>, T) -> Result<(), E> + Send + Sync + 'static,
    T: DeserializeOwned,
    E: Into<HandlerError>,
{
    Box::new(move |context, payload| {
        let event = decode(context, payload)?;
        handler(context, event).map_err(Into::into)?;
        Ok(Vec::new())
    })
}

/// Wraps a handler of events that takes the payload as JSON text.
pub(crate) fn of_raw_event<E, F>(handler: F) -> Handler
where
    F: Fn(&Context<'_>, &str) -> Result<(), E> + Send + Sync + 'static,
    E: Into<HandlerError>,
{
    Box::new(move |context, payload| {
        handler(context, payload).map_err(Into::into)?;
        Ok(Vec::new())
    })
}

fn decode<T: DeserializeOwned>(context: &Context<'_>, payload: &str) -> HandlerResult<T> {
    message::decode(payload).map_err(|fault| {
        let action = context.action();
        HandlerError::new(format!("cannot decode the payload of {action}: {fault}"))
            .with_reserved_code(error_code::BAD_REQUEST)
            .undecodable()
    })
}

/// Encodes the body of the reply; empty where none is wanted, as for a command: a result that
/// is not sent need not be encodable, and another attempt would not make it so.
fn reply<T: Serialize>(response: &T, context: &Context<'_>) -> HandlerResult<Vec<u8>> {
    if !context.wants_reply {
        return Ok(Vec::new());
    }
    let encoded = Reply::success_by(context.instance_id(), response, context.message_id());
    encoded.map_err(|error| {
        HandlerError::new(error.to_string())
            .with_reserved_code(error_code::BAD_REPLY)
            .do_not_retry()
    })
}
