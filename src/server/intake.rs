use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::consume::{self, Batch, Workers};
use crate::error::{ErrorKind, Result};
use crate::topology;
use crate::transport::{Delivery, Publication, Returned, Sink, Wire};

/// Takes deliveries from the transport to the workers.
pub(super) struct Intake {
    pub(super) workers: Workers<Job>,
}

/// What a worker is given to do.
pub(super) enum Job {
    Message(Delivery),
    /// Whatever of it nobody has taken yet.
    Batch(Arc<Batch>),
}

impl Intake {
    /// What nobody has begun with.
    fn take_messages(&self) -> Vec<Job> {
        self.workers.take(|job| matches!(job, Job::Message(_)))
    }
}

impl consume::Job for Job {
    fn share(&self) -> Option<Self> {
        match self {
            Self::Batch(batch) if batch.has_more() => Some(Self::Batch(Arc::clone(batch))),
            Self::Batch(_) | Self::Message(_) => None,
        }
    }
}

impl Job {
    /// What nobody has begun with.
    pub(super) fn into_delivery(self) -> Option<Delivery> {
        match self {
            Self::Message(delivery) => Some(delivery),
            // Those who are at it see it through.
            Self::Batch(batch) => Arc::into_inner(batch)?.into_delivery(),
        }
    }
}

impl Sink for Intake {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        match self.workers.submit(Job::Message(delivery)) {
            Err(Job::Message(delivery)) => Err(delivery),
            Ok(()) | Err(Job::Batch(_)) => Ok(Vec::new()),
        }
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
        log::info!(target: "coney::server", "no more requests: {cause}");
    }
}

/// What a server consumes: the service's queue and, where it has a registry, one of
/// the instance's own.
pub(super) struct Consumers {
    pub(super) service: String,
    pub(super) intake: Arc<Intake>,
    pub(super) shared: Arc<dyn Wire>,
    pub(super) own: Option<OwnQueue>,
    /// There is no way back from it.
    pub(super) closed: AtomicBool,
}

/// The instance's own queue.
pub(super) struct OwnQueue {
    pub(super) wire: Arc<dyn Wire>,
    pub(super) name: String,
    pub(super) is_there: AtomicBool,
}

impl Consumers {
    /// Takes no more requests, and gives back those that nobody has begun. Blocks at
    /// most until `deadline`.
    pub(super) fn pause(&self, deadline: Instant) {
        self.attempt(self.shared.stop_consuming(deadline));
        if let Some(own) = &self.own
            && own.is_there.swap(false, Ordering::SeqCst)
        {
            // From now on callers hear at once that nobody is there.
            self.attempt(own.wire.stop_consuming(deadline));
            self.give_back_jobs(self.intake.take_messages());
            self.attempt(self.hand_over(own, deadline));
            self.attempt(own.wire.delete_own_queue(deadline));
        }
        self.give_back_jobs(self.intake.take_messages());
    }

    /// Takes requests again, unless it is closed.
    pub(super) fn resume(&self, deadline: Instant) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        self.attempt(self.shared.resume_consuming(deadline));
        if let Some(own) = &self.own {
            let resumed = own.wire.resume_consuming(deadline);
            own.is_there.store(resumed.is_ok(), Ordering::SeqCst);
            self.attempt(resumed);
        }
        // Closed meanwhile: whoever did it has not seen this.
        if self.closed.load(Ordering::SeqCst) {
            self.pause(deadline);
        }
    }

    /// Gives what waits in the instance's own queue to the others.
    fn hand_over(&self, own: &OwnQueue, deadline: Instant) -> Result<()> {
        while let Some((delivery, _)) = own.wire.get(&own.name, deadline)? {
            self.give_back(delivery);
        }
        Ok(())
    }

    /// Puts back what nobody has begun with.
    pub(super) fn give_back_jobs(&self, jobs: Vec<Job>) {
        let deliveries = jobs.into_iter().filter_map(Job::into_delivery);
        deliveries.for_each(|delivery| self.give_back(delivery));
    }

    /// Puts a request back into the queue of the service: one that comes from it as it
    /// was, another as a copy.
    fn give_back(&self, delivery: Delivery) {
        let message = delivery.message();
        match &self.own {
            Some(own) if message.routing_key == own.name => {
                let queue = topology::request_queue(&self.service);
                let mut copy = Publication::new("", queue, message.body.clone());
                copy.properties = message.properties.clone();
                copy.drop_unsendable();
                delivery.ack_with(copy);
            }
            _ => drop(delivery),
        }
    }

    pub(super) fn close(&self) {
        self.shared.close();
        if let Some(own) = &self.own {
            own.wire.close();
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
