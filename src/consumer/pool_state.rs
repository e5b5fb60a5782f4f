//! The state of a worker pool: its schedule, and the workers that sleep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::lane::{Class, Limit, Place};
use super::schedule::Schedule;
use crate::base::park::Wakeup;

pub(crate) use super::job::{Job, Next, PoolStatus};

/// The class of jobs that name none.
pub(super) const DEFAULT: usize = 0;

/// The class of jobs that workers share.
pub(super) const SHARED: usize = 1;

pub(super) struct PoolState<J> {
    pub(super) schedule: Schedule<J>,
    /// The workers that sleep, in the order in which they became idle, with their numbers.
    idle: Vec<(u64, Arc<Wakeup>)>,
    /// True if a worker has been woken and has not taken a job yet.
    waking: bool,
    /// The idle worker that sleeps until the first job that is put off is due, and that time.
    timer: Option<(u64, Instant)>,
    /// The number of workers.
    pub(super) workers: usize,
    /// The number of workers above which a worker ends after its job.
    most: usize,
    /// The number of workers that stay when they are idle.
    least: usize,
    /// The number of stuck workers that others stand in for. Below zero if a worker was reported to
    /// be free again before it was reported to be stuck.
    stuck: isize,
    /// The time after which an idle worker ends, if the number of workers changes.
    end_idle: Option<Duration>,
    /// Receives a message when the last idle worker gets a job.
    on_busy: Option<Sender<()>>,
    pub(super) stopped: bool,
    /// True if the rest of shared jobs is not started either.
    aborted: bool,
    /// The jobs that were not done when the pool had been stopped; `None` once they are kept no
    /// more.
    left: Option<Vec<J>>,
}

/// The next step of a worker.
pub(super) enum Step<J> {
    Run(J, Place),
    /// Sleep until another thread wakes the worker, or until that time.
    Sleep(Option<Instant>),
    End,
}

/// The effects of a change, to be carried out without the lock.
pub(super) struct Effects<J> {
    wake: Option<Arc<Wakeup>>,
    busy: Option<Sender<()>>,
    discarded: Option<J>,
}

impl<J: Job> Effects<J> {
    pub(super) fn carry_out(self) {
        if let Some(worker) = self.wake {
            worker.wake();
        }
        if let Some(busy) = self.busy {
            let _ = busy.try_send(());
        }
        if let Some(job) = self.discarded {
            job.discard();
        }
    }
}

impl<J: Job> PoolState<J> {
    pub(super) fn new(workers: usize, end_idle: Option<Duration>) -> Self {
        let mut schedule = Schedule::new(workers);
        // In the order of the constants above.
        schedule.add_class(Limit::None);
        schedule.add_class(Limit::HalfIfOthersWait);
        Self {
            schedule,
            idle: Vec::new(),
            waking: false,
            timer: None,
            workers: 0,
            most: workers,
            least: workers,
            stuck: 0,
            end_idle,
            on_busy: None,
            stopped: false,
            aborted: false,
            left: Some(Vec::new()),
        }
    }

    /// Queues a job. Returns it if the pool has been stopped.
    pub(super) fn submit(&mut self, class: Class, job: J) -> Result<Effects<J>, J> {
        if self.stopped {
            return Err(job);
        }
        self.schedule.push(class, job);
        Ok(self.effects(None))
    }

    /// Keeps a job that came after the stop, until [`end_left`](Self::end_left). Returns it if that
    /// was called.
    pub(super) fn keep(&mut self, job: J) -> Result<(), J> {
        match &mut self.left {
            Some(left) => left.push(job),
            None => return Err(job),
        }
        Ok(())
    }

    /// Ends the job that a worker has run, and begins its next step.
    pub(super) fn step(
        &mut self,
        (number, wakeup): (u64, &Arc<Wakeup>),
        ended: Option<(Place, Next<J>)>,
        was_woken: bool,
    ) -> (Step<J>, Effects<J>) {
        self.waking &= !was_woken;
        let discarded = ended.and_then(|(place, next)| self.end(place, next));
        if self.workers > self.most_now() && !self.stopped {
            self.remove_worker();
            return (Step::End, self.effects(discarded));
        }
        self.release_due();
        let step = match self.schedule.take() {
            Some((job, place)) => Step::Run(job, place),
            // What waits then waits for the end of something that runs.
            None if self.stopped && self.schedule.waiting() == 0 => {
                self.remove_worker();
                Step::End
            }
            None => {
                self.idle.push((number, Arc::clone(wakeup)));
                Step::Sleep(self.sleep_until(number))
            }
        };
        (step, self.effects(discarded))
    }

    /// Handles the end of a worker's sleep at its time. Returns true if the worker ends; `None` if
    /// another thread is about to wake it.
    pub(super) fn sleep_ended(&mut self, number: u64, idle_since: Instant) -> Option<bool> {
        let at = self.idle.iter().position(|(it, _)| *it == number)?;
        self.idle.remove(at);
        if self.timer.is_some_and(|(it, _)| it == number) {
            self.timer = None;
        }
        self.release_due();
        let is_long = self.end_idle.is_some_and(|it| idle_since.elapsed() >= it);
        let ends = is_long && self.workers > self.least_now() && !self.schedule.has_next();
        if ends {
            let stuck = self.least_now() - self.least;
            let left = (self.workers - 1).saturating_sub(stuck);
            self.most = self.most.min(left).max(self.least);
            self.remove_worker();
        }
        Some(ends)
    }

    /// Wakes the worker that is to take the next job, or that is to wait for those that are put off.
    pub(super) fn effects(&mut self, discarded: Option<J>) -> Effects<J> {
        let is_busy = self.idle.is_empty() && !self.waking && self.schedule.running() > 0;
        Effects {
            wake: self.next_to_wake(),
            busy: if is_busy { self.on_busy.take() } else { None },
            discarded,
        }
    }

    /// Returns true while jobs wait that are not shared, and no worker is idle.
    pub(super) fn others_wait(&self) -> bool {
        self.idle.is_empty() && self.schedule.others_wait()
    }

    /// Stops the pool: only the shared jobs that have been started stay. Returns the idle workers,
    /// which must be woken, and the other jobs.
    pub(super) fn stop(&mut self) -> (Vec<Arc<Wakeup>>, Vec<J>) {
        self.stopped = true;
        self.on_busy = None;
        let left = self.clear_unstarted();
        let idle = std::mem::take(&mut self.idle).into_iter();
        (idle.map(|(_, wakeup)| wakeup).collect(), left)
    }

    /// Stops the pool, and starts nothing more of shared jobs either. Returns all jobs.
    pub(super) fn abort(&mut self) -> Vec<J> {
        self.stopped = true;
        self.aborted = true;
        self.clear(|_| true)
    }

    /// Removes the jobs that have not begun. Those that run can still be followed by others: their
    /// messages are not requeued.
    pub(super) fn clear_unstarted(&mut self) -> Vec<J> {
        let mut unstarted = Vec::new();
        let classes: Vec<Class> = self.schedule.classes().collect();
        for class in classes.into_iter().filter(|it| *it != Class(SHARED)) {
            let (begun, others): (Vec<J>, Vec<J>) = self
                .schedule
                .take_waiting(class)
                .into_iter()
                .partition(Job::is_begun);
            begun
                .into_iter()
                .for_each(|job| self.schedule.push(class, job));
            unstarted.extend(others);
        }
        unstarted
    }

    /// Removes the jobs of the classes for which `matches` returns true.
    pub(super) fn clear(&mut self, matches: impl Fn(Class) -> bool) -> Vec<J> {
        let classes: Vec<Class> = self.schedule.classes().filter(|it| matches(*it)).collect();
        let cleared = classes.into_iter().map(|it| self.schedule.clear(it));
        cleared.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    /// Removes the jobs that were not done when the pool had been stopped. Those that follow are
    /// discarded.
    pub(super) fn end_left(&mut self) -> Vec<J> {
        self.left.take().unwrap_or_default()
    }

    /// Counts a worker that is being started.
    pub(super) fn add_worker(&mut self) {
        self.workers += 1;
        self.schedule.set_runners(self.workers);
    }

    /// Removes a worker that ends, or could not be started.
    pub(super) fn remove_worker(&mut self) {
        self.workers -= 1;
        self.schedule.set_runners(self.workers);
    }

    /// Counts one worker as stuck no more: one ends after its job.
    pub(super) fn end_one_worker(&mut self) {
        self.stuck -= 1;
    }

    /// Counts one worker as stuck. Returns true if another has to be started in its place.
    pub(super) fn add_stuck_worker(&mut self) -> bool {
        self.stuck += 1;
        !self.stopped && self.workers < self.most_now()
    }

    /// Returns the number of workers above which one ends, with those in place of stuck ones.
    fn most_now(&self) -> usize {
        self.most + usize::try_from(self.stuck).unwrap_or(0)
    }

    /// Returns the number of workers that stay, with those in place of stuck ones.
    fn least_now(&self) -> usize {
        self.least + usize::try_from(self.stuck).unwrap_or(0)
    }

    /// Lets there be as many workers, those in place of stuck ones included. Returns true if one has
    /// to be started.
    pub(super) fn allow_workers(&mut self, workers: usize) -> bool {
        let stuck = usize::try_from(self.stuck).unwrap_or(0);
        self.most = self.most.max(workers.saturating_sub(stuck));
        !self.stopped && self.workers < workers
    }

    /// Sets the channel that receives a message when the last idle worker gets a job: at once if
    /// none is idle.
    pub(super) fn notify_when_busy(&mut self, sender: Sender<()>) -> Effects<J> {
        self.on_busy = Some(sender);
        self.effects(None)
    }

    pub(super) fn status(&self) -> PoolStatus {
        PoolStatus {
            workers: self.workers,
            running: self.schedule.running(),
            waiting: self.schedule.waiting(),
            ready: self.schedule.waiting_for_runners(),
        }
    }

    /// Returns the job if it is to be discarded.
    fn end(&mut self, place: Place, next: Next<J>) -> Option<J> {
        let (class, key, job) = match next {
            Next::Done => {
                self.schedule.finish(place);
                return None;
            }
            Next::Later(job, _) | Next::Enter { job, .. } if self.stopped => {
                self.schedule.finish(place);
                return self.keep(job).err();
            }
            Next::Later(job, due) => return self.schedule.put_back(place, job, due).err(),
            Next::Parts(parts) => {
                let is_current = self.schedule.is_current(&place);
                self.schedule.finish(place);
                if !is_current || self.aborted {
                    // Discarding one part ends them all.
                    return parts.into_iter().next().map(|(_, part)| part);
                }
                for (class, part) in parts {
                    self.schedule.push(class, part);
                }
                return None;
            }
            Next::Shared(job) => (None, None, job),
            Next::Enter { class, key, job } => (Some(class), key, job),
        };
        let is_current = self.schedule.is_current(&place);
        self.schedule.finish(place);
        match (class, key) {
            _ if !is_current => return Some(job),
            (None, _) if self.aborted => return Some(job),
            (None, _) => self.schedule.push_single(Class(SHARED), job),
            (Some(class), None) => self.schedule.push(class, job),
            (Some(class), Some(key)) => self.schedule.push_keyed(class, key, job),
        }
        None
    }

    /// Reads the clock only if jobs are put off.
    fn release_due(&mut self) {
        if self.schedule.next_due().is_some() {
            self.schedule.release(Instant::now());
        }
    }

    /// Returns the time until which an idle worker sleeps.
    fn sleep_until(&mut self, number: u64) -> Option<Instant> {
        let end = self.end_idle.filter(|_| self.workers > self.least_now());
        let end = end.map(|idle| Instant::now() + idle);
        let due = self.schedule.next_due().filter(|_| self.is_timer_missing());
        if let Some(due) = due {
            self.timer = Some((number, due));
        }
        end.into_iter().chain(due).min()
    }

    /// Returns true if no idle worker wakes in time for the first job that is put off.
    fn is_timer_missing(&self) -> bool {
        let first = self.schedule.next_due();
        first.is_some_and(|due| self.timer.is_none_or(|(_, until)| until > due))
    }

    /// Returns a worker to be woken, if there is a need and no woken worker is about to take a job.
    fn next_to_wake(&mut self) -> Option<Arc<Wakeup>> {
        let is_over = self.stopped && self.schedule.waiting() == 0;
        if self.waking || !(self.schedule.has_next() || self.is_timer_missing() || is_over) {
            return None;
        }
        let (number, worker) = self.idle.pop()?;
        if self.timer.is_some_and(|(it, _)| it == number) {
            self.timer = None;
        }
        self.waking = true;
        Some(worker)
    }
}

#[cfg(test)]
#[path = "pool_state_tests.rs"]
mod tests;
