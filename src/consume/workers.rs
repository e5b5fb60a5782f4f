use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use super::moves::{Move, Moves};
use super::pool::{Job, Pool};
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::Topology;
use crate::transport::Broker;

/// The threads of a server or a subscriber: its workers, and the one that settles what
/// they have moved.
pub(crate) struct Workers<J: Job> {
    /// Whose they are.
    owner: String,
    pool: Pool<J>,
    /// The sender is dropped at the end, which ends what the mover waits for.
    moves: Mutex<Option<(Sender<()>, Moves)>>,
    /// The way to that thread.
    way: Sender<Move>,
}

impl<J: Job> Workers<J> {
    /// Starts them. `run` gets the way to move messages, and gives what a worker does
    /// with a job, and what is to be done next. `topology` is what the moves need.
    pub(crate) fn start<F: Fn(J) -> Option<J> + Send + Sync + 'static>(
        owner: &str,
        count: usize,
        broker: &Broker,
        topology: Topology,
        run: impl FnOnce(Sender<Move>) -> F,
    ) -> Result<Self> {
        let no_thread = |error: std::io::Error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{owner}: cannot start {count} workers"),
            )
            .with_source(error)
        };
        let (running, stopping) = bounded(0);
        let (moves, sender) =
            Moves::start(owner, broker.clone(), topology, stopping).map_err(no_thread)?;
        let run = run(sender.clone());
        let for_log = owner.to_owned();
        let pool = Pool::start(owner, count, broker.awake(), move |job| {
            // A reply store is the user's code too. The delivery goes back into its
            // queue, which counts.
            catch_unwind(AssertUnwindSafe(|| run(job))).unwrap_or_else(|_| {
                log::error!(target: "coney::worker", "{for_log}: a worker panicked over a message");
                None
            })
        });
        Ok(Self {
            owner: owner.to_owned(),
            pool: pool.map_err(no_thread)?,
            moves: Mutex::new(Some((running, moves))),
            way: sender,
        })
    }

    /// The way to move messages.
    pub(crate) fn way(&self) -> &Sender<Move> {
        &self.way
    }

    /// Gives a job to a worker, now or when one is free; never blocks. Hands it back
    /// once they have been stopped.
    pub(crate) fn submit(&self, job: J) -> Result<(), J> {
        self.pool.submit(job)
    }

    /// Returns those jobs that nobody has started and for which `is_it` holds.
    pub(crate) fn take(&self, is_it: impl Fn(&J) -> bool) -> Vec<J> {
        self.pool.take(is_it)
    }

    /// Returns the jobs that nobody has started.
    pub(crate) fn clear(&self) -> Vec<J> {
        self.pool.clear()
    }

    /// Takes no more jobs. Returns those that nobody has started.
    pub(crate) fn stop(&self) -> Vec<J> {
        self.pool.stop()
    }

    pub(crate) fn is_one_of_them(&self) -> bool {
        self.pool.is_worker()
    }

    /// An error for a handler that shuts down what runs it.
    pub(crate) fn check_not_one_of_them(&self) -> Result<()> {
        if !self.is_one_of_them() {
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
        let finished = self.pool.join(deadline);
        if let Some((running, moves)) = self.moves.lock().take() {
            drop(running);
            moves.join(deadline);
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
