//! The pool of worker threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, MutexGuard};

use super::lane::{Class, Limit, Place};
use super::pool_state::{DEFAULT, Effects, Job, Next, PoolState, PoolStatus, Step};
use crate::base::park::Wakeup;

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

struct Shared<J> {
    state: Mutex<PoolState<J>>,
    /// True while jobs wait that are not shared, and no worker is idle.
    others_wait: AtomicBool,
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
    /// Called by each worker's thread when it starts.
    pub(super) on_start: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// The access of a running job to its pool.
pub(crate) trait Turn {
    /// Returns true while jobs wait that are not shared, and no worker is idle.
    fn others_wait(&self) -> bool;

    /// Counts the job, or a part of it, as running in another class too, unless that class's limit
    /// is reached or jobs of it wait. Returns the number of jobs of the class that wait as the
    /// error.
    fn try_enter(&self, class: Class) -> Result<(), usize>;

    /// Ends what [`try_enter`](Self::try_enter) has counted.
    fn leave(&self, class: Class);

    /// Returns the counts of the pool.
    fn status(&self) -> PoolStatus;

    /// Lets one worker end after its job.
    fn end_one_worker(&self);
}

impl<J: Job> Turn for Shared<J> {
    fn others_wait(&self) -> bool {
        self.others_wait.load(Ordering::Relaxed)
    }

    fn try_enter(&self, class: Class) -> Result<(), usize> {
        let mut state = self.state.lock();
        let waiting = state.schedule.waiting_of(class);
        if waiting == 0 && state.schedule.try_enter(class) {
            return Ok(());
        }
        Err(waiting)
    }

    fn leave(&self, class: Class) {
        let effects = {
            let mut state = self.state.lock();
            state.schedule.leave(class);
            state.effects(None)
        };
        effects.carry_out();
    }

    fn status(&self) -> PoolStatus {
        self.state.lock().status()
    }

    fn end_one_worker(&self) {
        let mut state = self.state.lock();
        state.most = state.most.saturating_sub(1).max(1);
    }
}

type Run<J> = Arc<dyn Fn(J, &dyn Turn) -> Next<J> + Send + Sync>;

impl<J: Job> Pool<J> {
    /// Creates a pool without workers.
    pub(super) fn new(setup: PoolSetup) -> Self {
        let (alive, ended) = bounded(0);
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(PoolState::new(setup.workers, setup.end_idle)),
                others_wait: AtomicBool::new(false),
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
                state.most = state.most.max(workers);
                if state.stopped || state.workers >= workers {
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

    /// Adds a class of jobs.
    pub(super) fn add_class(&self, limit: Limit) -> Class {
        self.shared.state.lock().schedule.add_class(limit)
    }

    /// Queues a job for the workers. Never blocks. Returns the job if the pool has been stopped.
    pub(super) fn submit(&self, job: J) -> Result<(), J> {
        self.submit_to(Class(DEFAULT), job)
    }

    /// Queues a job of a class for the workers. Never blocks. Returns the job if the pool has been
    /// stopped.
    pub(super) fn submit_to(&self, class: Class, job: J) -> Result<(), J> {
        let effects = {
            let mut state = self.shared.state.lock();
            let effects = state.submit(class, job)?;
            self.shared.note_others(&state);
            effects
        };
        effects.carry_out();
        Ok(())
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
        self.shared.state.lock().abort()
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

impl<J: Job> Shared<J> {
    fn note_others(&self, state: &MutexGuard<'_, PoolState<J>>) {
        let others_wait = state.others_wait();
        if self.others_wait.load(Ordering::Relaxed) != others_wait {
            self.others_wait.store(others_wait, Ordering::Relaxed);
        }
    }
}

struct Worker<J> {
    shared: Arc<Shared<J>>,
    run: Run<J>,
    number: u64,
    spin_for: Duration,
    on_start: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Dropped last: when it disconnects, the handlers in `run` have been dropped too.
    _alive: Sender<()>,
}

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            run: Arc::clone(&self.run),
            number: self.number,
            spin_for: self.spin_for,
            on_start: self.on_start.clone(),
            _alive: self._alive.clone(),
        }
    }
}

impl<J: Job> Worker<J> {
    fn work(self) {
        if let Some(on_start) = &self.on_start {
            on_start();
        }
        let mut was_woken = false;
        let mut ended = None;
        let wakeup = Arc::new(Wakeup::new());
        loop {
            let step = self.step(&wakeup, ended.take(), was_woken);
            was_woken = false;
            match step {
                Step::Run(job, place) => {
                    ended = Some((place, (self.run)(job, &*self.shared)));
                }
                Step::Sleep(until) => match self.sleep(&wakeup, until) {
                    Some(woken) => was_woken = woken,
                    None => return,
                },
                Step::End => return,
            }
        }
    }

    fn step(
        &self,
        wakeup: &Arc<Wakeup>,
        ended: Option<(Place, Next<J>)>,
        was_woken: bool,
    ) -> Step<J> {
        let mut state = self.shared.state.lock();
        let (step, effects): (_, Effects<J>) = state.step((self.number, wakeup), ended, was_woken);
        self.shared.note_others(&state);
        drop(state);
        effects.carry_out();
        step
    }

    /// Sleeps until another thread wakes the worker, or until `until`. Returns true if it was woken,
    /// and `None` if the worker ends, as it was idle for long.
    fn sleep(&self, wakeup: &Wakeup, until: Option<Instant>) -> Option<bool> {
        let Some(until) = until else {
            wakeup.wait(self.spin_for);
            return Some(true);
        };
        let begun = Instant::now();
        if wakeup.wait_until(until, self.spin_for) {
            return Some(true);
        }
        let mut state = self.shared.state.lock();
        match state.sleep_ended(self.number, begun) {
            Some(true) => None,
            Some(false) => Some(false),
            // Another thread has chosen this worker, and wakes it now.
            None => {
                drop(state);
                wakeup.wait(Duration::ZERO);
                Some(true)
            }
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
