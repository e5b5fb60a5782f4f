use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use super::pool::{Job, Pool};
use super::republish_confirms::{
    DeadLetterFault, PendingRepublish, RepublishConfirms, RepublishSetup,
};
use super::settled::Settled;
use crate::base::catch::catch;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::Topology;
use crate::transport::Broker;

/// The threads of a server or a subscriber: its workers, one for messages that a worker
/// may have died of, and one that settles what they have moved.
pub(crate) struct Workers<J: Job> {
    /// Whose they are.
    owner: String,
    home: OwnerProcess,
    pool: Pool<J>,
    /// One thread, so that what it is given is begun at once, and alone.
    suspects: Pool<J>,
    /// The sender is dropped at the end, which ends what the mover waits for.
    republishes: Mutex<Option<(Sender<()>, RepublishConfirms)>>,
    /// The way to that thread.
    way: Sender<PendingRepublish>,
    dead_letter_fault: Arc<DeadLetterFault>,
}

/// The circumstances that workers are started in.
pub(crate) struct WorkerSetup<'a> {
    pub(crate) owner: &'a str,
    pub(crate) count: usize,
    pub(crate) broker: &'a Broker,
    /// The queues that messages are moved to.
    pub(crate) topology: Topology,
    /// The messages that the workers handle.
    pub(crate) settled: Vec<Arc<Settled>>,
    pub(crate) consumer_timeout: Duration,
}

impl<J: Job> Workers<J> {
    /// Starts them. `run` gets the way to move messages, and gives what a worker does
    /// with a job, and what is to be done next.
    pub(crate) fn start<F: Fn(J) -> Option<J> + Send + Sync + 'static>(
        setup: WorkerSetup<'_>,
        run: impl FnOnce(Sender<PendingRepublish>) -> F,
    ) -> Result<Self> {
        let WorkerSetup {
            owner,
            count,
            broker,
            topology,
            settled,
            consumer_timeout,
        } = setup;
        let no_thread = |error: std::io::Error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{owner}: cannot start {count} workers"),
            )
            .with_source(error)
        };
        let (running, stopping) = bounded(0);
        let dead_letter_fault = Arc::new(DeadLetterFault::default());
        let settling = RepublishSetup {
            service: owner.to_owned(),
            broker: broker.clone(),
            topology,
            dead_letter_fault: Arc::clone(&dead_letter_fault),
            settled,
            consumer_timeout,
            stopping,
        };
        let (republishes, sender) = RepublishConfirms::start(settling).map_err(no_thread)?;
        let run = run(sender.clone());
        let for_log = owner.to_owned();
        let run = move |job| {
            // A reply store is the user's code too. The delivery goes back into its
            // queue, and to the suspects.
            catch(|| run(job)).unwrap_or_else(|_| {
                log::error!(target: "coney::worker", "{for_log}: a worker panicked over a message");
                None
            })
        };
        let run = Arc::new(run);
        let alone = Arc::clone(&run);
        let pool = Pool::start(owner, count, broker.spin_for(), move |job| run(job));
        let suspects = format!("{owner}-suspect");
        let suspects = Pool::start(&suspects, 1, Duration::ZERO, move |job| alone(job));
        Ok(Self {
            owner: owner.to_owned(),
            home: OwnerProcess::current(),
            pool: pool.map_err(no_thread)?,
            suspects: suspects.map_err(no_thread)?,
            republishes: Mutex::new(Some((running, republishes))),
            way: sender,
            dead_letter_fault,
        })
    }

    /// The way to move messages.
    pub(crate) fn way(&self) -> &Sender<PendingRepublish> {
        &self.way
    }

    /// The reason why messages cannot be dead-lettered now, if so.
    pub(crate) fn dead_letter_fault(&self) -> Option<String> {
        self.dead_letter_fault.get()
    }

    /// Gives a job to a worker, now or when one is free; never blocks. Hands it back
    /// once they have been stopped.
    pub(crate) fn submit(&self, job: J) -> Result<(), J> {
        self.pool.submit(job)
    }

    /// The same for a message that a worker may have died of.
    pub(crate) fn submit_suspect(&self, job: J) -> Result<(), J> {
        self.suspects.submit(job)
    }

    /// The number of jobs that wait or run.
    pub(crate) fn busy(&self) -> usize {
        self.pool.busy() + self.suspects.busy()
    }

    /// Returns those jobs that nobody has started and for which `is_it` holds.
    pub(crate) fn take(&self, is_it: impl Fn(&J) -> bool) -> Vec<J> {
        let mut taken = self.pool.take(&is_it);
        taken.extend(self.suspects.take(&is_it));
        taken
    }

    /// Returns the jobs that nobody has started.
    pub(crate) fn clear(&self) -> Vec<J> {
        self.take(|_| true)
    }

    /// Takes no more jobs. Returns those that nobody has started.
    pub(crate) fn stop(&self) -> Vec<J> {
        let mut left = self.pool.stop();
        left.extend(self.suspects.stop());
        left
    }

    pub(crate) fn is_worker_thread(&self) -> bool {
        self.pool.is_worker() || self.suspects.is_worker()
    }

    /// An error for a handler that shuts down what runs it, and for a forked child, which has
    /// no workers.
    pub(crate) fn check_not_worker_thread(&self) -> Result<()> {
        if self.home.is_another() {
            return Err(Error::new(
                ErrorKind::Misuse,
                format!(
                    "{} runs in the process from which this one was forked",
                    self.owner
                ),
            ));
        }
        if !self.is_worker_thread() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "a handler of {} cannot shut down what runs it: it would wait for itself",
                self.owner
            ),
        ))
    }

    /// Waits for those that run, and for what they have moved, at most until
    /// `deadline`, which is `timeout` after the beginning of the end.
    pub(crate) fn finish(&self, deadline: Instant, timeout: Duration) -> Result<()> {
        let finished = match (self.pool.join(deadline), self.suspects.join(deadline)) {
            (Ok(()), Ok(())) => Ok(()),
            (one, other) => Err(one.err().unwrap_or(0) + other.err().unwrap_or(0)),
        };
        if let Some((running, republishes)) = self.republishes.lock().take() {
            drop(running);
            republishes.join(deadline);
        }
        if finished.is_err() {
            self.pool.give_up().iter().for_each(Job::stop);
            self.suspects.give_up().iter().for_each(Job::stop);
        }
        finished.map_err(|running| {
            Error::timed_out(
                Phase::Shutdown,
                format!(
                    "{running} handlers of {} still run after {timeout:?}; their messages go back \
                     to the queue",
                    self.owner
                ),
            )
        })
    }
}
