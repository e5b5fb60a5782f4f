use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use crate::message::{self, Json, Reply};

/// What a handler fails with: a text for the caller and, if it helps, a code
/// for the caller's program.
///
/// Everything that displays becomes one by `?` or `into()`, so a handler may
/// return any error type. That is why it does not display itself: print its
/// [`message`](HandlerError::message).
///
/// Of an [`Error`](crate::Error) from a call to another service only the text
/// is taken over, as a rule the right thing: its code belongs to that service's
/// contract. To pass it on, build the error with
/// [`with_code`](HandlerError::with_code).
///
/// ```
/// use coney::HandlerError;
///
/// fn charge(cents: i64) -> Result<(), HandlerError> {
///     let text = "12a";
///     let limit: i64 = text.parse()?;
///     if cents > limit {
///         return Err(HandlerError::new("over the limit").with_code("card_declined"));
///     }
///     Ok(())
/// }
/// assert_eq!(charge(1).unwrap_err().message(), "invalid digit found in string");
/// ```
pub struct HandlerError {
    message: String,
    code: Option<String>,
    do_not_retry: bool,
    /// The handler was not reached: the payload does not decode.
    undecodable: bool,
}

impl HandlerError {
    /// An error with this text, which the caller gets as it is.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: None,
            do_not_retry: false,
            undecodable: false,
        }
    }

    /// Another attempt would fail too: a command that fails with this goes to the
    /// dead letters at once. For a call it makes no difference; the caller gets
    /// the error and decides.
    ///
    /// ```
    /// # use coney::HandlerError;
    /// fn ship(country: &str) -> Result<(), HandlerError> {
    ///     match country {
    ///         "XX" => Err(HandlerError::new("no such country").do_not_retry()),
    ///         _ => Ok(()),
    ///     }
    /// }
    /// # assert!(ship("XX").is_err());
    /// ```
    pub fn do_not_retry(mut self) -> Self {
        self.do_not_retry = true;
        self
    }

    /// Adds a code, sent as `error_code`; coney's clients have it in
    /// [`Error::remote_code`](crate::Error::remote_code).
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The code, if it has one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    pub(super) fn may_be_retried(&self) -> bool {
        !self.do_not_retry
    }

    pub(super) fn is_undecodable(&self) -> bool {
        self.undecodable
    }

    fn undecodable(mut self) -> Self {
        self.undecodable = true;
        self.do_not_retry()
    }
}

/// Possible because `HandlerError` itself does not display; otherwise it would
/// collide with every type's `From` itself.
impl<E: fmt::Display> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("message", &self.message)
            .field("code", &self.code)
            .finish()
    }
}

/// A handler with its types taken off: from a request's payload, as JSON, to the body
/// of a reply.
pub(crate) type Handler =
    Box<dyn Fn(&Context<'_>, &str) -> Result<Vec<u8>, HandlerError> + Send + Sync>;

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

pub(crate) fn raw<E, F>(handler: F) -> Handler
where
    F: Fn(&Context<'_>, &str) -> Result<String, E> + Send + Sync + 'static,
    E: Into<HandlerError>,
{
    Box::new(move |context, payload| {
        let response = handler(context, payload).map_err(Into::into)?;
        if !context.wants_answer {
            return Ok(Vec::new());
        }
        let json: Json<'_> = serde_json::from_str(&response).map_err(|fault| {
            let action = context.action();
            HandlerError::new(format!(
                "{action} answered something that is not JSON: {fault}"
            ))
            .with_code("bad_reply")
            .do_not_retry()
        })?;
        reply(&json, context)
    })
}

/// A handler of events, which are not answered.
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

/// The same for the payload as JSON text.
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

fn decode<T: DeserializeOwned>(context: &Context<'_>, payload: &str) -> Result<T, HandlerError> {
    message::decode(payload).map_err(|fault| {
        let action = context.action();
        HandlerError::new(format!("cannot decode the payload of {action}: {fault}"))
            .with_code("bad_request")
            .undecodable()
    })
}

/// The body of the answer; empty where none is wanted, as from a command: what is not
/// sent need not be encodable. Another attempt would not make it so.
fn reply<T: Serialize>(response: &T, context: &Context<'_>) -> Result<Vec<u8>, HandlerError> {
    if !context.wants_answer {
        return Ok(Vec::new());
    }
    Reply::success_by(context.instance_id(), response, context.message_id()).map_err(|error| {
        HandlerError::from(error)
            .with_code("bad_reply")
            .do_not_retry()
    })
}
