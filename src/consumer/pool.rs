use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::base::park::Wakeup;

/// What the workers of a pool do, one each at a time.
pub(crate) trait Job: Send + Sized + 'static {
    /// The same job for one more worker, as long as there is work in it for more than
    /// one. It stays first in the queue meanwhile.
    fn share(&self) -> Option<Self> {
        None
    }

    /// Begins with nothing more that is in it.
    fn stop(&self) {}
}

/// A fixed set of named worker threads.
///
/// A job wakes the worker that became idle last: its caches are warm, and nobody else is
/// woken. Only one is woken at a time; when it takes
/// its job and there are more, it wakes the next. So a burst of short jobs is done by the
/// few workers that are awake, and one of long jobs wakes as many as there are jobs.
pub(super) struct Pool<J: Job> {
    queue: Arc<Mutex<Queue<J>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnects when the last worker has ended.
    ended: Receiver<()>,
}

struct Queue<J> {
    /// Workers that sleep, the latest last.
    idle: Vec<Arc<Wakeup>>,
    /// One has been woken and has not looked at the jobs yet.
    waking: bool,
    /// Jobs that wait for a worker. What fills it is bounded by the prefetch
    /// count: each job is an unsettled delivery.
    backlog: VecDeque<J>,
    running: usize,
    stopped: bool,
    given_up: bool,
}

impl<J: Job> Queue<J> {
    fn take(&mut self) -> Option<J> {
        let shared = self.backlog.front()?.share();
        shared.or_else(|| self.backlog.pop_front())
    }

    /// Leaves only jobs that have been begun and can be shared. Returns whom to tell, and
    /// the others.
    fn stop(&mut self) -> (Vec<Arc<Wakeup>>, Vec<J>) {
        self.stopped = true;
        let backlog = std::mem::take(&mut self.backlog).into_iter();
        let (begun, left): (Vec<J>, Vec<J>) = backlog.partition(|job| job.share().is_some());
        self.backlog = begun.into();
        (std::mem::take(&mut self.idle), left)
    }

    /// Whom to wake, if there is a job and nobody is about to take it.
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
    /// Starts the workers; each stays awake so long after a job. `run` must not
    /// panic; what it returns is to be done next.
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
            given_up: false,
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

    /// Gives a job to the workers; never blocks. Hands it back once the pool has been
    /// stopped.
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

    /// Returns those jobs that nobody has started and for which `is_it` holds.
    pub(super) fn take(&self, is_it: impl Fn(&J) -> bool) -> Vec<J> {
        let mut queue = self.queue.lock();
        let backlog = std::mem::take(&mut queue.backlog);
        let (taken, left): (Vec<J>, Vec<J>) = backlog.into_iter().partition(is_it);
        queue.backlog = left.into();
        taken
    }

    /// The number of jobs that wait or run.
    pub(super) fn busy(&self) -> usize {
        let queue = self.queue.lock();
        queue.backlog.len() + queue.running
    }

    /// Takes no more jobs and lets the workers end after the ones they have begun.
    /// Returns the jobs that nobody has started.
    pub(super) fn stop(&self) -> Vec<J> {
        let (idle, left) = self.queue.lock().stop();
        for worker in idle {
            worker.wake();
        }
        left
    }

    /// Begins with nothing more, not even with the rest of jobs that have been begun and can
    /// be shared. Returns those.
    pub(super) fn give_up(&self) -> Vec<J> {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.given_up = true;
        std::mem::take(&mut queue.backlog).into()
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

/// Wakes a worker that has left the idle ones.
fn wake(worker: Option<Arc<Wakeup>>) {
    if let Some(worker) = worker {
        worker.wake();
    }
}

/// Its workers would wait for ever.
impl<J: Job> Drop for Pool<J> {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

struct Worker<J, F> {
    queue: Arc<Mutex<Queue<J>>>,
    run: Arc<F>,
    spin_for: Duration,
    /// Dropped last: when it goes, so have the handlers in `run`.
    _alive: Sender<()>,
}

impl<J: Job, F: Fn(J) -> Option<J>> Worker<J, F> {
    fn work(self) {
        let mut was_woken = false;
        let mut was_running = false;
        let mut next = None;
        let bell = Arc::new(Wakeup::new());
        loop {
            let (job, woken) = {
                let mut queue = self.queue.lock();
                queue.running -= usize::from(was_running);
                queue.waking &= !was_woken;
                // What has been begun is seen through, by all who can help.
                if queue.stopped && next.is_none() && queue.backlog.is_empty() {
                    return;
                }
                if let Some(next) = next.take().filter(|_| !queue.given_up) {
                    queue.backlog.push_front(next);
                }
                let job = queue.take();
                match &job {
                    Some(_) => queue.running += 1,
                    None => queue.idle.push(Arc::clone(&bell)),
                }
                (job, queue.next_to_wake())
            };
            wake(woken);
            was_running = job.is_some();
            was_woken = job.is_none();
            match job {
                Some(job) => next = (self.run)(job),
                None => bell.wait(self.spin_for),
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
    fn stop_returns_what_was_not_started_and_join_names_what_still_runs() {
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
