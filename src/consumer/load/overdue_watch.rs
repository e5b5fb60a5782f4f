//! The watch on handlers that take too long, with the threads that run them.

use std::collections::HashMap;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::overdue::Overdue;
use crate::base::name::shown;
use crate::consumer::turn::Turn;

/// The interval at which handlers are looked for while none runs, if their timeout is shorter: the
/// begin of one is not announced.
const LONGEST_DELAY: Duration = Duration::from_millis(100);

/// The shortest interval between two looks.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// The watch on running handlers, shared by the workers and the load thread.
pub(crate) struct OverdueWatch {
    timeout: Duration,
    state: Mutex<State>,
}

struct State {
    overdue: Overdue,
    threads: HashMap<u64, (Thread, String)>,
}

/// A handler that has become overdue.
#[derive(Debug)]
pub(crate) struct OverdueHandler {
    pub(crate) action: String,
    /// The name of the worker's thread.
    pub(crate) thread: String,
    pub(crate) running_for: Duration,
    /// True if another worker is to be started in place of this one.
    pub(crate) replace: bool,
    /// False if the handler was returned before.
    pub(crate) is_new: bool,
}

/// A running handler; its end is recorded when it is dropped.
struct Run<'a> {
    watch: &'a OverdueWatch,
    turn: &'a dyn Turn,
    number: u64,
}

impl OverdueWatch {
    /// Creates a watch that replaces at most so many workers at a time.
    pub(crate) fn new(timeout: Duration, most_replaced: usize) -> Self {
        Self {
            timeout,
            state: Mutex::new(State {
                overdue: Overdue::new(timeout, most_replaced),
                threads: HashMap::new(),
            }),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs a handler under the watch.
    pub(super) fn run<T>(&self, turn: &dyn Turn, action: &str, handler: impl FnOnce() -> T) -> T {
        let number = {
            let mut state = self.state.lock();
            let number = state.overdue.started(Instant::now(), turn.may_grow());
            let thread = (thread::current(), shown(action).into_owned());
            state.threads.insert(number, thread);
            number
        };
        let _run = Run {
            watch: self,
            turn,
            number,
        };
        handler()
    }

    /// Returns the handlers that have become overdue since the last check.
    pub(super) fn check(&self, now: Instant) -> Vec<OverdueHandler> {
        let mut state = self.state.lock();
        let found = state.overdue.check(now).into_iter();
        let described = found.filter_map(|run| {
            let (thread, action) = state.threads.get(&run.run)?;
            Some(OverdueHandler {
                action: action.clone(),
                thread: thread.name().unwrap_or_default().to_owned(),
                running_for: run.running_for,
                replace: run.replace,
                is_new: run.is_new,
            })
        });
        described.collect()
    }

    /// Returns the time at which a handler may next be overdue: of those that run, or that begin now.
    pub(super) fn next_check(&self, now: Instant) -> Instant {
        let next = self.state.lock().overdue.next_check();
        let later = now + self.timeout.max(LONGEST_DELAY);
        next.map_or(later, |next| next.clamp(now + SHORTEST_INTERVAL, later))
    }

    /// Returns the number of handlers that are overdue now, and of those that ever were.
    pub(super) fn counts(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.overdue.overdue(), state.overdue.total())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let was_replaced = {
            let mut state = self.watch.state.lock();
            state.threads.remove(&self.number);
            state.overdue.finished(self.number)
        };
        if was_replaced {
            self.turn.end_one_worker();
        }
    }
}
