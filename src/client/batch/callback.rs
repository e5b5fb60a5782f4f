//! Callbacks for the replies to a batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::message::SentMessage;
use super::pending::PendingBatch;
use super::replies::BatchReplies;
use crate::base::callbacks::{Notifier, Watched};
use crate::client::pending_reply::CallbackDone;
use crate::error::{Error, ErrorKind, Result};

impl PendingBatch {
    /// Runs `callback` with the replies when the last call has ended. Returns at once. The
    /// callback runs as that of [`PendingReply::then`](crate::PendingReply::then).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] if the replies have been taken, or in a forked child;
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
    /// let mut batch = client.batch("math");
    /// batch.add::<u64>("double", &1);
    /// batch.add::<u64>("double", &2);
    /// batch.call_async().then(move |replies| {
    ///     sender.send(replies.into_results::<u64>()).unwrap();
    /// })?;
    /// assert_eq!(receiver.recv().unwrap().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn then<F>(self, callback: F) -> Result<()>
    where
        F: FnOnce(BatchReplies) + Send + 'static,
    {
        if self.taken {
            return Err(Error::new(
                ErrorKind::Misuse,
                format!(
                    "the replies to a batch of {} have been taken already",
                    self.context.service
                ),
            ));
        }
        let core = Arc::clone(&self.context.client.inner);
        core.watch(Box::new(BatchCallback {
            pending: self,
            callback,
            watched: 0,
        }))
    }
}

/// A callback that waits for the replies to a batch.
struct BatchCallback<F> {
    pending: PendingBatch,
    callback: F,
    /// The number of messages that are in flight until the callback has run.
    watched: usize,
}

impl<F> BatchCallback<F> {
    /// Registers the callback thread for the outcomes of these messages.
    fn watch(&mut self, ready: &Notifier, messages: Vec<SentMessage>) {
        let mut messages = VecDeque::from(messages);
        while let Some(message) = messages.pop_front() {
            let router = &self.pending.context.client.inner.router;
            let Ok(sent) = &message.sent else {
                self.pending.waiting.push_back(message);
                continue;
            };
            self.watched += 1;
            if router.set_callback(sent.id, ready.clone()) {
                self.pending.waiting.push_back(message);
                continue;
            }
            // It has ended, and is not notified any more.
            let outcome = sent.expire(router).outcome();
            messages.extend(self.pending.settle(message, outcome));
        }
    }
}

impl<F> Watched for BatchCallback<F>
where
    F: FnOnce(BatchReplies) + Send + 'static,
{
    fn start(&mut self, ready: &Notifier) {
        let waiting = std::mem::take(&mut self.pending.waiting);
        self.watch(ready, waiting.into());
    }

    fn is_ready(&mut self, ready: &Notifier) -> bool {
        let now = Instant::now();
        while let Some(message) = self.pending.waiting.pop_front() {
            let Some(outcome) = self.pending.outcome(&message, now) else {
                self.pending.waiting.push_front(message);
                return false;
            };
            let again = self.pending.settle(message, outcome);
            self.watch(ready, again);
        }
        true
    }

    fn deadline(&self) -> Instant {
        self.pending.limit.deadline
    }

    fn finish(self: Box<Self>) {
        let Self {
            mut pending,
            callback,
            watched,
        } = *self;
        // Before the callback runs: it may panic.
        let done = CallbackDone(Arc::clone(&pending.context.client.inner), watched);
        pending.advance(pending.limit.deadline);
        let replies = pending.take_replies();
        drop(pending);
        callback(replies);
        drop(done);
    }
}
