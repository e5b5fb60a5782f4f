//! Layers: code around the handlers of a server or a subscriber.

use std::fmt;
use std::sync::Arc;

use super::Context;
use super::handler::Handler;
use super::handler_error::HandlerResult;

/// A layer around the handlers of a server or a subscriber, added by
/// [`ServiceServerBuilder::layer`](crate::server::ServiceServerBuilder::layer) or
/// [`EventSubscriberBuilder::layer`](crate::events::EventSubscriberBuilder::layer). It may measure
/// the time, log, count, refuse the request, or do something before the handler and after it.
///
/// Closures and functions of this form are layers. A layer that is a type of its own, such as one
/// of a library, implements the trait and is added by
/// [`layer_impl`](crate::server::ServiceServerBuilder::layer_impl):
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use coney::server::{HandlerLayer, HandlerReply, NextHandler};
/// use coney::{Broker, Context, HandlerResult, ServiceClient, ServiceServer};
///
/// #[derive(Clone, Default)]
/// struct Failures(Arc<AtomicU64>);
///
/// impl HandlerLayer for Failures {
///     fn handle(&self, _: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply> {
///         let result = next.run();
///         if result.is_err() {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///         result
///     }
/// }
///
/// let (broker, failures) = (Broker::memory(), Failures::default());
/// let server = ServiceServer::builder(&broker, "math")
///     .handler("halve", |n: u64| match n % 2 {
///         0 => Ok(n / 2),
///         _ => Err("not even"),
///     })
///     .layer_impl(failures.clone())
///     .start()?;
/// let client = ServiceClient::new(&broker, "shop")?;
/// assert!(client.call::<u64>("math", "halve", &3).is_err());
/// assert_eq!(failures.0.load(Ordering::Relaxed), 1);
/// # Ok::<(), coney::Error>(())
/// ```
pub trait HandlerLayer: Send + Sync + 'static {
    /// Handles a request: runs `next` and returns its result, or refuses the request by an error.
    /// Called on a worker for each request that reaches a handler; it may block, and blocks that
    /// worker only. A panic counts as one of the handler.
    ///
    /// # Errors
    ///
    /// Fails with the handler's error, or with one of the layer's own. A layer that has run `next`
    /// must not return a [busy](crate::HandlerError::busy) error of its own.
    fn handle(&self, context: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply>;
}

impl<F> HandlerLayer for F
where
    F: Fn(&Context<'_>, NextHandler<'_>) -> HandlerResult<HandlerReply> + Send + Sync + 'static,
{
    fn handle(&self, context: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply> {
        self(context, next)
    }
}

/// The rest of the way of a request: the next layer, or the handler. A [`HandlerLayer`] runs it
/// once, or refuses the request by returning an error.
pub struct NextHandler<'a> {
    context: &'a Context<'a>,
    payload: &'a str,
    handler: &'a Handler,
}

impl NextHandler<'_> {
    /// Returns the payload as JSON text.
    pub fn payload(&self) -> &str {
        self.payload
    }

    /// Runs the next layer, or the handler. Blocks until it has ended.
    ///
    /// # Errors
    ///
    /// Fails with the handler's error, or with that of a layer in between. A payload that does not
    /// decode is an error with the code `bad_request`.
    pub fn run(self) -> HandlerResult<HandlerReply> {
        let body = (self.handler)(self.context, self.payload)?;
        Ok(HandlerReply { body })
    }
}

impl fmt::Debug for NextHandler<'_> {
    /// Shows the size of the payload only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NextHandler")
            .field("context", &self.context)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// The encoded reply of a handler; empty for commands and events. A [`HandlerLayer`] gets it from
/// [`NextHandler::run`] and returns it, for the same request.
#[must_use = "a layer has to return the reply"]
pub struct HandlerReply {
    body: Vec<u8>,
}

impl fmt::Debug for HandlerReply {
    /// Shows the size only: replies do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerReply({} bytes)", self.body.len())
    }
}

/// Wraps a handler in layers, the first of which is the outermost. Without layers the handler is
/// returned unchanged.
pub(crate) fn layered(handler: Handler, layers: &[Arc<dyn HandlerLayer>]) -> Handler {
    layers.iter().rev().fold(handler, |handler, layer| {
        let layer = Arc::clone(layer);
        Box::new(move |context, payload| {
            let next = NextHandler {
                context,
                payload,
                handler: &handler,
            };
            Ok(layer.handle(context, next)?.body)
        })
    })
}
