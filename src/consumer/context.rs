use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::request::Request;
use crate::client::ServiceClient;
use crate::error::{Error, Phase, Result};
use crate::registry::Registry;
use crate::transport::Broker;

/// How long the first handler that wants a client may wait for it.
const LONGEST_OPEN: Duration = Duration::from_secs(10);

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
    pub(super) request: &'a Request<'a>,
    pub(super) redelivered: bool,
    pub(super) attempt: u32,
    pub(super) deadline: Option<Instant>,
    /// False for commands and events.
    pub(super) wants_reply: bool,
    pub(super) nested: &'a NestedClient,
    pub(super) instance_id: Option<&'a str>,
}

/// The client for a server's own calls, made when the first handler asks for it.
pub(crate) struct NestedClient {
    pub(crate) broker: Broker,
    pub(crate) service: String,
    pub(crate) client: Mutex<Option<ServiceClient>>,
    /// The server's, through which the client finds other services.
    pub(crate) registry: Option<Registry>,
}

/// What a nested call leaves of its caller's time for the handler that made it: a tenth,
/// and no more than this.
const LONGEST_RESERVE: Duration = Duration::from_millis(50);

/// The moment when nested calls end, so that a handler whose nested call has timed out can still
/// answer in time.
fn nested_deadline(deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    deadline - (left / 10).min(LONGEST_RESERVE)
}

impl NestedClient {
    fn client(&self, deadline: Option<Instant>) -> Result<ServiceClient> {
        let longest = Instant::now() + LONGEST_OPEN;
        let until = deadline.map_or(longest, |deadline| deadline.min(longest));
        let Some(mut client) = self.client.try_lock_until(until) else {
            return Err(Error::timed_out(
                Phase::Send,
                format!("timed out waiting for a client of {}'s own", self.service),
            ));
        };
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let mut builder = ServiceClient::builder(&self.broker, &self.service);
        if let Some(registry) = &self.registry {
            builder = builder.registry(registry);
        }
        let made = builder.build_until(Some(until))?;
        Ok(client.insert(made).clone())
    }
}

impl Context<'_> {
    /// The request's id, the same however often it is delivered.
    pub fn message_id(&self) -> &str {
        self.request.message_id
    }

    /// The service that called.
    pub fn source_service(&self) -> &str {
        self.request.source_service
    }

    /// The action called.
    pub fn action(&self) -> &str {
        self.request.action
    }

    /// When the request was made, in Unix seconds by the caller's clock.
    pub fn timestamp(&self) -> i64 {
        self.request.timestamp
    }

    /// The envelope's header of that name, if it is there and is a `T`.
    pub fn header<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.request.headers.get(name)
    }

    /// True if the request was delivered before and not acknowledged: its
    /// handler may have run already, wholly or in part.
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// Which attempt this is at carrying out a command, from 1 on: one more than
    /// have failed. See [`ServiceServerBuilder::retry_delays`](crate::ServiceServerBuilder::retry_delays).
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The id by which this instance is registered, where the server has a
    /// [registry](crate::ServiceServerBuilder::registry).
    pub fn instance_id(&self) -> Option<&str> {
        self.instance_id
    }

    /// How long the caller still waits; zero once it has stopped. `None` if
    /// it did not say, as peers in other languages do not.
    ///
    /// Counted from the moment the request arrived here, less what it had waited before:
    /// how far the caller's clock is off is estimated from its own requests of the last
    /// five minutes, so the two clocks need not agree.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// A client for calls to other services, in the name of this one, none of
    /// which outlives the time the caller still waits: they end a little earlier, by a
    /// tenth of what is left and 50 ms at most, so that the handler can still answer with
    /// something else when one has timed out.
    ///
    /// All handlers of a server share one client; the first to ask makes it,
    /// and blocks until the broker has made its reply queue, at most 10 s and at
    /// most as long as the caller waits. It finds services through the server's
    /// [registry](crate::ServiceServerBuilder::registry), if that has one. To
    /// set its options, give the server one:
    /// [`ServiceServerBuilder::client`](crate::ServiceServerBuilder::client).
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::new`].
    ///
    /// ```
    /// use coney::{Broker, Context, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "order-service")
    ///     .handler_with("total", |context: &Context<'_>, order: u64| {
    ///         context.client()?.call::<_, u64>("price-service", "sum", &order)
    ///     })
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn client(&self) -> Result<ServiceClient> {
        let client = self.nested.client(self.deadline)?;
        Ok(match self.deadline {
            Some(deadline) => client.with_deadline(nested_deadline(deadline)),
            None => client,
        })
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("message_id", &self.request.message_id)
            .field("source_service", &self.request.source_service)
            .field("action", &self.request.action)
            .finish_non_exhaustive()
    }
}
