use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::consume::Workers;
use crate::error::{ErrorKind, Result};
use crate::transport::{Delivery, Publication, Returned, Sink, Wire};

/// Takes deliveries from the transport to the workers.
pub(super) struct Intake {
    pub(super) workers: Workers<Delivery>,
}

impl Sink for Intake {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<(), Delivery> {
        self.workers.submit(delivery)
    }

    /// Replies are not mandatory: a caller that has gone needs none.
    fn returned(&self, _returned: Returned) -> Option<Publication> {
        None
    }

    /// The broker delivers all of it again, so what has not started need not
    /// start; settling what has is a no-op.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        for delivery in self.workers.clear() {
            delivery.forget();
        }
        Vec::new()
    }

    fn closed(&self, cause: &str) {
        log::info!(target: "coney::worker", "no more requests: {cause}");
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
}

impl OwnQueue {
    /// Gives what waits in it to the other instances: rejected, it goes into the
    /// service's queue.
    fn hand_over(&self, deadline: Instant) -> Result<()> {
        while let Some((delivery, _)) = self.wire.get(&self.name, deadline)? {
            delivery.reject(false);
        }
        Ok(())
    }
}

impl Consumers {
    /// Takes no more requests, and gives back those that nobody has begun. Blocks at
    /// most until `deadline`.
    pub(super) fn pause(&self, deadline: Instant) {
        self.attempt(self.shared.stop_consuming(deadline));
        if let Some(own) = &self.own {
            // Its queue goes when it is no longer consumed, with what is in it.
            self.attempt(own.hand_over(deadline));
            self.give_back(self.intake.workers.clear());
            self.attempt(own.wire.stop_consuming(deadline));
        }
        self.give_back(self.intake.workers.clear());
    }

    /// Takes requests again, unless it is closed.
    pub(super) fn resume(&self, deadline: Instant) {
        if !self.closed.load(Ordering::SeqCst) {
            self.attempt(self.shared.resume_consuming(deadline));
            if let Some(own) = &self.own {
                self.attempt(own.wire.resume_consuming(deadline));
            }
        }
    }

    /// Puts requests back into the queue of the service.
    pub(super) fn give_back(&self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            match &self.own {
                Some(own) if delivery.message().routing_key == own.name => delivery.reject(false),
                _ => drop(delivery),
            }
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
            log::warn!(target: "coney::worker", "{}: {error}", self.service);
        }
    }
}
