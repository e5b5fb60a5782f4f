//! A thread that runs jobs one after the other, started with its first user.

use std::io;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use parking_lot::Mutex;

use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::{NamedThread, OwnerProcess};

/// A piece of work for the thread. It may panic.
pub(super) trait Job: Send + 'static {
    fn run(self);
}

impl Job for Box<dyn FnOnce() + Send> {
    fn run(self) {
        self();
    }
}

/// The longest time for which dropping the thread waits for the job that runs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A thread that is started when it is first needed.
pub(super) struct JobThread<J> {
    /// The beginning of its name: `coney-…`.
    name: &'static str,
    /// The largest number of jobs that wait, if there is one.
    max_waiting: Option<usize>,
    started: Mutex<Option<(Jobs<J>, NamedThread)>>,
    owner: OwnerProcess,
}

/// The queue of the thread's jobs.
pub(super) struct Jobs<J>(Sender<Command<J>>);

enum Command<J> {
    Run(J),
    Stop,
}

impl<J> Clone for Jobs<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J> Jobs<J> {
    /// Adds a job, or returns it if too many wait, or the thread has ended. Never blocks.
    pub(super) fn add(&self, job: J) -> Result<(), J> {
        match self.0.try_send(Command::Run(job)) {
            Err(refused) => match refused.into_inner() {
                Command::Run(job) => Err(job),
                Command::Stop => Ok(()),
            },
            Ok(()) => Ok(()),
        }
    }
}

impl<J: Job> JobThread<J> {
    pub(super) fn new(name: &'static str, max_waiting: Option<usize>) -> Self {
        Self {
            name,
            max_waiting,
            started: Mutex::new(None),
            owner: OwnerProcess::current(),
        }
    }

    /// Returns the queue; starts the thread, named after `user`, if it does not run.
    pub(super) fn jobs(&self, user: &str) -> io::Result<Jobs<J>> {
        let mut started = self.started.lock();
        if let Some((jobs, _)) = &*started {
            return Ok(jobs.clone());
        }
        let channel = self.max_waiting.map_or_else(unbounded, bounded);
        let (sender, commands): (Sender<Command<J>>, _) = channel;
        let thread = NamedThread::spawn(format!("{}-{user}", self.name), move || {
            while let Ok(Command::Run(job)) = commands.recv() {
                if let Err(panic) = catch(|| job.run()) {
                    // Not here: a logger may panic too.
                    log_relay::log(
                        log::Level::Error,
                        "coney::cache",
                        format_args!("a job of a cache panicked: {panic}"),
                    );
                }
            }
        })?;
        let jobs = Jobs(sender);
        *started = Some((jobs.clone(), thread));
        Ok(jobs)
    }
}

impl<J> Drop for JobThread<J> {
    /// Waits for the job that runs, at most 10 s; a job that drops the thread's owner does not wait
    /// for itself.
    fn drop(&mut self) {
        let Some((jobs, thread)) = self.started.get_mut().take() else {
            return;
        };
        if self.owner.is_another() {
            std::mem::forget((jobs, thread));
            return;
        }
        // If the queue is full, the thread ends when the last of its senders is gone.
        let _ = jobs.0.try_send(Command::Stop);
        drop(jobs);
        if thread.join_deadline(deadline::after(JOIN_TIMEOUT)).is_err() {
            log::warn!(
                target: "coney::cache",
                "a thread {}-… still runs {JOIN_TIMEOUT:?} after its cache was dropped", self.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    type Boxed = Box<dyn FnOnce() + Send>;

    fn thread(max_waiting: Option<usize>) -> (JobThread<Boxed>, Jobs<Boxed>) {
        let thread = JobThread::new("coney-test", max_waiting);
        let jobs = thread.jobs("a").unwrap();
        (thread, jobs)
    }

    fn is_added(jobs: &Jobs<Boxed>, job: impl FnOnce() + Send + 'static) -> bool {
        jobs.add(Box::new(job)).is_ok()
    }

    #[test]
    fn jobs_run_in_order_after_one_that_panics() {
        let (thread, jobs) = thread(None);
        let (done, results) = unbounded();
        assert!(is_added(&jobs, || panic!("a panic that the test wants")));
        for number in 0..3 {
            let done = done.clone();
            assert!(is_added(&jobs, move || done.send(number).unwrap()));
        }
        drop((done, thread));
        assert_eq!(results.iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert!(!is_added(&jobs, || ()), "it has ended");
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let (_thread, jobs) = thread(Some(1));
        let (begun, has_begun) = bounded(0);
        let (release, gate) = bounded::<()>(0);
        assert!(is_added(&jobs, move || {
            begun.send(()).unwrap();
            let _ = gate.recv();
        }));
        has_begun.recv_timeout(PATIENCE).unwrap();
        assert!(is_added(&jobs, || ()));
        assert!(!is_added(&jobs, || ()));
        drop(release);
    }

    #[test]
    fn a_job_may_drop_the_thread() {
        let (thread, jobs) = thread(None);
        let thread = Arc::new(thread);
        let (done, is_done) = bounded(1);
        assert!(is_added(&jobs, move || {
            drop(thread);
            done.send(()).unwrap();
        }));
        is_done.recv_timeout(PATIENCE).unwrap();
    }
}
