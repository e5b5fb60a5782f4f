use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::call_outcome::{CallOutcome, CallbackEvent};
use super::core::ClientCore;
use super::decode::CallTarget;
use super::sent_call::SentCall;
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};

/// The reply to an asynchronous call, still to come.
///
/// The call's deadline runs from the start. A request that has not been sent
/// by then is not sent any more; a reply that comes later, but before anybody
/// looks, still counts. Dropping this forgets the call, sent or not.
#[must_use = "dropping a PendingReply forgets the call"]
pub struct PendingReply<T> {
    client: Arc<ClientCore>,
    sent: SentCall,
    service: String,
    action: String,
    /// The outcome was given out, or a callback will be told.
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

    /// Blocks until the reply is here, at most until the call's deadline.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::call`](crate::ServiceClient::call).
    pub fn wait(mut self) -> Result<T> {
        self.wait_until(self.sent.send_state.deadline())
            .unwrap_or_else(|| self.end_at_deadline())
    }

    /// Blocks until the reply is here, at most `timeout`; `None` means not yet.
    /// Once the call's own deadline has passed, `Some` with the error.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::call`](crate::ServiceClient::call); and [`ErrorKind::Closed`] after the outcome
    /// has been taken.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T>> {
        self.wait_until(deadline::after(timeout).min(self.sent.send_state.deadline()))
            .or_else(|| {
                (Instant::now() >= self.sent.send_state.deadline()).then(|| self.end_at_deadline())
            })
    }

    /// The reply if it is here; never blocks.
    ///
    /// # Errors
    ///
    /// As [`wait_timeout`](PendingReply::wait_timeout).
    pub fn try_wait(&mut self) -> Option<Result<T>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Has `callback` run when the call ends, however it ends: with the reply,
    /// an error, or the timeout. Returns at once.
    ///
    /// Callbacks run one after the other on the client's one callback thread,
    /// which starts with the first: one that blocks holds up the others and
    /// their timeouts. So it may make a call, but must not wait for another
    /// callback. A call counts as in flight until its callback has run.
    /// A panic in a callback is logged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the outcome has been taken, or the callback
    /// thread cannot be started; the callback does not run then.
    ///
    /// ```
    /// # use coney::{Broker, ServiceClient, ServiceServer};
    /// # let broker = Broker::memory();
    /// # let server = ServiceServer::builder(&broker, "math")
    /// #     .handler("double", |n: u64| Ok::<_, String>(n * 2)).start()?;
    /// # let client = ServiceClient::new(&broker, "order-service")?;
    /// # let (sender, receiver) = std::sync::mpsc::channel();
    /// client.call_async::<_, u64>("math", "double", &4)?.then(move |reply| {
    ///     sender.send(reply).unwrap();
    /// })?;
    /// assert_eq!(receiver.recv().unwrap()?, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn then<F>(mut self, callback: F) -> Result<()>
    where
        F: FnOnce(Result<T>) + Send + 'static,
        T: 'static,
    {
        if self.taken {
            return Err(self.already_taken());
        }
        let events = self.client.callback_events()?;
        self.taken = true;
        let sent = self.sent.clone();
        let callback = Box::new(move |outcome: Option<CallOutcome>| {
            callback(match outcome {
                Some(outcome) => self.client.result(self.target(), outcome),
                None => Err(self.timeout_error()),
            });
        });
        let _ = events.send(CallbackEvent::Watch {
            id: sent.id,
            deadline: sent.send_state.deadline(),
            slot: sent.slot.outcome,
            callback,
        });
        Ok(())
    }

    fn wait_until(&mut self, until: Instant) -> Option<Result<T>> {
        if self.taken {
            return Some(Err(self.already_taken()));
        }
        if let Err(error) = self.client.broker.check_home(&self.target()) {
            return Some(Err(error));
        }
        let outcome = self.sent.wait(until, self.client.broker.spin_for())?;
        self.taken = true;
        Some(self.client.result(self.target(), outcome))
    }

    fn end_at_deadline(&mut self) -> Result<T> {
        self.taken = true;
        match self.sent.expire(&self.client.router) {
            Some(outcome) => self.client.result(self.target(), outcome),
            None => Err(self.timeout_error()),
        }
    }
}

impl<T> PendingReply<T> {
    fn target(&self) -> CallTarget<'_> {
        CallTarget {
            service: &self.service,
            action: &self.action,
        }
    }

    fn timeout_error(&self) -> Error {
        self.client.timed_out(self.target(), &self.sent)
    }

    fn already_taken(&self) -> Error {
        Error::new(
            ErrorKind::Closed,
            format!(
                "the outcome of {}.{} has been taken already",
                self.service, self.action
            ),
        )
    }
}

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
