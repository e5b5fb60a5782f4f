use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::base::deadline;
use crate::base::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// Jobs that are put off, and the thread that waits for their time. Each stands for an
/// unsettled delivery, whose number the prefetch counts bound.
pub(super) struct DelayQueue<J> {
    shared: Arc<Shared<J>>,
    thread: Mutex<Option<NamedThread>>,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    due: BTreeMap<(Instant, u64), J>,
    last: u64,
    stopped: bool,
}

impl<J: Send + 'static> DelayQueue<J> {
    /// Starts the thread, which hands over each job at its time.
    pub(super) fn start(owner: &str, hand_over: impl Fn(J) + Send + 'static) -> Result<Self> {
        let state = State {
            due: BTreeMap::new(),
            last: 0,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || shared.run(&hand_over)
        };
        let thread = NamedThread::spawn(format!("coney-delay-{owner}"), run).map_err(|error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{owner}: cannot start a thread for what is tried again"),
            )
            .with_source(error)
        })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Puts a job off; drops it once stopped. Does not block.
    pub(super) fn add(&self, delay: Duration, job: J) {
        let mut state = self.shared.state.lock();
        if state.stopped {
            drop(state);
            return drop(job);
        }
        state.last += 1;
        let at = (deadline::after(delay), state.last);
        state.due.insert(at, job);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Ends the thread; returns what was put off.
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

/// Its thread would wait for ever.
impl<J> Drop for DelayQueue<J> {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_one();
    }
}

impl<J> Shared<J> {
    fn run(&self, hand_over: &dyn Fn(J)) {
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
            hand_over(job);
            state = self.state.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn jobs_come_in_the_order_of_their_times() {
        let (send, jobs) = unbounded();
        let delay_queue =
            DelayQueue::start("test", move |job: u8| send.send(job).unwrap()).unwrap();
        delay_queue.add(Duration::from_millis(40), 2);
        delay_queue.add(Duration::from_millis(10), 1);
        delay_queue.add(Duration::from_secs(60), 9);
        let patience = Duration::from_secs(10);
        assert_eq!(jobs.recv_timeout(patience), Ok(1));
        assert_eq!(jobs.recv_timeout(patience), Ok(2));
        assert_eq!(delay_queue.stop(deadline::after(patience)), [9]);
        delay_queue.add(Duration::ZERO, 3);
        assert!(jobs.recv().is_err(), "the thread is gone");
    }
}
