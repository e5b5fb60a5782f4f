//! The jobs of a server's workers.

use std::sync::Arc;

use crate::consumer::{AfterDelivery, BatchJob, Dispatcher, Job, Next, Shareable, Tracked, Turn};
use crate::transport::{Delivery, Publication};

/// A job for a worker.
pub(super) enum ServerJob {
    /// A delivery to be processed.
    Message(Delivery),
    /// A delivery from the queue of an action with a bound, in the class of that action.
    InClass(Delivery),
    /// A delivery that waits for its place in the class of its action.
    Waiting(Tracked),
    /// The items of a batch that no worker has taken.
    Batch(Arc<BatchJob>),
    /// An item of a batch that waits for its place in the class of its action.
    Item(Arc<BatchJob>, usize),
}

impl ServerJob {
    /// Runs the job, and returns what is left of it.
    pub(super) fn run(self, dispatcher: &Dispatcher, turn: &dyn Turn) -> Next<Self> {
        let after = match self {
            Self::Message(delivery) => dispatcher.process(delivery, turn),
            Self::InClass(delivery) => dispatcher.process_in_class(delivery, turn),
            Self::Waiting(delivery) => dispatcher.process_waited(delivery, turn),
            Self::Batch(batch) => {
                let waiting = batch.work(&dispatcher.executor, &dispatcher.bulkheads, turn);
                let parts = waiting.into_iter();
                let parts = parts.map(|(class, at)| (class, Self::Item(Arc::clone(&batch), at)));
                return Next::Parts(parts.collect());
            }
            Self::Item(batch, at) => {
                batch.run(at, &dispatcher.executor, turn);
                return Next::Done;
            }
        };
        match after {
            AfterDelivery::Batch(batch) => Next::Shared(Self::Batch(batch)),
            AfterDelivery::Wait(class, delivery) => Next::Enter {
                class,
                key: None,
                job: Self::Waiting(delivery),
            },
            // Failed messages wait in queues of the broker, never in this process.
            AfterDelivery::Done | AfterDelivery::LocalRetry(_) => Next::Done,
        }
    }

    /// Returns the message, if no worker has started it.
    pub(super) fn into_delivery(self) -> Option<Delivery> {
        match self {
            Self::Message(delivery) | Self::InClass(delivery) => Some(delivery),
            Self::Waiting(delivery) => Some(delivery.into_delivery()),
            // Workers that have started a batch finish it.
            Self::Batch(batch) => Arc::into_inner(batch)?.into_delivery(),
            Self::Item(..) => None,
        }
    }

    /// Returns the answer of a sink whose delivery was submitted as a job.
    pub(super) fn accepted(submitted: Result<(), Self>) -> Result<Vec<Publication>, Delivery> {
        match submitted {
            Err(Self::Message(delivery) | Self::InClass(delivery)) => Err(delivery),
            _ => Ok(Vec::new()),
        }
    }
}

impl Shareable for ServerJob {
    fn share(&self) -> Option<Self> {
        match self {
            Self::Batch(batch) if batch.has_more() => Some(Self::Batch(Arc::clone(batch))),
            _ => None,
        }
    }
}

impl Job for ServerJob {
    fn stop(&self) {
        if let Self::Batch(batch) | Self::Item(batch, _) = self {
            batch.stop();
        }
    }

    fn is_begun(&self) -> bool {
        matches!(self, Self::Item(..))
    }

    fn discard(self) {
        match self {
            Self::Message(delivery) | Self::InClass(delivery) => drop(delivery.forget()),
            Self::Waiting(delivery) => delivery.forget(),
            Self::Batch(batch) | Self::Item(batch, _) => batch.abandon(),
        }
    }
}
