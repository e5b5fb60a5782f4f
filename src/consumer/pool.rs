//! The pool of worker threads.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::lane::{Class, Limit};
use super::pool_shared::Shared;
use super::pool_state::{DEFAULT, Job, PoolState, PoolStatus};
use super::worker::{Run, Worker};

/// Named worker threads, whose number may change, and the jobs that wait for them.
///
/// A job wakes the worker that became idle last, whose caches are warm, and no other. Only one
/// worker is woken at a time; when it takes its job and there are more, it wakes the next. So
/// a burst of short jobs is done by the few workers that are awake, and a burst of long jobs
/// wakes as many workers as there are jobs. While jobs are put off, one idle worker sleeps no longer
/// than until the first of them is due.
pub(super) struct Pool<J: Job> {
    setup: PoolSetup,
    shared: Arc<Shared<J>>,
    threads: Mutex<Threads<J>>,
    /// The sender for the workers' template, until they are started.
    alive: Mutex<Option<Sender<()>>>,
    /// Disconnects when the last worker has ended.
    ended: Receiver<()>,
}

struct Threads<J> {
    handles: Vec<JoinHandle<()>>,
    last_number: u64,
    /// The worker that new ones are copies of; `None` before the start and after the stop.
    template: Option<Worker<J>>,
}

/// The settings of a pool.
pub(super) struct PoolSetup {
    pub(super) name: String,
    pub(super) workers: usize,
    /// The time for which a worker stays awake after a job.
    pub(super) spin_for: Duration,
    /// The time after which an idle worker ends, unless only the first number of workers is left;
    /// `None` if the number is fixed.
    pub(super) end_idle: Option<Duration>,
    /// True if other workers may be started in place of those whose handlers take too long.
    pub(super) may_grow: bool,
    /// Called by each worker's thread when it starts.
    pub(super) on_start: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl<J: Job> Pool<J> {
    /// Creates a pool without workers.
    pub(super) fn new(setup: PoolSetup) -> Self {
        let (alive, ended) = bounded(0);
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(PoolState::new(setup.workers, setup.end_idle)),
                others_wait: AtomicBool::new(false),
                may_grow: setup.may_grow,
            }),
            threads: Mutex::new(Threads {
                handles: Vec::new(),
                last_number: 0,
                template: None,
            }),
            setup,
            alive: Mutex::new(Some(alive)),
            ended,
        }
    }

    /// Starts the workers. `run` must not panic; it returns what is left of a job.
    pub(super) fn start(&self, run: Run<J>) -> std::io::Result<()> {
        if let Some(alive) = self.alive.lock().take() {
            self.threads.lock().template = Some(Worker {
                shared: Arc::clone(&self.shared),
                run,
                number: 0,
                spin_for: self.setup.spin_for,
                on_start: self.setup.on_start.clone(),
                _alive: alive,
            });
        }
        self.grow(self.setup.workers)
    }

    /// Starts workers until there are `workers`. Does nothing if there are as many, or the pool has
    /// been stopped.
    pub(super) fn grow(&self, workers: usize) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        threads.handles.retain(|thread| !thread.is_finished());
        loop {
            {
                let mut state = self.shared.state.lock();
                if !state.allow_workers(workers) {
                    return Ok(());
                }
                state.add_worker();
            }
            let started = threads.start_worker(&self.setup.name);
            if !matches!(started, Ok(true)) {
                self.shared.state.lock().remove_worker();
                return started.map(drop);
            }
        }
    }

    /// Starts another worker in place of one whose handler does not return. When it does,
    /// [`Turn::end_one_worker`](super::turn::Turn::end_one_worker) takes that back.
    pub(super) fn replace_worker(&self) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        threads.handles.retain(|thread| !thread.is_finished());
        {
            let mut state = self.shared.state.lock();
            if !state.add_stuck_worker() {
                return Ok(());
            }
            state.add_worker();
        }
        let started = threads.start_worker(&self.setup.name);
        if !matches!(started, Ok(true)) {
            self.shared.state.lock().remove_worker();
        }
        started.map(drop)
    }

    /// Adds a class of jobs.
    pub(super) fn add_class(&self, limit: Limit) -> Class {
        self.shared.state.lock().schedule.add_class(limit)
    }

    /// Sets the limit of a class. Jobs over it that run go on.
    pub(super) fn set_limit(&self, class: Class, limit: Limit) {
        let effects = {
            let mut state = self.shared.state.lock();
            state.schedule.set_limit(class, limit);
            self.shared.note_others(&state);
            state.effects(None)
        };
        effects.carry_out();
    }

    /// Returns true if jobs of a class wait.
    pub(super) fn has_waiting(&self, class: Class) -> bool {
        self.shared.state.lock().schedule.waiting_of(class) > 0
    }

    /// Queues a job for the workers. Never blocks. Returns the job if the pool has been stopped.
    pub(super) fn submit(&self, job: J) -> Result<(), J> {
        self.submit_to(Class(DEFAULT), job)
    }

    /// Queues a job of a class for the workers. Never blocks. Returns the job if the pool has been
    /// stopped.
    pub(super) fn submit_to(&self, class: Class, job: J) -> Result<(), J> {
        self.shared.submit_to(class, job)
    }

    /// Returns the part that the workers share, for the jobs of another pool.
    pub(super) fn shared(&self) -> Arc<Shared<J>> {
        Arc::clone(&self.shared)
    }

    /// Removes the jobs of a class that no worker has started.
    pub(super) fn clear(&self, class: Class) -> Vec<J> {
        self.shared.state.lock().clear(|it| it == class)
    }

    /// Removes the jobs that no worker has started.
    pub(super) fn clear_unstarted(&self) -> Vec<J> {
        self.shared.state.lock().clear_unstarted()
    }

    /// Removes the jobs that no worker has started, and those that workers share.
    pub(super) fn clear_all(&self) -> Vec<J> {
        self.shared.state.lock().clear(|_| true)
    }

    /// Returns the counts of the pool.
    pub(super) fn status(&self) -> PoolStatus {
        self.shared.state.lock().status()
    }

    /// Sends a message to `sender`, once, when no worker is idle.
    pub(super) fn notify_when_busy(&self, sender: Sender<()>) {
        let effects = self.shared.state.lock().notify_when_busy(sender);
        effects.carry_out();
    }

    /// Stops the pool: it takes no more jobs, and the workers end after the jobs that they have
    /// started. Returns the jobs that no worker has started.
    pub(super) fn stop(&self) -> Vec<J> {
        let (idle, left) = self.shared.state.lock().stop();
        for worker in idle {
            worker.wake();
        }
        drop(self.alive.lock().take());
        drop(self.threads.lock().template.take());
        left
    }

    /// Aborts the pool: the workers start nothing more, not even the rest of shared jobs. Returns
    /// those jobs.
    pub(super) fn abort(&self) -> Vec<J> {
        let (jobs, effects) = {
            let mut state = self.shared.state.lock();
            (state.abort(), state.effects(None))
        };
        effects.carry_out();
        jobs
    }

    /// Keeps a job that came after the stop, until [`end_left`](Self::end_left). Returns it if that
    /// was called.
    pub(super) fn keep(&self, job: J) -> Result<(), J> {
        self.shared.state.lock().keep(job)
    }

    /// Returns the jobs that were not done when the pool had been stopped. Those that follow are
    /// discarded.
    pub(super) fn end_left(&self) -> Vec<J> {
        self.shared.state.lock().end_left()
    }

    /// Returns true if the calling thread is one of the workers.
    pub(super) fn is_worker(&self) -> bool {
        let me = thread::current().id();
        let threads = self.threads.lock();
        threads.handles.iter().any(|it| it.thread().id() == me)
    }

    /// Blocks until every worker of a stopped pool has ended, and joins them. Returns the number of
    /// jobs that still run at `deadline` as the error.
    pub(super) fn join(&self, deadline: Instant) -> Result<(), usize> {
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(self.shared.state.lock().schedule.running());
        }
        let handles = std::mem::take(&mut self.threads.lock().handles);
        for thread in handles {
            let _ = thread.join();
        }
        Ok(())
    }
}

/// Stops the workers, which would wait for ever.
impl<J: Job> Drop for Pool<J> {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

impl<J: Job> Threads<J> {
    /// Starts a worker. Returns false if the pool has no template for one.
    fn start_worker(&mut self, pool: &str) -> std::io::Result<bool> {
        let Some(template) = &self.template else {
            return Ok(false);
        };
        let worker = Worker {
            number: self.last_number,
            ..template.clone()
        };
        let name = format!("coney-worker-{pool}-{}", self.last_number);
        self.last_number += 1;
        let thread = thread::Builder::new().name(name);
        self.handles.push(thread.spawn(move || worker.work())?);
        Ok(true)
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
