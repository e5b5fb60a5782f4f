use std::fmt;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::message::ServiceMessage;

/// What a handler may know about the request beside its payload.
///
/// ```
/// use coney::{Broker, Context, ServiceServer};
///
/// let server = ServiceServer::builder(&Broker::memory(), "user-service")
///     .handler_with("who", |context: &Context<'_>, _: ()| {
///         Ok::<_, String>(format!("{} asks", context.source_service()))
///     })
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct Context<'a> {
    message: &'a ServiceMessage<'a>,
    redelivered: bool,
    deadline: Option<Instant>,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        message: &'a ServiceMessage<'a>,
        redelivered: bool,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            message,
            redelivered,
            deadline,
        }
    }

    /// The request's id, the same however often it is delivered.
    pub fn message_id(&self) -> &str {
        &self.message.message_id
    }

    /// The service that called.
    pub fn source_service(&self) -> &str {
        &self.message.source_service
    }

    /// The action called.
    pub fn action(&self) -> &str {
        &self.message.action
    }

    /// When the request was made, in Unix seconds by the caller's clock.
    pub fn timestamp(&self) -> i64 {
        self.message.timestamp
    }

    /// The envelope's header of that name, if it is there and is a `T`.
    pub fn header<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.message.headers.get(name)
    }

    /// True if the request was delivered before and not acknowledged: its
    /// handler may have run already, wholly or in part.
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// How long the caller still waits; zero once it has stopped. `None` if
    /// it did not say, as peers in other languages do not. Compares the
    /// caller's clock with ours, so it is as good as the two agree.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("message_id", &self.message.message_id)
            .field("source_service", &self.message.source_service)
            .field("action", &self.message.action)
            .finish_non_exhaustive()
    }
}
