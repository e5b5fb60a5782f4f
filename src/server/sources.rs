use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use crate::consumer::{self, BatchJob, Dispatcher, Workers};
use crate::error::{ErrorKind, Result};
use crate::registry::Registration;
use crate::transport::{Delivery, LinkHandle, Publication, Returned, Sink};

/// Takes deliveries from the transport to the workers.
pub(super) struct RequestSink {
    pub(super) workers: Workers<Job>,
    /// To be told when there is no more broker.
    pub(super) registration: OnceLock<Weak<Registration>>,
    /// The reason why there is no more broker, if so.
    pub(super) lost_for_good: Mutex<Option<String>>,
}

/// A job for a worker.
pub(super) enum Job {
    Message(Delivery),
    /// Whatever of it no worker has taken yet.
    Batch(Arc<BatchJob>),
}

impl RequestSink {
    pub(super) fn new(workers: Workers<Job>) -> Self {
        Self {
            workers,
            registration: OnceLock::new(),
            lost_for_good: Mutex::new(None),
        }
    }

    /// The messages that no worker has begun with.
    fn take_messages(&self) -> Vec<Job> {
        self.workers.take(|job| matches!(job, Job::Message(_)))
    }

    fn submit(&self, delivery: Delivery, suspect: bool) -> Result<Vec<Publication>, Delivery> {
        let job = Job::Message(delivery);
        let submitted = match suspect {
            true => self.workers.submit_suspect(job),
            false => self.workers.submit(job),
        };
        match submitted {
            Err(Job::Message(delivery)) => Err(delivery),
            Ok(()) | Err(Job::Batch(_)) => Ok(Vec::new()),
        }
    }
}

impl consumer::Job for Job {
    fn share(&self) -> Option<Self> {
        match self {
            Self::Batch(batch) if batch.has_more() => Some(Self::Batch(Arc::clone(batch))),
            Self::Batch(_) | Self::Message(_) => None,
        }
    }

    fn stop(&self) {
        if let Self::Batch(batch) = self {
            batch.stop();
        }
    }
}

impl Job {
    /// The message, if no worker has begun with it.
    pub(super) fn into_delivery(self) -> Option<Delivery> {
        match self {
            Self::Message(delivery) => Some(delivery),
            // Those who are at it see it through.
            Self::Batch(batch) => Arc::into_inner(batch)?.into_delivery(),
        }
    }
}

impl Sink for RequestSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        self.submit(delivery, false)
    }

    /// Replies are not mandatory: a caller that has gone needs none.
    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// The broker delivers all of it again, so what has not started need not
    /// start; settling what has is a no-op. (What was for this instance alone is gone
    /// with its queue, and could not be answered.)
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        for job in self.workers.clear() {
            match job {
                Job::Message(delivery) => drop(delivery.forget()),
                Job::Batch(batch) => batch.abandon(),
            }
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        *self.lost_for_good.lock() = Some(cause.to_owned());
        if let Some(registration) = self.registration.get().and_then(Weak::upgrade) {
            registration.set_disconnected(&format!("it has no broker any more: {cause}"));
        }
    }
}

/// Takes deliveries from the queue of suspects: each goes to the one thread that has
/// nothing else to do.
pub(super) struct SuspectSink(pub(super) Arc<RequestSink>);

impl Sink for SuspectSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        self.0.submit(delivery, true)
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// The intake of the service's queue clears both.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        Vec::new()
    }

    fn closed(&self, _cause: &str) {}
}

/// The queues that a server consumes: the service's, that of its suspects and, where it
/// has a registry, one of the instance's own.
pub(super) struct Consumers {
    pub(super) service: String,
    pub(super) requests: Arc<RequestSink>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) shared: Arc<dyn LinkHandle>,
    pub(super) suspects: Option<Arc<dyn LinkHandle>>,
    pub(super) own: Option<OwnQueue>,
    /// There is no way back from it.
    pub(super) closed: AtomicBool,
    /// The health check that fails, and how, if one does.
    pub(super) unhealthy: Mutex<Option<String>>,
}

/// The instance's own queue.
pub(super) struct OwnQueue {
    pub(super) handle: Arc<dyn LinkHandle>,
    /// It may be there.
    pub(super) is_there: AtomicBool,
}

impl Consumers {
    /// Takes no more requests, and gives back those that no worker has begun. Blocks at
    /// most until `deadline`.
    pub(super) fn pause(&self, deadline: Instant) {
        for handle in self.suspects.iter().chain([&self.shared]) {
            self.attempt(handle.stop_consuming(deadline));
        }
        if let Some(own) = &self.own
            && own.is_there.swap(false, Ordering::SeqCst)
        {
            // From now on callers are told at once that it is not there.
            self.attempt(own.handle.stop_consuming(deadline));
            self.give_back_jobs(self.requests.take_messages(), deadline);
            self.attempt(self.hand_over(own, deadline));
            self.attempt(own.handle.delete_own_queue(deadline));
        }
        self.give_back_jobs(self.requests.take_messages(), deadline);
    }

    /// Takes requests again, unless it is closed.
    pub(super) fn resume(&self, deadline: Instant) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        for handle in self.suspects.iter().chain([&self.shared]) {
            self.attempt(handle.resume_consuming(deadline));
        }
        if let Some(own) = &self.own {
            // Before it is: one that comes late is there all the same.
            own.is_there.store(true, Ordering::SeqCst);
            self.attempt(own.handle.resume_consuming(deadline));
        }
        // Closed meanwhile: the one that closed it has not seen this.
        if self.closed.load(Ordering::SeqCst) {
            self.pause(deadline);
        }
    }

    /// Gives what waits in the instance's own queue to the others.
    fn hand_over(&self, own: &OwnQueue, deadline: Instant) -> Result<()> {
        while let Some((delivery, _)) = own.handle.get_own(deadline)? {
            match delivery.message().oversized() {
                // It cannot stay here, and is answered by anyone.
                Some(_) => drop(self.dispatcher.process(delivery)),
                None => self.dispatcher.give_back(delivery, deadline),
            }
        }
        Ok(())
    }

    /// Puts back the messages that no worker has begun with: into the queue of the
    /// service, wherever they come from. Blocks at most until `deadline`.
    pub(super) fn give_back_jobs(&self, jobs: Vec<Job>, deadline: Instant) {
        let deliveries = jobs.into_iter().filter_map(Job::into_delivery);
        deliveries.for_each(|delivery| self.dispatcher.give_back(delivery, deadline));
    }

    /// Waits until the broker has all that was sent: the last replies and
    /// acknowledgements.
    pub(super) fn flush(&self, deadline: Instant) -> Result<()> {
        let mut result = Ok(());
        for handle in self.handles() {
            result = result.and(handle.flush(deadline)); // each, whatever becomes of another
        }
        result
    }

    fn handles(&self) -> impl Iterator<Item = &Arc<dyn LinkHandle>> {
        let own = self.own.as_ref().map(|own| &own.handle);
        self.suspects.iter().chain(own).chain([&self.shared])
    }

    pub(super) fn close(&self) {
        for handle in self.handles() {
            handle.close();
        }
    }

    /// Some of it may fail: a closed connection delivers nothing more either.
    fn attempt(&self, result: Result<()>) {
        if let Err(error) = result
            && error.kind() != ErrorKind::Closed
        {
            log::warn!(target: "coney::server", "{}: {error}", self.service);
        }
    }
}
