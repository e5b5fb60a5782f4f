//! The reply to an asynchronous call, still to come.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::call_outcome::CallOutcome;
use super::core::ClientCore;
use super::decode::CallTarget;
use super::pending::{Pending, Progress, ReadyOn};
use super::sent_call::SentCall;
use crate::base::callbacks::{Notifier, Watched};
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};

/// The reply to an asynchronous call, still to come.
///
/// The call's deadline runs from the start. A request that has not been sent
/// by then is not sent any more; a reply that comes later, but before the caller
/// looks, still counts. Dropping this abandons the call, sent or not.
#[must_use = "dropping a PendingReply abandons the call"]
pub struct PendingReply<T> {
    client: Arc<ClientCore>,
    sent: SentCall,
    service: String,
    action: String,
    /// True once the outcome was taken, or a callback gets it.
    taken: bool,
    reply: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> PendingReply<T> {
    pub(super) fn new(
        client: Arc<ClientCore>,
        sent: SentCall,
        service: &str,
        action: &str,
    ) -> Self {
        Self {
            client,
            sent,
            service: service.to_owned(),
            action: action.to_owned(),
            taken: false,
            reply: PhantomData,
        }
    }

    /// Blocks until the reply arrives, at most until the call's deadline.
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call`](crate::ServiceClient::call) does.
    pub fn wait(mut self) -> Result<T> {
        self.wait_until(self.sent.send_state.deadline())
            .unwrap_or_else(|| self.end_at_deadline())
    }

    /// Blocks until the reply arrives, at most `timeout`; `None` means not yet.
    /// Once the call's own deadline has passed, returns `Some` with the error.
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call`](crate::ServiceClient::call) does; and with
    /// [`ErrorKind::Misuse`] after the outcome has been taken.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T>> {
        self.wait_deadline(deadline::after(timeout))
    }

    /// Blocks until the reply arrives, at most until `deadline`; `None` means not yet.
    ///
    /// # Errors
    ///
    /// Fails as [`wait_timeout`](PendingReply::wait_timeout) does.
    pub fn wait_deadline(&mut self, deadline: Instant) -> Option<Result<T>> {
        let end = self.sent.send_state.deadline();
        self.wait_until(deadline.min(end))
            .or_else(|| (Instant::now() >= end).then(|| self.end_at_deadline()))
    }

    /// Returns the reply if it has arrived; never blocks.
    ///
    /// # Errors
    ///
    /// Fails as [`wait_timeout`](PendingReply::wait_timeout) does.
    pub fn try_wait(&mut self) -> Option<Result<T>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Runs `callback` when the call ends: with the reply, an error, or the timeout. Returns
    /// at once.
    ///
    /// Callbacks run one after the other on the client's one callback thread,
    /// which starts with the first: one that blocks holds up the others and
    /// their timeouts. So it may make a call, but must not wait for another
    /// callback. A call counts as in flight until its callback has run.
    /// A panic in a callback is logged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] if the outcome has been taken, or in a forked child;
    /// [`ErrorKind::Io`] if the callback thread cannot be started or has ended. The callback does
    /// not run then.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "math")
    /// #     .respond("double", |n: u64| n * 2).start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// # let (sender, receiver) = std::sync::mpsc::channel();
    /// client.call_async::<u64>("math", "double", &4)?.then(move |reply| {
    ///     sender.send(reply).unwrap();
    /// })?;
    /// assert_eq!(receiver.recv().unwrap()?, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn then<F>(self, callback: F) -> Result<()>
    where
        F: FnOnce(Result<T>) + Send + 'static,
        T: 'static,
    {
        if self.taken {
            return Err(self.already_taken());
        }
        let client = Arc::clone(&self.client);
        client.watch(Box::new(ReplyCallback {
            pending: self,
            callback,
            is_decided: false,
        }))
    }

    fn wait_until(&mut self, until: Instant) -> Option<Result<T>> {
        if self.taken {
            return Some(Err(self.already_taken()));
        }
        if let Err(error) = self.client.broker.check_owner_process(&self.target()) {
            return Some(Err(error));
        }
        let outcome = self.sent.wait(until, self.client.broker.spin_for())?;
        self.taken = true;
        Some(self.client.result(self.target(), outcome))
    }

    fn end_at_deadline(&mut self) -> Result<T> {
        match self.take_at_deadline() {
            Some(outcome) => self.client.result(self.target(), outcome),
            None => Err(self.client.timed_out(self.target(), &self.sent)),
        }
    }
}

impl<T> PendingReply<T> {
    /// Takes the outcome; `None` if the call ends without one.
    fn take_at_deadline(&mut self) -> Option<CallOutcome> {
        self.taken = true;
        self.sent.expire(&self.client.router)
    }

    fn target(&self) -> CallTarget<'_> {
        CallTarget {
            service: &self.service,
            action: &self.action,
        }
    }

    fn already_taken(&self) -> Error {
        Error::new(
            ErrorKind::Misuse,
            format!(
                "the outcome of {}.{} has been taken already",
                self.service, self.action
            ),
        )
    }
}

/// A callback that waits for a reply.
struct ReplyCallback<T, F> {
    pending: PendingReply<T>,
    callback: F,
    /// True if the call had ended before the thread watched it.
    is_decided: bool,
}

impl<T, F> Watched for ReplyCallback<T, F>
where
    T: DeserializeOwned + 'static,
    F: FnOnce(Result<T>) + Send + 'static,
{
    fn start(&mut self, ready: &Notifier) {
        let PendingReply { client, sent, .. } = &self.pending;
        self.is_decided = !client.router.set_callback(sent.id, ready.clone());
    }

    fn is_ready(&mut self, _ready: &Notifier) -> bool {
        self.is_decided || self.pending.sent.has_outcome()
    }

    fn deadline(&self) -> Instant {
        self.pending.sent.send_state.deadline()
    }

    fn finish(self: Box<Self>) {
        let Self {
            mut pending,
            callback,
            ..
        } = *self;
        // Before the callback runs: it may panic.
        let done = CallbackDone(Arc::clone(&pending.client), 1);
        let result = pending.end_at_deadline();
        drop(pending);
        callback(result);
        drop(done);
    }
}

/// The end of a callback: its calls are in flight until this is dropped.
pub(super) struct CallbackDone(pub(super) Arc<ClientCore>, pub(super) usize);

impl Drop for CallbackDone {
    fn drop(&mut self) {
        for _ in 0..self.1 {
            self.0.router.callback_done();
        }
    }
}

impl<T> Progress for PendingReply<T> {
    fn is_ready(&mut self) -> bool {
        self.taken || self.sent.has_outcome()
    }

    fn deadline(&self) -> Instant {
        self.sent.send_state.deadline()
    }

    fn ready_on(&self) -> ReadyOn<'_> {
        ReadyOn::Reply(&self.sent.slot.outcome)
    }
}

impl<T> Pending for PendingReply<T> {}

impl<T> Drop for PendingReply<T> {
    fn drop(&mut self) {
        if !self.taken {
            self.client.forget(&self.sent);
        }
    }
}

impl<T> fmt::Debug for PendingReply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("service", &self.service)
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}
