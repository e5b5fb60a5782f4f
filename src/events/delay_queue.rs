//! The queue of jobs that wait for their next attempt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// A queue of delayed jobs, and the thread that waits until they are due. Each job holds an
/// unsettled delivery, so the prefetch counts bound their number.
pub(super) struct DelayQueue<J> {
    shared: Arc<Shared<J>>,
    thread: Mutex<Option<NamedThread>>,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    /// The jobs by the time when they are due, and a number that makes the key unique.
    due: BTreeMap<(Instant, u64), J>,
    last_number: u64,
    stopped: bool,
}

impl<J: Send + 'static> DelayQueue<J> {
    /// Starts the thread, which passes each job to `submit` when it is due.
    pub(super) fn start(owner: &str, submit: impl Fn(J) + Send + 'static) -> Result<Self> {
        let state = State {
            due: BTreeMap::new(),
            last_number: 0,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || shared.run(&submit)
        };
        let thread = NamedThread::spawn(format!("coney-delay-{owner}"), run).map_err(|error| {
            Error::new(
                ErrorKind::Io,
                format!("{owner}: cannot start the thread for delayed retries"),
            )
            .with_source(error)
        })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Adds a job, which is due after `delay`; drops it if the queue has been stopped. Does not
    /// block.
    pub(super) fn add(&self, delay: Duration, job: J) {
        let mut state = self.shared.state.lock();
        if state.stopped {
            drop(state);
            return drop(job);
        }
        state.last_number += 1;
        let at = (deadline::after(delay), state.last_number);
        state.due.insert(at, job);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Stops the thread, and waits for it at most until `deadline`. Returns the jobs that are left.
    pub(super) fn stop(&self, deadline: Instant) -> Vec<J> {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join_deadline(deadline);
        }
        let due = std::mem::take(&mut self.shared.state.lock().due);
        due.into_values().collect()
    }
}

/// Stops the thread, which would wait for ever.
impl<J> Drop for DelayQueue<J> {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_one();
    }
}

impl<J> Shared<J> {
    fn run(&self, submit: &dyn Fn(J)) {
        let mut state = self.state.lock();
        while !state.stopped {
            let Some(first) = state.due.first_entry() else {
                self.changed.wait(&mut state);
                continue;
            };
            let (at, _) = *first.key();
            if at > Instant::now() {
                self.changed.wait_until(&mut state, at);
                continue;
            }
            let job = first.remove();
            drop(state);
            submit(job);
            state = self.state.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn jobs_are_submitted_in_the_order_of_their_times() {
        let (send, jobs) = unbounded();
        let delay_queue =
            DelayQueue::start("test", move |job: u8| send.send(job).unwrap()).unwrap();
        delay_queue.add(Duration::from_millis(40), 2);
        delay_queue.add(Duration::from_millis(10), 1);
        delay_queue.add(Duration::from_secs(60), 9);
        let timeout = Duration::from_secs(10);
        assert_eq!(jobs.recv_timeout(timeout), Ok(1));
        assert_eq!(jobs.recv_timeout(timeout), Ok(2));
        assert_eq!(delay_queue.stop(deadline::after(timeout)), [9]);
        delay_queue.add(Duration::ZERO, 3);
        assert!(jobs.recv().is_err(), "the thread is gone");
    }
}
