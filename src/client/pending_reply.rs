//! The reply to an asynchronous call, still to come.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::core::ClientCore;
use super::pending::{Pending, Progress, ReadyOn};
use super::started_call::StartedCall;
use crate::base::callbacks::{Notifier, Watched};
use crate::base::catch::catch;
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::message::CorrelationId;

/// The reply to an asynchronous call, still to come.
///
/// The call's deadline runs from the start. A request that has not been sent
/// by then is not sent any more; a reply that comes later, but before the caller
/// looks, still counts. Dropping this abandons the call, sent or not.
///
/// With [policies](crate::client::ServiceClientBuilder::resilience), the call goes on while it is waited
/// for, or polled, or has a callback: then it is tried again, and its outcome is counted. An attempt
/// that is due is sent by the thread that waits, which may block for a look-up and while the outgoing
/// queue is full, at most until the attempt's deadline.
#[must_use = "dropping a PendingReply abandons the call"]
pub struct PendingReply<T> {
    call: StartedCall,
    /// True once the outcome was taken, or a callback gets it.
    taken: bool,
    reply: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> PendingReply<T> {
    pub(super) fn new(call: StartedCall) -> Self {
        Self {
            call,
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
        // The call has a deadline.
        let far = deadline::after(Duration::MAX);
        let result = self.wait_deadline(far);
        result.unwrap_or_else(|| Err(self.call.core().unreported(self.call.target())))
    }

    /// Blocks until the reply arrives, at most `timeout`, or for longer to send an attempt that is due
    /// (see [`PendingReply`]); `None` means not yet.
    /// Once the call's own deadline has passed, returns `Some` with the error.
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call`](crate::ServiceClient::call) does; and with
    /// [`ErrorKind::Misuse`] after the outcome has been taken.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T>> {
        self.wait_deadline(deadline::after(timeout))
    }

    /// Blocks until the reply arrives, at most until `deadline`, or for longer to send an attempt that
    /// is due (see [`PendingReply`]); `None` means not yet.
    ///
    /// # Errors
    ///
    /// Fails as [`wait_timeout`](PendingReply::wait_timeout) does.
    pub fn wait_deadline(&mut self, deadline: Instant) -> Option<Result<T>> {
        if self.taken {
            return Some(Err(self.already_taken()));
        }
        let target = self.call.target();
        if let Err(error) = self.call.core().broker.check_owner_process(&target) {
            return Some(Err(error));
        }
        let reply = self.call.advance(deadline)?;
        self.taken = true;
        Some(reply.and_then(|reply| self.call.target().decode_reply(&reply)))
    }

    /// Returns the reply if it has arrived. Blocks only to send an attempt that is due (see
    /// [`PendingReply`]).
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
    /// callback. The attempts of calls with policies are sent there too. A call whose request is on its
    /// way counts as in flight until its callback has run.
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
        let core = Arc::clone(self.call.core());
        core.watch(Box::new(ReplyCallback {
            pending: self,
            callback,
            watched: None,
            is_counted: false,
        }))
    }
}

impl<T> PendingReply<T> {
    fn already_taken(&self) -> Error {
        Error::new(
            ErrorKind::Misuse,
            format!(
                "the outcome of {} has been taken already",
                self.call.target()
            ),
        )
    }
}

/// A callback that waits for a reply.
struct ReplyCallback<T, F> {
    pending: PendingReply<T>,
    callback: F,
    /// The request whose outcome the thread is notified of.
    watched: Option<CorrelationId>,
    /// True if the call counts as in flight until the callback has run.
    is_counted: bool,
}

impl<T, F> ReplyCallback<T, F> {
    /// Registers the callback thread for the outcome of the request on its way, if it is another
    /// than before.
    fn watch(&mut self, ready: &Notifier) {
        let router = &self.pending.call.core().router;
        let Some(id) = self.pending.call.sent().map(|sent| sent.id) else {
            return;
        };
        if self.watched.replace(id) == Some(id) {
            return;
        }
        if self.is_counted {
            router.callback_done(); // that of the attempt before
        }
        self.is_counted = true;
        if !router.set_callback(id, ready.clone()) {
            ready.notify(); // it has been decided
        }
    }
}

impl<T, F> Watched for ReplyCallback<T, F>
where
    T: DeserializeOwned + 'static,
    F: FnOnce(Result<T>) + Send + 'static,
{
    fn start(&mut self, ready: &Notifier) {
        self.watch(ready);
    }

    fn is_ready(&mut self, ready: &Notifier) -> bool {
        let is_ready = self.pending.call.is_ready();
        self.watch(ready);
        is_ready
    }

    fn deadline(&self) -> Instant {
        self.pending.call.next_step()
    }

    fn finish(self: Box<Self>) {
        let Self {
            mut pending,
            callback,
            is_counted,
            ..
        } = *self;
        // Before the callback runs: it may panic.
        let done = CallbackDone(Arc::clone(pending.call.core()), usize::from(is_counted));
        // The reply's type, or a layer, may panic.
        let result = catch(|| pending.try_wait()).unwrap_or(None);
        let target = pending.call.target();
        let result = result.unwrap_or_else(|| Err(pending.call.core().unreported(target)));
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
        self.taken || self.call.is_ready()
    }

    fn deadline(&self) -> Instant {
        self.call.next_step()
    }

    fn ready_on(&self) -> ReadyOn<'_> {
        match self.call.sent() {
            Some(sent) => ReadyOn::Reply(&sent.slot.outcome),
            None => ReadyOn::Nothing,
        }
    }
}

impl<T> Pending for PendingReply<T> {}

impl<T> Drop for PendingReply<T> {
    fn drop(&mut self) {
        if !self.taken {
            self.call.abandon();
        }
    }
}

impl<T> fmt::Debug for PendingReply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("service", &self.call.target().service)
            .field("action", &self.call.target().action)
            .finish_non_exhaustive()
    }
}
