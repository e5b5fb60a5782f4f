//! The pool of worker threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::base::park::Wakeup;

/// A job of a pool. Each worker runs one at a time.
pub(crate) trait Job: Send + Sized + 'static {
    /// Returns a handle to the same job for one more worker, as long as it has work for more than
    /// one. The job stays first in the queue meanwhile.
    fn share(&self) -> Option<Self> {
        None
    }

    /// Starts no further part of the job.
    fn stop(&self) {}
}

/// A fixed set of named worker threads.
///
/// A job wakes the worker that became idle last, whose caches are warm, and no other. Only one
/// worker is woken at a time; when it takes its job and there are more, it wakes the next. So
/// a burst of short jobs is done by the few workers that are awake, and a burst of long jobs
/// wakes as many workers as there are jobs.
pub(super) struct Pool<J: Job> {
    queue: Arc<Mutex<Queue<J>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnects when the last worker has ended.
    ended: Receiver<()>,
}

struct Queue<J> {
    /// The workers that sleep, in the order in which they became idle.
    idle: Vec<Arc<Wakeup>>,
    /// True if a worker has been woken and has not taken a job yet.
    waking: bool,
    /// The jobs that wait for a worker. Their number is bounded by the prefetch count: each job is
    /// an unsettled delivery.
    backlog: VecDeque<J>,
    running: usize,
    stopped: bool,
    /// True if jobs that have been started and can be shared are not continued either.
    aborted: bool,
}

impl<J: Job> Queue<J> {
    fn take(&mut self) -> Option<J> {
        let shared = self.backlog.front()?.share();
        shared.or_else(|| self.backlog.pop_front())
    }

    /// Stops the queue: only jobs that have been started and can be shared stay in it. Returns the
    /// idle workers, which must be woken, and the other jobs.
    fn stop(&mut self) -> (Vec<Arc<Wakeup>>, Vec<J>) {
        self.stopped = true;
        let backlog = std::mem::take(&mut self.backlog).into_iter();
        let (started, left): (Vec<J>, Vec<J>) = backlog.partition(|job| job.share().is_some());
        self.backlog = started.into();
        (std::mem::take(&mut self.idle), left)
    }

    /// Returns a worker to be woken, if there is a job and no woken worker is about to take it.
    fn next_to_wake(&mut self) -> Option<Arc<Wakeup>> {
        if self.waking || self.backlog.is_empty() {
            return None;
        }
        let worker = self.idle.pop()?;
        self.waking = true;
        Some(worker)
    }
}

impl<J: Job> Pool<J> {
    /// Starts the workers. Each stays awake for `spin_for` after a job. `run` must not panic; a job
    /// that it returns goes to the front of the queue.
    pub(super) fn start<F>(
        name: &str,
        workers: usize,
        spin_for: Duration,
        run: F,
    ) -> std::io::Result<Self>
    where
        F: Fn(J) -> Option<J> + Send + Sync + 'static,
    {
        let run = Arc::new(run);
        let queue = Arc::new(Mutex::new(Queue {
            idle: Vec::new(),
            waking: false,
            backlog: VecDeque::new(),
            running: 0,
            stopped: false,
            aborted: false,
        }));
        let (alive, ended) = bounded::<()>(0);
        let pool = Self {
            queue,
            threads: Mutex::default(),
            ended,
        };
        for number in 0..workers {
            let worker = Worker {
                queue: Arc::clone(&pool.queue),
                run: Arc::clone(&run),
                spin_for,
                _alive: alive.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("coney-worker-{name}-{number}"))
                .spawn(move || worker.work());
            match thread {
                Ok(thread) => pool.threads.lock().push(thread),
                Err(error) => {
                    pool.stop();
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// Queues a job for the workers. Never blocks. Returns the job if the pool has been stopped.
    pub(super) fn submit(&self, job: J) -> Result<(), J> {
        let woken = {
            let mut queue = self.queue.lock();
            if queue.stopped {
                return Err(job);
            }
            queue.backlog.push_back(job);
            queue.next_to_wake()
        };
        wake(woken);
        Ok(())
    }

    /// Removes the jobs that no worker has started and for which `matches` returns true.
    pub(super) fn take(&self, matches: impl Fn(&J) -> bool) -> Vec<J> {
        let mut queue = self.queue.lock();
        let backlog = std::mem::take(&mut queue.backlog);
        let (taken, left): (Vec<J>, Vec<J>) = backlog.into_iter().partition(matches);
        queue.backlog = left.into();
        taken
    }

    /// Returns the number of jobs that wait or run.
    pub(super) fn busy(&self) -> usize {
        let queue = self.queue.lock();
        queue.backlog.len() + queue.running
    }

    /// Stops the pool: it takes no more jobs, and the workers end after the jobs that they have
    /// started. Returns the jobs that no worker has started.
    pub(super) fn stop(&self) -> Vec<J> {
        let (idle, left) = self.queue.lock().stop();
        for worker in idle {
            worker.wake();
        }
        left
    }

    /// Aborts the pool: the workers start nothing more, not even the rest of jobs that have been
    /// started and can be shared. Returns those jobs.
    pub(super) fn abort(&self) -> Vec<J> {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.aborted = true;
        std::mem::take(&mut queue.backlog).into()
    }

    /// Returns true if the calling thread is one of the workers.
    pub(super) fn is_worker(&self) -> bool {
        let me = thread::current().id();
        let threads = self.threads.lock();
        threads.iter().any(|thread| thread.thread().id() == me)
    }

    /// Blocks until every worker has ended, and joins them. Returns the number of jobs that still
    /// run at `deadline` as the error.
    pub(super) fn join(&self, deadline: Instant) -> Result<(), usize> {
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(self.queue.lock().running);
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
        Ok(())
    }
}

/// Wakes a worker that has been removed from the idle ones.
fn wake(worker: Option<Arc<Wakeup>>) {
    if let Some(worker) = worker {
        worker.wake();
    }
}

/// Stops the workers, which would wait for ever.
impl<J: Job> Drop for Pool<J> {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

struct Worker<J, F> {
    queue: Arc<Mutex<Queue<J>>>,
    run: Arc<F>,
    spin_for: Duration,
    /// Dropped last: when it disconnects, the handlers in `run` have been dropped too.
    _alive: Sender<()>,
}

impl<J: Job, F: Fn(J) -> Option<J>> Worker<J, F> {
    fn work(self) {
        let mut was_woken = false;
        let mut was_running = false;
        let mut next = None;
        let wakeup = Arc::new(Wakeup::new());
        loop {
            let (job, woken) = {
                let mut queue = self.queue.lock();
                queue.running -= usize::from(was_running);
                queue.waking &= !was_woken;
                // Jobs that have been started are finished, by all workers that can share them.
                if queue.stopped && next.is_none() && queue.backlog.is_empty() {
                    return;
                }
                if let Some(next) = next.take().filter(|_| !queue.aborted) {
                    queue.backlog.push_front(next);
                }
                let job = queue.take();
                match &job {
                    Some(_) => queue.running += 1,
                    None => queue.idle.push(Arc::clone(&wakeup)),
                }
                (job, queue.next_to_wake())
            };
            wake(woken);
            was_running = job.is_some();
            was_woken = job.is_none();
            match job {
                Some(job) => next = (self.run)(job),
                None => wakeup.wait(self.spin_for),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    impl Job for usize {}

    impl Job for u8 {}

    #[test]
    fn every_job_runs_once() {
        let ran = Arc::new(AtomicUsize::new(0));
        let pool = Pool::start("test", 4, Duration::ZERO, {
            let ran = Arc::clone(&ran);
            move |n: usize| {
                ran.fetch_add(n, Ordering::Relaxed);
                None
            }
        })
        .unwrap();
        for n in 1..=10_000 {
            pool.submit(n).unwrap();
        }
        while ran.load(Ordering::Relaxed) < 10_000 * 10_001 / 2 {
            thread::yield_now();
        }
        assert!(pool.stop().is_empty());
        pool.join(soon()).unwrap();
    }

    #[test]
    fn stop_returns_waiting_jobs_and_join_counts_running_ones() {
        let (release, gate) = bounded::<()>(0);
        let (entered, inside) = bounded(1);
        let pool = Pool::start("test", 1, Duration::ZERO, move |_: u8| {
            let _ = entered.send(());
            let _ = gate.recv();
            None
        })
        .unwrap();
        for job in 1..=3 {
            pool.submit(job).unwrap();
        }
        inside.recv().unwrap();
        assert_eq!(pool.stop(), [2, 3]);
        assert_eq!(pool.submit(4), Err(4));
        assert_eq!(pool.join(Instant::now()), Err(1));
        drop(release);
        pool.join(soon()).unwrap();
    }
}
