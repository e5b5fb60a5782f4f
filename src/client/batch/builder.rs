//! A batch while it is filled.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::BatchLimits;
use super::message::{BatchContext, BatchMessage};
use super::pending::PendingBatch;
use super::replies::{BatchReplies, BatchedResult, CallKey};
use crate::base::name::check_action;
use crate::client::ServiceClient;
use crate::client::options::{RequestKind, RequestOptions};
use crate::error::Result;

/// Calls to one service that are sent in few messages: any number, of any actions, each with a
/// result and an error of its own. Made by [`ServiceClient::batch`].
///
/// A message takes up to 500 calls and 512 KiB ([`limits`](Batch::limits)); further calls go
/// into further messages, at the same time, each of which counts as one call
/// [in flight](crate::client::ServiceClientBuilder::max_in_flight). The service's workers
/// share the calls of a message, and reply to them in one. So a batch of a hundred short calls
/// costs about as much as two calls, but the replies of a message come at once, with the
/// slowest: at the deadline all of them are missing if one is. So give slow calls a batch of
/// their own, or smaller messages. And if a server dies while it runs one of them, the next
/// server runs all calls of the message again.
///
/// A service that does not know batches, as peers in other languages do not, is called once
/// for each, all at the same time, with the same results; after
/// [`call_async`](Batch::call_async) that begins when the replies are waited for.
///
/// A batch ends at one deadline: the client's timeout or its own
/// [timeout](Batch::timeout), from the moment it is called.
///
/// ```
/// use coney::{Broker, ServiceClient, ServiceServer};
///
/// let broker = Broker::memory();
/// let server = ServiceServer::builder(&broker, "math")
///     .respond("double", |n: u64| n * 2)
///     .respond("name", |n: u64| format!("number {n}"))
///     .start()?;
/// let client = ServiceClient::new(&broker, "order-service")?;
///
/// let mut batch = client.batch("math");
/// let double = batch.add::<u64>("double", &21);
/// let name = batch.add::<String>("name", &7);
/// let mut replies = batch.call();
/// assert_eq!(replies.take(double)?, 42);
/// assert_eq!(replies.take(name)?, "number 7");
///
/// let mut batch = client.batch("math");
/// for n in 0..1_000 {
///     batch.add::<u64>("double", &n);
/// }
/// let doubles = batch.call().into_results::<u64>();
/// let doubles = doubles.into_iter().collect::<coney::Result<Vec<_>>>()?;
/// assert_eq!(doubles[999], 1_998);
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use = "a batch does nothing until it is called"]
pub struct Batch {
    client: ServiceClient,
    service: String,
    options: RequestOptions,
    limits: BatchLimits,
    messages: Vec<BatchMessage>,
    /// The result of each call, as far as it is known: a request that cannot be encoded has
    /// failed already.
    results: Vec<Option<BatchedResult>>,
    actions: Vec<Arc<str>>,
    number: u64,
}

impl ServiceClient {
    /// Returns an empty batch of calls to `service`: see [`Batch`].
    pub fn batch(&self, service: &str) -> Batch {
        Batch {
            client: self.clone(),
            service: service.to_owned(),
            options: RequestOptions::default(),
            limits: BatchLimits::new().within(self.inner.broker.max_body()),
            messages: Vec::new(),
            results: Vec::new(),
            actions: Vec::new(),
            number: fastrand::u64(..),
        }
    }
}

impl Batch {
    /// Sets the longest time for all of its calls, from the moment the batch is called.
    /// Defaults to the client's [timeout](crate::client::ServiceClientBuilder::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Adds a header to the envelope of every call.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.add_header(name, value);
        self
    }

    /// Sets whether the broker keeps the requests on disk, as
    /// [`CallOptions::persistent`](crate::CallOptions::persistent).
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.options.persistent = Some(persistent);
        self
    }

    /// Sets whether the calls may run twice, as
    /// [`CallOptions::idempotent`](crate::CallOptions::idempotent). Defaults to false.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.options.idempotent = idempotent;
        self
    }

    /// Addresses the batch to one instance, as
    /// [`CallOptions::instance`](crate::CallOptions::instance).
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.options.instance = Some(id.into());
        self
    }

    /// Sets the key that the client's balancer may go by, as
    /// [`CallOptions::balance_key`](crate::CallOptions::balance_key).
    pub fn balance_key(mut self, key: impl Into<String>) -> Self {
        self.options.balance_key = Some(key.into());
        self
    }

    /// Sets the limits of one message, for the calls that are added from now on. Defaults to
    /// 500 calls and 512 KiB.
    pub fn limits(mut self, limits: BatchLimits) -> Self {
        self.limits = limits.within(self.client.inner.broker.max_body());
        self
    }

    /// Adds a call. The returned key takes its reply out of the [`BatchReplies`]; without
    /// keys, replies come in the order of the calls. A request that cannot be encoded is not
    /// sent, and its result is the error.
    pub fn add<Resp: DeserializeOwned>(
        &mut self,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> CallKey<Resp> {
        let at = self.results.len();
        let action = match self.actions.last() {
            Some(last) if **last == *action => Arc::clone(last),
            _ => action.into(),
        };
        let added = self.try_add(at, &action, request);
        self.actions.push(action);
        self.results.push(added.err().map(BatchedResult::Failed));
        CallKey::new(at, self.number)
    }

    /// Returns the number of calls.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Returns true if there are no calls.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// Makes the calls, and blocks until the last has ended, at most until the deadline; not
    /// at all if there are none. Each call has its own result.
    pub fn call(self) -> BatchReplies {
        self.start(RequestKind::Call).wait()
    }

    /// Makes the calls and returns a handle, not a future: wait for the replies through the
    /// [`PendingBatch`].
    ///
    /// Blocks only while the outgoing queue is full, at most until the deadline,
    /// which runs from now.
    pub fn call_async(self) -> PendingBatch {
        self.start(RequestKind::AsyncCall)
    }

    fn try_add(
        &mut self,
        at: usize,
        action: &str,
        request: &(impl Serialize + ?Sized),
    ) -> Result<()> {
        check_action(action)?;
        let is_full = |message: &BatchMessage| message.calls.len() >= self.limits.calls;
        if self.messages.last().is_none_or(is_full) {
            self.messages.push(BatchMessage::default());
        }
        let Some(message) = self.messages.last_mut() else {
            return Ok(()); // there is one now
        };
        let next = message
            .add(at, action, request, self.limits.bytes)
            .map_err(|error| error.about(format_args!("cannot call {}.{action}", self.service)))?;
        self.messages.extend(next);
        Ok(())
    }

    fn start(mut self, kind: RequestKind) -> PendingBatch {
        let messages = std::mem::take(&mut self.messages);
        let context = BatchContext {
            client: self.client,
            service: self.service,
            options: self.options,
            kind,
            actions: self.actions,
            number: self.number,
        };
        let limit = context.client.deadline_for(&context.options);
        let messages = messages.into_iter().filter(|it| !it.calls.is_empty());
        let sent: Vec<_> = messages
            .flat_map(|message| context.send(message, limit))
            .collect();
        PendingBatch::new(context, limit, sent, self.results)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("service", &self.service)
            .field("calls", &self.results.len())
            .finish_non_exhaustive()
    }
}
