//! Fallbacks: answers that stand in for a service that is unavailable.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::catch::catch;
use crate::error::Error;
use crate::message;

/// A fallback without its types: from the request's payload, as JSON, and the error to the answer,
/// as JSON.
pub(super) type Fallback = Box<dyn Fn(&str, &Error) -> Option<String> + Send + Sync>;

/// Wraps a fallback. A payload that does not decode, or an answer that does not encode, is none.
pub(super) fn typed<Req, Resp, F>(fallback: F) -> Fallback
where
    F: Fn(&Req, &Error) -> Option<Resp> + Send + Sync + 'static,
    Req: DeserializeOwned,
    Resp: Serialize,
{
    Box::new(move |payload, error| {
        let request: Req = match message::decode(payload) {
            Ok(request) => request,
            Err(fault) => {
                log::warn!(
                    target: "coney::client",
                    "a fallback cannot read its request as {}: {fault}", std::any::type_name::<Req>()
                );
                return None;
            }
        };
        let answer = fallback(&request, error)?;
        let encoded = serde_json::to_string(&answer);
        encoded
            .inspect_err(|fault| {
                log::warn!(
                    target: "coney::client",
                    "the answer of a fallback, {}, cannot be encoded: {fault}",
                    std::any::type_name::<Resp>()
                );
            })
            .ok()
    })
}

/// Runs a fallback; a panic is logged, and counts as no answer.
pub(super) fn run(fallback: &Fallback, payload: &str, error: &Error) -> Option<String> {
    catch(|| fallback(payload, error)).unwrap_or_else(|panic| {
        log::error!(target: "coney::client", "a fallback panicked: {panic}");
        None
    })
}
