//! The threads of a server or a subscriber.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::lane::{Class, Limit};
use super::load::{LoadOptions, WorkerClock};
use super::pool::{Pool, PoolSetup};
use super::pool_shared::Shared;
use super::pool_state::{Job, Next, PoolStatus};
use super::republish_confirms::{
    DeadLetterFault, PendingRepublish, RepublishConfirms, RepublishSetup,
};
use super::settled::Settled;
use super::turn::{SuspectTurn, Turn};
use crate::base::catch::catch;
use crate::base::log_relay;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::Topology;
use crate::transport::Broker;

/// The threads of a server or a subscriber: its workers, one thread for messages that may be
/// poison, and one that settles republished messages.
pub(crate) struct Workers<J: Job> {
    /// The service that the threads belong to.
    owner: String,
    owner_process: OwnerProcess,
    pool: Pool<J>,
    /// A pool of one thread, so that each message that may be poison is started at once, and alone.
    suspects: Pool<J>,
    /// The thread that settles republished messages, and the sender whose drop stops it.
    confirms: Mutex<Option<(Sender<()>, RepublishConfirms)>>,
    /// The channel to that thread.
    republishes: Sender<PendingRepublish>,
    dead_letter_fault: Arc<DeadLetterFault>,
    /// The processor clocks of new workers, if their number changes.
    clocks: Receiver<WorkerClock>,
}

/// The settings that workers are started with.
pub(crate) struct WorkerSetup<'a> {
    pub(crate) owner: &'a str,
    pub(crate) load: &'a LoadOptions,
    pub(crate) broker: &'a Broker,
    /// The queues that messages are republished to.
    pub(crate) topology: Topology,
    /// The messages that the workers handle.
    pub(crate) settled: Vec<Arc<Settled>>,
    pub(crate) consumer_timeout: Duration,
}

impl<J: Job> Workers<J> {
    /// Starts the threads. `run` gets the channel for republished messages and a function that adds a
    /// class, and returns the function that runs a job.
    pub(crate) fn start<F: Fn(J, &dyn Turn) -> Next<J> + Send + Sync + 'static>(
        setup: WorkerSetup<'_>,
        run: impl FnOnce(Sender<PendingRepublish>, &dyn Fn(Limit) -> Class) -> F,
    ) -> Result<Self> {
        let WorkerSetup {
            owner,
            load,
            broker,
            topology,
            settled,
            consumer_timeout,
        } = setup;
        let no_thread = |error: std::io::Error| {
            Error::new(
                ErrorKind::Io,
                format!("{owner}: cannot start {} workers", load.workers.least()),
            )
            .with_source(error)
        };
        let (stop, stopping) = bounded(0);
        let dead_letter_fault = Arc::new(DeadLetterFault::default());
        let confirms_setup = RepublishSetup {
            service: owner.to_owned(),
            broker: broker.clone(),
            topology,
            dead_letter_fault: Arc::clone(&dead_letter_fault),
            settled,
            consumer_timeout,
            stopping,
        };
        let (confirms, republishes) =
            RepublishConfirms::start(confirms_setup).map_err(no_thread)?;
        // At most one clock for each worker that is started.
        let (new_clocks, clocks) = unbounded();
        let is_scaled = !load.workers.is_fixed();
        let pool = Pool::new(PoolSetup {
            name: owner.to_owned(),
            workers: load.workers.least(),
            spin_for: broker.spin_for(),
            end_idle: (!load.workers.is_fixed()).then(|| load.scaling.idle_time()),
            may_grow: true,
            on_start: Some(Arc::new(move || {
                let clock = is_scaled.then(WorkerClock::of_this_thread);
                if let Some(clock) = clock.flatten() {
                    let _ = new_clocks.send(clock);
                }
            })),
        });
        let suspects = Pool::new(PoolSetup {
            name: format!("{owner}-suspect"),
            workers: 1,
            spin_for: Duration::ZERO,
            end_idle: None,
            may_grow: false,
            on_start: None,
        });
        let run = run(republishes.clone(), &|limit| {
            add_class(&pool, &suspects, limit)
        });
        let owner_for_log = owner.to_owned();
        let run = move |job: J, turn: &dyn Turn| {
            // A reply store is user code too and may panic. The delivery is then requeued, and goes
            // to the suspect queue.
            catch(|| run(job, turn)).unwrap_or_else(|_| {
                // Not here: a logger that panics must not end the worker.
                log_relay::log(
                    log::Level::Error,
                    "coney::worker",
                    format_args!("{owner_for_log}: a worker panicked while processing a message"),
                );
                Next::Done
            })
        };
        let run = Arc::new(run);
        pool.start(run.clone()).map_err(no_thread)?;
        let workers = pool.shared();
        let run = move |job: J, turn: &dyn Turn| {
            let turn = SuspectTurn {
                own: turn,
                workers: &*workers,
            };
            hand_over(run(job, &turn), &workers)
        };
        suspects.start(Arc::new(run)).map_err(no_thread)?;
        Ok(Self {
            owner: owner.to_owned(),
            owner_process: OwnerProcess::current(),
            pool,
            suspects,
            confirms: Mutex::new(Some((stop, confirms))),
            republishes,
            dead_letter_fault,
            clocks,
        })
    }

    /// Returns the channel for republished messages.
    pub(crate) fn republishes(&self) -> &Sender<PendingRepublish> {
        &self.republishes
    }

    /// Returns the reason why messages cannot be dead-lettered now, if any.
    pub(crate) fn dead_letter_fault(&self) -> Option<String> {
        self.dead_letter_fault.get()
    }

    /// Adds a class of jobs, of which as many run at the same time as `limit` allows.
    pub(crate) fn add_class(&self, limit: Limit) -> Class {
        add_class(&self.pool, &self.suspects, limit)
    }

    /// Sets the limit of a class, in both pools. Jobs over it that run go on.
    pub(crate) fn set_limit(&self, class: Class, limit: Limit) {
        self.pool.set_limit(class, limit);
        self.suspects.set_limit(class, limit);
    }

    /// Returns true if jobs of a class wait.
    pub(crate) fn has_waiting(&self, class: Class) -> bool {
        self.pool.has_waiting(class) || self.suspects.has_waiting(class)
    }

    /// Queues a job for the workers. Never blocks. Returns the job if they have been stopped.
    pub(crate) fn submit(&self, job: J) -> Result<(), J> {
        self.pool.submit(job)
    }

    /// Queues a job of a class for the workers. Never blocks. Returns the job if they have been
    /// stopped.
    pub(crate) fn submit_to(&self, class: Class, job: J) -> Result<(), J> {
        self.pool.submit_to(class, job)
    }

    /// Queues a job for the thread that handles messages that may be poison. Never blocks. Returns
    /// the job if the thread has been stopped.
    pub(crate) fn submit_suspect(&self, job: J) -> Result<(), J> {
        self.suspects.submit(job)
    }

    /// Queues a job of a class as [`submit_suspect`](Self::submit_suspect) does.
    pub(crate) fn submit_suspect_to(&self, class: Class, job: J) -> Result<(), J> {
        self.suspects.submit_to(class, job)
    }

    /// Returns the processor clocks of new workers, if their number changes.
    pub(crate) fn clocks(&self) -> Receiver<WorkerClock> {
        self.clocks.clone()
    }

    /// Returns the counts of the workers, without the thread for messages that may be poison.
    pub(crate) fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Starts workers until there are `workers`.
    pub(crate) fn grow(&self, workers: usize) -> std::io::Result<()> {
        self.pool.grow(workers)
    }

    /// Starts another worker in place of one whose handler does not return.
    pub(crate) fn replace_worker(&self) -> std::io::Result<()> {
        self.pool.replace_worker()
    }

    /// Sends a message to `sender`, once, when no worker is idle.
    pub(crate) fn notify_when_busy(&self, sender: Sender<()>) {
        self.pool.notify_when_busy(sender);
    }

    /// Returns the number of jobs that wait or run.
    pub(crate) fn busy(&self) -> usize {
        let count = |status: PoolStatus| status.running + status.waiting;
        count(self.pool.status()) + count(self.suspects.status())
    }

    /// Removes the jobs of a class that no worker has started.
    pub(crate) fn clear(&self, class: Class) -> Vec<J> {
        let mut cleared = self.pool.clear(class);
        cleared.extend(self.suspects.clear(class));
        cleared
    }

    /// Removes the jobs that no worker has started.
    pub(crate) fn clear_unstarted(&self) -> Vec<J> {
        let mut cleared = self.pool.clear_unstarted();
        cleared.extend(self.suspects.clear_unstarted());
        cleared
    }

    /// Removes the jobs that no worker has started, and those that workers share.
    pub(crate) fn clear_all(&self) -> Vec<J> {
        let mut cleared = self.pool.clear_all();
        cleared.extend(self.suspects.clear_all());
        cleared
    }

    /// Stops the workers after the jobs that they have started. Returns the other jobs.
    pub(crate) fn stop(&self) -> Vec<J> {
        let mut left = self.pool.stop();
        left.extend(self.suspects.stop());
        left
    }

    /// Keeps a job that came after the stop, until [`end_left`](Self::end_left). Returns it if that
    /// was called.
    pub(crate) fn keep(&self, job: J) -> Result<(), J> {
        self.pool.keep(job)
    }

    /// Blocks until the jobs of stopped workers have ended, at most until `deadline`. Returns false
    /// if some still run.
    pub(crate) fn join(&self, deadline: Instant) -> bool {
        self.pool.join(deadline).is_ok() && self.suspects.join(deadline).is_ok()
    }

    /// Returns the jobs that were started before the stop and not done after it, and those kept.
    /// Jobs that follow are discarded: call it when the links are closed.
    pub(crate) fn end_left(&self) -> Vec<J> {
        let mut left = self.pool.end_left();
        left.extend(self.suspects.end_left());
        left
    }

    pub(crate) fn is_worker_thread(&self) -> bool {
        self.pool.is_worker() || self.suspects.is_worker()
    }

    /// Checks that the caller may shut the workers down: it is not one of their handlers, which
    /// would wait for itself, nor a forked child, which has no workers.
    pub(crate) fn check_not_worker_thread(&self) -> Result<()> {
        if self.owner_process.is_another() {
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
            ErrorKind::Misuse,
            format!(
                "a handler of {} cannot shut down what runs it: it would wait for itself",
                self.owner
            ),
        ))
    }

    /// Blocks until the running jobs have ended and the messages that they republished are settled,
    /// at most until `deadline`, which is `timeout` after the start of the shutdown.
    pub(crate) fn finish(&self, deadline: Instant, timeout: Duration) -> Result<()> {
        let finished = match (self.pool.join(deadline), self.suspects.join(deadline)) {
            (Ok(()), Ok(())) => Ok(()),
            (one, other) => Err(one.err().unwrap_or(0) + other.err().unwrap_or(0)),
        };
        if let Some((stop, confirms)) = self.confirms.lock().take() {
            drop(stop);
            confirms.join(deadline);
        }
        if finished.is_err() {
            self.pool.abort().iter().for_each(Job::stop);
            self.suspects.abort().iter().for_each(Job::stop);
        }
        finished.map_err(|running| {
            Error::timed_out(
                Phase::Shutdown,
                format!(
                    "{running} handlers of {} still run after {timeout:?}; their messages are \
                     requeued",
                    self.owner
                ),
            )
        })
    }
}

/// Hands the rest of a job that is to wait for a place in a class to the workers, where those
/// places are counted. Returns what they do not take because they have been stopped.
fn hand_over<J: Job>(next: Next<J>, workers: &Shared<J>) -> Next<J> {
    match next {
        Next::Enter {
            class,
            key: None,
            job,
        } => match workers.submit_to(class, job) {
            Ok(()) => Next::Done,
            Err(job) => Next::Enter {
                class,
                key: None,
                job,
            },
        },
        Next::Parts(parts) => {
            let hand_over = |(class, part)| Some((class, workers.submit_to(class, part).err()?));
            Next::Parts(parts.into_iter().filter_map(hand_over).collect())
        }
        next => next,
    }
}

/// Adds a class to both pools, which have the same classes.
fn add_class<J: Job>(pool: &Pool<J>, suspects: &Pool<J>, limit: Limit) -> Class {
    suspects.add_class(limit);
    pool.add_class(limit)
}
