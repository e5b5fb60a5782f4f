//! Many calls to one service, in few messages.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::BatchLimits;
use super::message::{BatchContext, BatchMessage, SentMessage};
use super::pending::PendingBatch;
use super::replies::{BatchReplies, BatchedResult, CallKey};
use crate::base::name::check_action;
use crate::client::decode::CallTarget;
use crate::client::options::Kind;
use crate::client::{CallOptions, ServiceClient};
use crate::error::Result;

/// Calls to one service that travel together: any number, of any actions, each with a
/// result and an error of its own. Made by [`ServiceClient::batch`].
///
/// A message takes up to 500 calls and 512 KiB ([`limits`](Batch::limits)); what is more goes
/// in further messages, at the same time, each of which counts as one call
/// [in flight](crate::ServiceClientBuilder::max_in_flight). The service's workers share the calls of a message,
/// and answer them in one. So a batch of a hundred short calls costs about as much as two
/// calls, but the replies of a message come together, with the slowest: at the deadline all of
/// them are missing if one is. So give slow calls a batch of their own, or smaller messages.
/// And they share their fate: a server that dies over one of them has the next run all of its
/// message again.
///
/// A service that does not know batches, as peers in other languages do not, is called once
/// for each, all at the same time, with the same results; after
/// [`call_async`](Batch::call_async) that begins when they are waited for.
///
/// A batch ends at one deadline: the client's timeout or its
/// [options](Batch::options)', from when it is called.
///
/// ```
/// use coney::{Broker, ServiceClient, ServiceServer};
///
/// let broker = Broker::memory();
/// let server = ServiceServer::builder(&broker, "math")
///     .handler("double", |n: u64| Ok::<_, String>(n * 2))
///     .handler("name", |n: u64| Ok::<_, String>(format!("number {n}")))
///     .start()?;
/// let client = ServiceClient::new(&broker, "order-service")?;
///
/// let mut batch = client.batch("math");
/// let double = batch.add::<_, u64>("double", &21);
/// let name = batch.add::<_, String>("name", &7);
/// let mut replies = batch.call();
/// assert_eq!(replies.take(double)?, 42);
/// assert_eq!(replies.take(name)?, "number 7");
///
/// let mut batch = client.batch("math");
/// for n in 0..1_000 {
///     batch.add::<_, u64>("double", &n);
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
    options: CallOptions,
    limits: BatchLimits,
    messages: Vec<BatchMessage>,
    /// What cannot be encoded has ended already.
    results: Vec<Option<BatchedResult>>,
    actions: Vec<Arc<str>>,
    number: u64,
}

impl ServiceClient {
    /// Calls to `service` that travel together: see [`Batch`].
    pub fn batch(&self, service: &str) -> Batch {
        Batch {
            client: self.clone(),
            service: service.to_owned(),
            options: CallOptions::new(),
            limits: BatchLimits::new().within(self.inner.broker.max_body()),
            messages: Vec::new(),
            results: Vec::new(),
            actions: Vec::new(),
            number: fastrand::u64(..),
        }
    }
}

impl Batch {
    /// Options for all of its calls, but for a [message id](CallOptions::message_id): each
    /// has its own.
    pub fn options(mut self, options: &CallOptions) -> Self {
        self.options = options.clone();
        self.options.message_id = None;
        self
    }

    /// How much goes into one message, of what is added from now on. Default: 500 calls
    /// and 512 KiB.
    pub fn limits(mut self, limits: BatchLimits) -> Self {
        self.limits = limits.within(self.client.inner.broker.max_body());
        self
    }

    /// Adds a call. What it returns takes its reply out of the [`BatchReplies`]; without,
    /// replies come in the order asked. A request that cannot be encoded is not sent, and
    /// its result says so.
    pub fn add<Req, Resp>(&mut self, action: &str, request: &Req) -> CallKey<Resp>
    where
        Req: Serialize + ?Sized,
        Resp: DeserializeOwned,
    {
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

    /// How many calls it holds.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// Makes the calls, and blocks until the last has ended, at most until the deadline; not
    /// at all if there are none.
    /// The replies say what became of each.
    pub fn call(self) -> BatchReplies {
        self.start(Kind::Call).wait()
    }

    /// Makes the calls and returns at once; the replies are waited for through the
    /// [`PendingBatch`].
    ///
    /// Blocks only while too many messages wait to be sent, at most until the deadline,
    /// which runs from now.
    pub fn call_async(self) -> PendingBatch {
        self.start(Kind::AsyncCall)
    }

    fn try_add<Req>(&mut self, at: usize, action: &str, request: &Req) -> Result<()>
    where
        Req: Serialize + ?Sized,
    {
        let target = CallTarget {
            service: &self.service,
            action,
        };
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
            .map_err(|error| target.not_sent(error))?;
        self.messages.extend(next);
        Ok(())
    }

    fn start(mut self, kind: Kind) -> PendingBatch {
        let messages = std::mem::take(&mut self.messages);
        let calls = BatchContext {
            client: self.client,
            service: self.service,
            options: self.options,
            kind,
            actions: self.actions,
            number: self.number,
        };
        let limit = calls.client.deadline_for(&calls.options);
        let messages = messages
            .into_iter()
            .filter(|message| !message.calls.is_empty());
        let parts = messages.map(|message| SentMessage {
            sent: calls.send(&message, limit),
            message,
        });
        let parts = parts.collect();
        PendingBatch::new(calls, limit, parts, self.results)
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
