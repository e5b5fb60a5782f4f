//! Handlers that run for longer than they should.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The watch on running handlers. A thread cannot be stopped: the worker of an overdue handler is
/// replaced by another, and ends when the handler returns.
///
/// Its size is bounded by the number of workers and of replacements.
#[derive(Debug)]
pub(crate) struct Overdue {
    timeout: Duration,
    /// The largest number of workers that are replaced at a time.
    most_replaced: usize,
    runs: HashMap<u64, Run>,
    next: u64,
    /// The number of runs that are overdue now.
    overdue: usize,
    replaced: usize,
    /// The number of runs that ever became overdue.
    total: u64,
}

#[derive(Debug)]
struct Run {
    began: Instant,
    may_be_replaced: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InTime,
    Overdue,
    /// Overdue, and another worker has been started in place of this one.
    Replaced,
}

/// A run that has become overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverdueRun {
    /// The number that [`Overdue::started`] returned.
    pub(crate) run: u64,
    pub(crate) running_for: Duration,
    /// True if another worker is to be started in place of this one.
    pub(crate) replace: bool,
    /// False if the run was returned before.
    pub(crate) is_new: bool,
}

impl Overdue {
    /// Creates a watch that replaces at most so many workers at a time.
    pub(crate) fn new(timeout: Duration, most_replaced: usize) -> Self {
        Self {
            timeout,
            most_replaced,
            runs: HashMap::new(),
            next: 0,
            overdue: 0,
            replaced: 0,
            total: 0,
        }
    }

    /// Records that a handler has started, and returns the number of its run. `may_be_replaced` is
    /// false if its worker is the only one that may run such handlers.
    pub(crate) fn started(&mut self, now: Instant, may_be_replaced: bool) -> u64 {
        let run = self.next;
        self.next += 1;
        let state = State::InTime;
        let run_now = Run {
            began: now,
            may_be_replaced,
            state,
        };
        self.runs.insert(run, run_now);
        run
    }

    /// Records that a handler has returned. Returns true if its worker has been replaced, and ends.
    pub(crate) fn finished(&mut self, run: u64) -> bool {
        let state = self
            .runs
            .remove(&run)
            .map_or(State::InTime, |run| run.state);
        self.overdue -= usize::from(state != State::InTime);
        self.replaced -= usize::from(state == State::Replaced);
        state == State::Replaced
    }

    /// Returns the runs that have become overdue since the last check, each once, the longest
    /// first. Beyond the bound of replacements, a worker is replaced as soon as another one has
    /// ended: such a run is returned again, with `replace` set.
    pub(crate) fn check(&mut self, now: Instant) -> Vec<OverdueRun> {
        let mut late: Vec<(&u64, &mut Run)> = self
            .runs
            .iter_mut()
            .filter(|(_, run)| run.state != State::Replaced)
            .filter(|(_, run)| now.saturating_duration_since(run.began) >= self.timeout)
            .collect();
        late.sort_unstable_by_key(|(number, run)| (run.began, **number));
        let mut found = Vec::new();
        for (number, run) in late {
            let is_new = run.state == State::InTime;
            let replace = run.may_be_replaced && self.replaced < self.most_replaced;
            self.overdue += usize::from(is_new);
            self.total += u64::from(is_new);
            self.replaced += usize::from(replace);
            run.state = match replace {
                true => State::Replaced,
                false => State::Overdue,
            };
            if is_new || replace {
                found.push(OverdueRun {
                    run: *number,
                    running_for: now.saturating_duration_since(run.began),
                    replace,
                    is_new,
                });
            }
        }
        found
    }

    /// Returns the moment at which the next run becomes overdue, if one runs.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let in_time = self.runs.values().filter(|run| run.state == State::InTime);
        in_time.map(|run| run.began + self.timeout).min()
    }

    /// Returns the number of handlers that are overdue now.
    pub(crate) fn overdue(&self) -> usize {
        self.overdue
    }

    /// Returns the number of handlers that ever became overdue.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_overdue_handler_is_reported_once_and_its_worker_replaced_up_to_the_bound() {
        let (start, mut watch) = (Instant::now(), Overdue::new(100 * MS, 1));
        assert_eq!(watch.next_check(), None);
        let first = watch.started(start, true);
        let second = watch.started(start + 10 * MS, true);
        let quick = watch.started(start + 20 * MS, true);
        assert!(!watch.finished(quick));
        assert_eq!(watch.next_check(), Some(start + 100 * MS));
        assert_eq!(watch.check(start + 99 * MS), []);
        let overdue = |run, running_for, replace| OverdueRun {
            run,
            running_for: running_for * MS,
            replace,
            is_new: true,
        };
        let found = watch.check(start + 110 * MS);
        assert_eq!(
            found,
            [overdue(first, 110, true), overdue(second, 100, false)]
        );
        assert_eq!((watch.overdue(), watch.total()), (2, 2));
        assert_eq!(watch.check(start + 200 * MS), []);
        assert_eq!(watch.next_check(), None);
        assert!(watch.finished(first), "its worker ends");
        let found = watch.check(start + 210 * MS);
        let again = OverdueRun {
            is_new: false,
            ..overdue(second, 200, true)
        };
        assert_eq!(found, [again], "there is room now");
        assert!(watch.finished(second) && !watch.finished(second));
        assert_eq!((watch.overdue(), watch.total()), (0, 2));
    }

    #[test]
    fn the_only_worker_for_its_messages_is_reported_and_not_replaced() {
        let (start, mut watch) = (Instant::now(), Overdue::new(100 * MS, 1));
        let run = watch.started(start, false);
        let found = watch.check(start + 100 * MS);
        assert!(matches!(found[..], [OverdueRun { replace: false, .. }]));
        assert_eq!(watch.check(start + 200 * MS), []);
        assert_eq!((watch.overdue(), watch.total()), (1, 1));
        assert!(!watch.finished(run), "no worker ends");
    }

    proptest! {
        #[test]
        fn workers_are_replaced_within_the_bound_and_all_counts_end_at_zero(
            steps in prop::collection::vec((0..3_u8, 0..20_usize, 0..80_u32), 1..150),
            most in 0..4_usize,
        ) {
            let mut watch = Overdue::new(100 * MS, most);
            let mut now = Instant::now();
            // Each run: its number, its beginning, whether it was reported and replaced.
            let mut runs: Vec<(u64, Instant, bool, bool)> = Vec::new();
            for (step, which, passed) in steps {
                now += passed * MS;
                match step {
                    0 => runs.push((watch.started(now, true), now, false, false)),
                    1 if which < runs.len() => {
                        let (number, _, _, replaced) = runs.remove(which);
                        prop_assert_eq!(watch.finished(number), replaced);
                    }
                    _ => {
                        for found in watch.check(now) {
                            let run = runs.iter_mut().find(|run| run.0 == found.run).unwrap();
                            prop_assert!(now - run.1 >= 100 * MS);
                            prop_assert!(!run.2 || found.replace && !run.3, "reported once");
                            prop_assert_eq!(found.is_new, !run.2);
                            (run.2, run.3) = (true, found.replace);
                        }
                        let late = runs.iter().all(|run| run.2 == (now - run.1 >= 100 * MS));
                        prop_assert!(late);
                    }
                }
                let replaced = runs.iter().filter(|run| run.3).count();
                prop_assert!(replaced <= most);
                prop_assert_eq!(watch.overdue(), runs.iter().filter(|run| run.2).count());
            }
            for (number, ..) in runs {
                watch.finished(number);
            }
            prop_assert_eq!((watch.overdue(), watch.replaced), (0, 0));
            prop_assert!(watch.runs.is_empty());
        }
    }
}
