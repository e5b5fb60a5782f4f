//! The loop of a worker thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::lane::Place;
use super::pool_shared::Shared;
use super::pool_state::{Effects, Job, Next, Step};
use super::turn::Turn;
use crate::base::park::Wakeup;

/// The function that runs a job and returns what is left of it.
pub(super) type Run<J> = Arc<dyn Fn(J, &dyn Turn) -> Next<J> + Send + Sync>;

/// A worker: the loop of one thread.
pub(super) struct Worker<J> {
    pub(super) shared: Arc<Shared<J>>,
    pub(super) run: Run<J>,
    pub(super) number: u64,
    pub(super) spin_for: Duration,
    pub(super) on_start: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Dropped last: when it disconnects, the handlers in `run` have been dropped too.
    pub(super) _alive: Sender<()>,
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
    pub(super) fn work(self) {
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
        let ends = state.sleep_ended(self.number, begun);
        // Another worker has to wait for what is put off.
        let effects = (ends == Some(true)).then(|| state.effects(None));
        drop(state);
        effects.into_iter().for_each(Effects::carry_out);
        match ends {
            Some(true) => None,
            Some(false) => Some(false),
            // Another thread has chosen this worker, and wakes it now.
            None => {
                wakeup.wait(Duration::ZERO);
                Some(true)
            }
        }
    }
}
