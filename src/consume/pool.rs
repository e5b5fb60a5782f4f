use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::wait;

/// A fixed set of named worker threads.
///
/// A job goes to the worker that became idle last, over a channel of its own:
/// one thread is woken for a job and it is the one whose caches are warm.
/// With one queue that all workers wait on, every job would also wake a worker
/// that then finds nothing.
pub(super) struct Pool<J> {
    queue: Arc<Mutex<Queue<J>>>,
    workers: Vec<Sender<Option<J>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnects when the last worker has ended.
    ended: Receiver<()>,
}

struct Queue<J> {
    /// Workers that wait for a job, the latest last.
    idle: Vec<usize>,
    /// Jobs that wait for a worker. What fills it is bounded by the prefetch
    /// count: each job is an unsettled delivery.
    backlog: VecDeque<J>,
    running: usize,
    stopped: bool,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts the workers; each stays awake so long after a job. `run` must not
    /// panic.
    pub(super) fn start<F>(
        name: &str,
        workers: usize,
        awake: Duration,
        run: F,
    ) -> std::io::Result<Self>
    where
        F: Fn(J) + Send + Sync + 'static,
    {
        let run = Arc::new(run);
        let queue = Arc::new(Mutex::new(Queue {
            idle: Vec::with_capacity(workers),
            backlog: VecDeque::new(),
            running: 0,
            stopped: false,
        }));
        let (alive, ended) = bounded::<()>(0);
        let mut pool = Self {
            queue,
            workers: Vec::with_capacity(workers),
            threads: Mutex::new(Vec::with_capacity(workers)),
            ended,
        };
        for number in 0..workers {
            // One slot: a worker gets a job only after it has said it is idle.
            let (sender, jobs) = bounded(1);
            let worker = Worker {
                number,
                jobs,
                queue: Arc::clone(&pool.queue),
                run: Arc::clone(&run),
                awake,
                _alive: alive.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("coney-worker-{name}-{number}"))
                .spawn(move || worker.work());
            pool.workers.push(sender);
            match thread {
                Ok(thread) => pool.threads.get_mut().push(thread),
                Err(error) => {
                    pool.stop();
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// Gives a job to a worker, or to the backlog; never blocks. Hands it back
    /// once the pool has been stopped.
    pub(super) fn submit(&self, job: J) -> Result<(), J> {
        let worker = {
            let mut queue = self.queue.lock();
            if queue.stopped {
                return Err(job);
            }
            match queue.idle.pop() {
                Some(worker) => worker,
                None => {
                    queue.backlog.push_back(job);
                    return Ok(());
                }
            }
        };
        // Fails only if the worker has died, and then only this job with it.
        let _ = self.workers[worker].send(Some(job));
        Ok(())
    }

    /// Returns the jobs that nobody has started.
    pub(super) fn clear(&self) -> Vec<J> {
        std::mem::take(&mut self.queue.lock().backlog).into()
    }

    /// Takes no more jobs and lets the workers end after the ones they run.
    /// Returns the jobs that nobody has started.
    pub(super) fn stop(&self) -> Vec<J> {
        let (idle, backlog) = {
            let mut queue = self.queue.lock();
            queue.stopped = true;
            (
                std::mem::take(&mut queue.idle),
                std::mem::take(&mut queue.backlog),
            )
        };
        for worker in idle {
            let _ = self.workers[worker].send(None);
        }
        backlog.into()
    }

    /// Is this called by one of the workers?
    pub(super) fn is_worker(&self) -> bool {
        let me = thread::current().id();
        let threads = self.threads.lock();
        threads.iter().any(|thread| thread.thread().id() == me)
    }

    /// Waits until every worker has ended and joins them; at `deadline`, the
    /// number of jobs that still run.
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

struct Worker<J, F> {
    number: usize,
    jobs: Receiver<Option<J>>,
    queue: Arc<Mutex<Queue<J>>>,
    run: Arc<F>,
    awake: Duration,
    /// Dropped last: when it goes, so have the handlers in `run`.
    _alive: Sender<()>,
}

impl<J, F: Fn(J)> Worker<J, F> {
    fn work(self) {
        let mut was_running = false;
        while let Some(job) = self.next(was_running) {
            (self.run)(job);
            was_running = true;
        }
    }

    fn next(&self, was_running: bool) -> Option<J> {
        {
            let mut queue = self.queue.lock();
            queue.running -= usize::from(was_running);
            if queue.stopped {
                return None;
            }
            if let Some(job) = queue.backlog.pop_front() {
                queue.running += 1;
                return Some(job);
            }
            queue.idle.push(self.number);
        }
        let job = wait::recv(&self.jobs, None, self.awake).flatten()?;
        self.queue.lock().running += 1;
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn every_job_runs_once() {
        let ran = Arc::new(AtomicUsize::new(0));
        let pool = Pool::start("test", 4, Duration::ZERO, {
            let ran = Arc::clone(&ran);
            move |n: usize| {
                ran.fetch_add(n, Ordering::Relaxed);
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
    fn stop_returns_what_was_not_started_and_join_names_what_still_runs() {
        let (release, gate) = bounded::<()>(0);
        let (entered, inside) = bounded(1);
        let pool = Pool::start("test", 1, Duration::ZERO, move |_: u8| {
            let _ = entered.send(());
            let _ = gate.recv();
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
