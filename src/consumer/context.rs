//! The context of a request, as its handler sees it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::request::Request;
use crate::client::{OwnServiceCalls, PassedOn, ServiceClient};
use crate::error::{Error, Phase, Result};
use crate::message::ATTEMPT_HEADER;
use crate::registry::Registry;
use crate::transport::Broker;

/// The longest wait of a handler for the first nested client.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The request of a handler beside its payload: ids, headers, attempt, remaining time, and a
/// client for nested calls.
///
/// ```
/// use coney::{Broker, Context, ServiceServer};
///
/// let server = ServiceServer::builder(&Broker::memory(), "user-service")
///     .respond_with_context("caller", |context: &Context<'_>, _: ()| {
///         context.source_service().to_owned()
///     })
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct Context<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) redelivered: bool,
    pub(super) attempt: u32,
    pub(super) deadline: Option<Instant>,
    /// False for commands and events, which have no reply.
    pub(super) wants_reply: bool,
    pub(super) nested: &'a NestedClient,
    pub(super) instance_id: Option<&'a str>,
}

/// The client for nested calls, created when the first handler asks for it.
pub(crate) struct NestedClient {
    pub(crate) broker: Broker,
    pub(crate) service: String,
    pub(crate) client: Mutex<Option<ServiceClient>>,
    /// The server's registry, in which the client looks services up.
    pub(crate) registry: Option<Registry>,
    /// The names of the request's headers that nested calls pass on.
    pub(crate) propagate: Vec<String>,
    /// The count of the calls to the service itself, if its number of workers changes.
    pub(crate) own_calls: Option<Arc<OwnServiceCalls>>,
}

/// The most of the caller's time that nested calls leave to the handler, which is a tenth of it
/// otherwise.
const LONGEST_RESERVE: Duration = Duration::from_millis(50);

/// Computes the deadline of nested calls, so that a handler whose nested call has timed out can
/// still reply in time.
fn nested_deadline(deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    deadline - (left / 10).min(LONGEST_RESERVE)
}

impl NestedClient {
    fn client(&self, deadline: Option<Instant>) -> Result<ServiceClient> {
        let longest = Instant::now() + OPEN_TIMEOUT;
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
    /// Returns the request's message id, which stays the same when it is redelivered.
    pub fn message_id(&self) -> &str {
        self.request.message_id
    }

    /// Returns the calling service.
    pub fn source_service(&self) -> &str {
        self.request.source_service
    }

    /// Returns the called action, or the name of the event.
    pub fn action(&self) -> &str {
        self.request.action
    }

    /// Returns the moment when the request was made, in Unix seconds by the caller's clock.
    pub fn timestamp(&self) -> i64 {
        self.request.timestamp
    }

    /// Returns the envelope's header of that name, if there is one and it is a `T`.
    pub fn header<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.request.headers.get(name)
    }

    /// Returns true if the request was delivered before and not acknowledged: its
    /// handler may have run already, wholly or in part.
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// Returns the number of this attempt at a command, from 1 on: one more than have failed.
    /// See [`ServiceServerBuilder::retry_delays`](crate::server::ServiceServerBuilder::retry_delays).
    /// Attempts at calls, which their callers repeat, are counted by
    /// [`attempt_of_call`](Context::attempt_of_call).
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the number of this attempt at a call, from 1 on, as the caller's retries count: the
    /// envelope's header `attempt`, and 1 if that is missing or invalid. Attempts at commands and
    /// events, which the server itself repeats, are counted by [`attempt`](Context::attempt).
    pub fn attempt_of_call(&self) -> u32 {
        let attempt = self.header(ATTEMPT_HEADER);
        attempt.filter(|attempt| *attempt > 0).unwrap_or(1)
    }

    /// Returns the id by which this instance is registered, if the server has a
    /// [registry](crate::server::ServiceServerBuilder::registry).
    pub fn instance_id(&self) -> Option<&str> {
        self.instance_id
    }

    /// Returns the time for which the caller still waits; zero once it has stopped. `None` if
    /// the request has no deadline, as those of peers in other languages.
    ///
    /// The time is counted from the arrival of the request, less the time that it had waited
    /// before. The offset of the caller's clock is estimated from its requests of the last
    /// five minutes, so the two clocks need not agree.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Returns a client for nested calls, in the name of this service. Its calls end a little
    /// before the caller stops waiting, by a tenth of the remaining time and 50 ms at most, so
    /// that the handler can still reply when a nested call has timed out.
    ///
    /// All handlers of a server share one client; the first call of this method creates it,
    /// and blocks until the broker has created its reply queue, at most 10 s and at
    /// most as long as the caller waits. It looks services up in the server's
    /// [registry](crate::server::ServiceServerBuilder::registry), if there is one, and passes on
    /// the headers named by
    /// [`propagate`](crate::server::ServiceServerBuilder::propagate). To
    /// set its options, give the server a client:
    /// [`ServiceServerBuilder::client`](crate::server::ServiceServerBuilder::client).
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::new`] does.
    ///
    /// ```
    /// use coney::{Broker, Context, ServiceServer};
    ///
    /// let server = ServiceServer::builder(&Broker::memory(), "order-service")
    ///     .handler_with_context("total", |context: &Context<'_>, order: u64| {
    ///         context.client()?.call::<u64>("price-service", "sum", &order)
    ///     })
    ///     .start()?;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn client(&self) -> Result<ServiceClient> {
        let mut client = self.nested.client(self.deadline)?;
        let (names, headers) = (&self.nested.propagate, &self.request.headers);
        if let Some(headers) = PassedOn::from_request(names, headers) {
            client = client.passing_on(headers);
        }
        if let Some(calls) = &self.nested.own_calls {
            client = client.counting(calls);
        }
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
