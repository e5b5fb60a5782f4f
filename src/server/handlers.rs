//! The handlers of a server.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::builder::ServiceServerBuilder;
use crate::base::name::check_action;
use crate::consumer::{Context, Handler, HandlerError, infallible, is_result, raw, typed};
use crate::error::{Error, ErrorKind};
use crate::message::batch::BATCH_ACTION;

impl ServiceServerBuilder {
    /// Adds a handler that may fail: a function from the decoded payload to a `Result`. Every
    /// error type that displays converts into [`HandlerError`].
    ///
    /// A payload that does not decode into `Req` is answered with an error
    /// (code `bad_request`) and does not reach the handler.
    ///
    /// ```
    /// use coney::{Broker, HandlerResult, ServiceServer};
    ///
    /// fn divide((a, b): (u64, u64)) -> HandlerResult<u64> {
    ///     Ok(a.checked_div(b).ok_or("division by zero")?)
    /// }
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "math")
    ///     .handler("divide", divide)
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn handler<Req, Resp, E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(Req) -> std::result::Result<Resp, E> + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
        E: Into<HandlerError>,
    {
        self.add(action, typed(move |_, request| handler(request)))
    }

    /// Adds a handler that cannot fail: a function from the decoded payload to the response. One
    /// that returns a `Result` is refused by `start`, since its error would be sent as data: add it
    /// by [`handler`](ServiceServerBuilder::handler).
    ///
    /// An action without a payload takes `()`: `|()| …`, called with `&()`.
    ///
    /// ```
    /// use coney::{Broker, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "math")
    ///     .respond("double", |n: u64| n * 2)
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn respond<Req, Resp, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(Req) -> Resp + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
    {
        self.check_infallible::<Resp>(action)
            .add(action, infallible(move |_, request| handler(request)))
    }

    /// Adds a handler as [`handler`](ServiceServerBuilder::handler) does, which also takes the
    /// request's [`Context`].
    pub fn handler_with_context<Req, Resp, E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, Req) -> std::result::Result<Resp, E> + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
        E: Into<HandlerError>,
    {
        self.add(action, typed(handler))
    }

    /// Adds a handler as [`respond`](ServiceServerBuilder::respond) does, which also takes the
    /// request's [`Context`].
    ///
    /// ```
    /// use coney::{Broker, Context, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "user-service")
    ///     .respond_with_context("caller", |context: &Context<'_>, ()| {
    ///         context.source_service().to_owned()
    ///     })
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn respond_with_context<Req, Resp, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, Req) -> Resp + Send + Sync + 'static,
        Req: DeserializeOwned,
        Resp: Serialize,
    {
        self.check_infallible::<Resp>(action)
            .add(action, infallible(handler))
    }

    /// Adds a handler that takes the payload as JSON text and returns JSON
    /// text, for programs that only pass it on.
    ///
    /// ```
    /// use coney::{Broker, Context, HandlerResult, ServiceServer};
    ///
    /// fn echo(_: &Context<'_>, json: &str) -> HandlerResult<String> {
    ///     Ok(json.to_owned())
    /// }
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "mirror")
    ///     .handler_raw("echo", echo)
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn handler_raw<E, F>(self, action: &str, handler: F) -> Self
    where
        F: Fn(&Context<'_>, &str) -> std::result::Result<String, E> + Send + Sync + 'static,
        E: Into<HandlerError>,
    {
        self.add(action, raw(handler))
    }

    fn check_infallible<Resp>(mut self, action: &str) -> Self {
        if is_result::<Resp>() && self.fault.is_none() {
            let fault = format!(
                "{}.{action} returns a Result: add it by `handler`, or its errors are sent as data",
                self.service
            );
            self.fault = Some(Error::new(ErrorKind::InvalidConfig, fault));
        }
        self
    }

    fn add(mut self, action: &str, handler: Handler) -> Self {
        let invalid = |fault: &str| {
            let fault = format!("{}: the action {action:?} {fault}", self.service);
            Error::new(ErrorKind::InvalidConfig, fault)
        };
        let fault = check_action(action).err().or_else(|| {
            if action == BATCH_ACTION {
                return Some(invalid("is coney's own: it holds several requests"));
            }
            let twice = self.handlers.contains_key(action);
            twice.then(|| invalid("has two handlers"))
        });
        self.fault = self.fault.or(fault);
        self.handlers.insert(action.to_owned(), handler);
        self
    }
}
