//! The queues that a server consumes, and the sinks that pass their deliveries to the workers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::job::ServerJob;
use crate::consumer::{Class, Dispatcher, Job, Lifetime, Workers};
use crate::error::{ErrorKind, Result};
use crate::registry::Registration;
use crate::transport::{Delivery, LinkHandle, Publication, Returned, Sink};

/// The sink of a server's request queues: passes deliveries from the transport to the workers.
pub(super) struct RequestSink {
    pub(super) workers: Workers<ServerJob>,
    /// The registration to be marked as disconnected when the broker connection is closed for good.
    pub(super) registration: OnceLock<Weak<Registration>>,
    pub(super) lifetime: Lifetime,
}

impl RequestSink {
    pub(super) fn new(workers: Workers<ServerJob>) -> Self {
        Self {
            workers,
            registration: OnceLock::new(),
            lifetime: Lifetime::default(),
        }
    }

    /// Removes the messages that no worker has started.
    fn take_messages(&self) -> Vec<ServerJob> {
        self.workers.clear_unstarted()
    }

    fn submit(&self, delivery: Delivery, suspect: bool) -> Result<Vec<Publication>, Delivery> {
        let job = ServerJob::Message(delivery);
        let submitted = match suspect {
            true => self.workers.submit_suspect(job),
            false => self.workers.submit(job),
        };
        ServerJob::accepted(submitted)
    }
}

impl Sink for RequestSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        self.submit(delivery, false)
    }

    /// Ignores returned messages: replies are not mandatory, as a caller that is gone needs none.
    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// Drops the messages that no worker has started: the broker redelivers them. Settling the
    /// started ones has no effect. (Messages for this instance alone are gone with its queue, and
    /// could not be answered.)
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        for job in self.workers.clear_all() {
            job.discard();
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        self.lifetime.disconnected(cause);
        if let Some(registration) = self.registration.get().and_then(Weak::upgrade) {
            registration.set_disconnected(&format!(
                "its broker connection is closed for good: {cause}"
            ));
        }
    }
}

/// The sink of the suspect queue: passes each delivery to the one thread that handles no others.
pub(super) struct SuspectSink(pub(super) Arc<RequestSink>);

impl Sink for SuspectSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        self.0.submit(delivery, true)
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// Ignores the loss: [`RequestSink`] clears both queues' jobs.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        Vec::new()
    }

    fn closed(&self, _cause: &str) {}
}

/// The sink of the queue of an action with a bound: passes each delivery to the class of that action.
pub(super) struct BoundedSink {
    pub(super) requests: Arc<RequestSink>,
    pub(super) class: Class,
}

impl Sink for BoundedSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        let job = ServerJob::InClass(delivery);
        ServerJob::accepted(self.requests.workers.submit_to(self.class, job))
    }

    fn returned(&self, _returned: Returned) -> Vec<Publication> {
        Vec::new()
    }

    /// Ignores the loss: [`RequestSink`] clears all classes.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        Vec::new()
    }

    fn closed(&self, _cause: &str) {}
}

/// The queues that a server consumes: the service's, its suspect queue and, if the server has
/// a registry, the instance's own.
pub(super) struct Consumers {
    pub(super) service: String,
    pub(super) requests: Arc<RequestSink>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) shared: Arc<dyn LinkHandle>,
    pub(super) suspects: Option<Arc<dyn LinkHandle>>,
    /// The queues of the actions that have bounds.
    pub(super) bounded: Vec<Arc<dyn LinkHandle>>,
    pub(super) own: Option<OwnQueue>,
    /// True once the server is being shut down; never false again.
    pub(super) closed: AtomicBool,
    /// The name and the error of the health check that fails, if one does.
    pub(super) unhealthy: Mutex<Option<String>>,
}

/// The instance's own queue.
pub(super) struct OwnQueue {
    pub(super) handle: Arc<dyn LinkHandle>,
    /// False if the queue is known to be deleted.
    pub(super) may_exist: AtomicBool,
    /// The number by which its prefetch is above that of the service's queue.
    pub(super) spare_prefetch: u16,
}

impl Consumers {
    /// Stops consuming, and republishes the requests that no worker has started. Blocks at most
    /// until `deadline`.
    pub(super) fn pause(&self, deadline: Instant) {
        for handle in self.service_queues() {
            self.log_error(handle.stop_consuming(deadline));
        }
        if let Some(own) = &self.own
            && own.may_exist.swap(false, Ordering::SeqCst)
        {
            // This unbinds the queue: requests for this instance are returned to their callers at
            // once.
            self.log_error(own.handle.stop_consuming(deadline));
            self.give_back_jobs(self.requests.take_messages(), deadline);
            self.log_error(self.transfer_own_queue(own, deadline));
            self.log_error(own.handle.delete_own_queue(deadline));
        }
        self.give_back_jobs(self.requests.take_messages(), deadline);
    }

    /// Resumes consuming, unless the server is being shut down.
    pub(super) fn resume(&self, deadline: Instant) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        for handle in self.service_queues() {
            self.log_error(handle.resume_consuming(deadline));
        }
        if let Some(own) = &self.own {
            // Set first: a declaration may be late and still create the queue.
            own.may_exist.store(true, Ordering::SeqCst);
            self.log_error(own.handle.resume_consuming(deadline));
        }
        // A shutdown in the meantime has not stopped these consumers.
        if self.closed.load(Ordering::SeqCst) {
            self.pause(deadline);
        }
    }

    /// Sets the prefetch of the service's queue and of the instance's own. Blocks at most until
    /// `deadline`.
    pub(super) fn set_prefetch(&self, prefetch: u16, deadline: Instant) -> Result<()> {
        self.shared.set_prefetch(prefetch, deadline)?;
        match &self.own {
            Some(own) => {
                let prefetch = prefetch.saturating_add(own.spare_prefetch);
                own.handle.set_prefetch(prefetch, deadline)
            }
            None => Ok(()),
        }
    }

    /// Moves the messages that wait in the instance's own queue to the service's queue.
    fn transfer_own_queue(&self, own: &OwnQueue, deadline: Instant) -> Result<()> {
        while let Some((delivery, _)) = own.handle.get_own(deadline)? {
            match delivery.message().oversized() {
                // It cannot be republished without its body, and any server can refuse it.
                Some(_) => self.dispatcher.refuse_unread(delivery),
                None => self.dispatcher.give_back(delivery, deadline),
            }
        }
        Ok(())
    }

    /// Republishes messages that no worker has started to the service's queue, whichever queue they
    /// come from. Blocks at most until `deadline`.
    pub(super) fn give_back_jobs(&self, jobs: Vec<ServerJob>, deadline: Instant) {
        let deliveries = jobs.into_iter().filter_map(ServerJob::into_delivery);
        deliveries.for_each(|delivery| self.dispatcher.give_back(delivery, deadline));
    }

    /// Blocks until the broker has received the last replies and acknowledgements, at most until
    /// `deadline`.
    pub(super) fn flush(&self, deadline: Instant) -> Result<()> {
        let mut result = Ok(());
        for handle in self.handles() {
            result = result.and(handle.flush(deadline)); // all of them, even if one fails
        }
        result
    }

    fn handles(&self) -> impl Iterator<Item = &Arc<dyn LinkHandle>> {
        let own = self.own.as_ref().map(|own| &own.handle);
        self.service_queues().chain(own)
    }

    /// Returns the links to the queues that all servers of the service share.
    fn service_queues(&self) -> impl Iterator<Item = &Arc<dyn LinkHandle>> {
        let suspects = self.suspects.iter();
        suspects.chain(&self.bounded).chain([&self.shared])
    }

    /// Returns the reason why the broker refuses a consumer after a reconnect, if it does. The
    /// suspect queue is left out: other servers handle its messages.
    pub(super) fn refusal(&self) -> Option<String> {
        let own = self.own.as_ref().map(|own| &own.handle);
        let mut handles = [&self.shared].into_iter().chain(&self.bounded).chain(own);
        handles.find_map(|handle| handle.refusal())
    }

    pub(super) fn close(&self) {
        for handle in self.handles() {
            handle.close();
        }
    }

    /// Logs an error of a step that may fail: a closed connection delivers nothing more either.
    fn log_error(&self, result: Result<()>) {
        if let Err(error) = result
            && error.kind() != ErrorKind::Closed
        {
            log::warn!(target: "coney::server", "{}: {error}", self.service);
        }
    }
}
