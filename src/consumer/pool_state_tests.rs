//! Tests of the state of a pool, without threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::consumer::Shareable;

/// A job that counts when it is discarded.
struct TestJob {
    number: usize,
    is_begun: bool,
    discarded: Arc<AtomicUsize>,
}

impl Shareable for TestJob {}

impl Job for TestJob {
    fn is_begun(&self) -> bool {
        self.is_begun
    }

    fn discard(self) {
        self.discarded.fetch_add(1, Ordering::Relaxed);
    }
}

struct Test {
    state: PoolState<TestJob>,
    class: Class,
    wakeup: Arc<Wakeup>,
    discarded: Arc<AtomicUsize>,
}

impl Test {
    /// Returns the state of a pool of one worker, with a class of which one job runs at a time.
    fn new() -> Self {
        let mut state = PoolState::new(1, None);
        state.add_worker();
        let class = state.schedule.add_class(Limit::AtMost(1));
        Self {
            state,
            class,
            wakeup: Arc::new(Wakeup::new()),
            discarded: Arc::default(),
        }
    }

    fn job(&self, number: usize) -> TestJob {
        TestJob {
            number,
            is_begun: false,
            discarded: Arc::clone(&self.discarded),
        }
    }

    fn part(&self, number: usize) -> (Class, TestJob) {
        let job = TestJob {
            is_begun: true,
            ..self.job(number)
        };
        (self.class, job)
    }

    fn submit(&mut self, number: usize) {
        let submitted = self.state.submit(Class(DEFAULT), self.job(number));
        assert!(submitted.is_ok());
    }

    /// Ends a job, and returns the number of the next one with its place.
    fn step(&mut self, ended: Option<(Place, Next<TestJob>)>) -> Option<(usize, Place)> {
        let (step, effects) = self.state.step((0, &self.wakeup), ended, false);
        effects.carry_out();
        match step {
            Step::Run(job, place) => Some((job.number, place)),
            Step::Sleep(_) | Step::End => None,
        }
    }

    fn enter(&self, number: usize) -> Next<TestJob> {
        Next::Enter {
            class: self.class,
            key: None,
            job: self.job(number),
        }
    }

    fn discarded(&self) -> usize {
        self.discarded.load(Ordering::Relaxed)
    }
}

#[test]
fn a_job_that_runs_while_others_are_given_back_can_still_wait_or_be_shared() {
    let mut test = Test::new();
    test.submit(1);
    test.submit(2);
    let (_, place) = test.step(None).unwrap();
    let back = test.state.clear_unstarted();
    assert_eq!(back.iter().map(|it| it.number).collect::<Vec<_>>(), [2]);
    let (number, place) = test.step(Some((place, test.enter(1)))).unwrap();
    assert_eq!(number, 1);
    test.state.clear_unstarted();
    let shared = Next::Shared(test.job(1));
    let (number, _) = test.step(Some((place, shared))).unwrap();
    assert_eq!((number, test.discarded()), (1, 0));
}

#[test]
fn a_job_that_was_to_wait_at_the_stop_is_returned() {
    let mut test = Test::new();
    test.submit(1);
    let (_, place) = test.step(None).unwrap();
    assert!(test.state.stop().1.is_empty());
    assert!(test.step(Some((place, test.enter(1)))).is_none());
    let left = test.state.end_left();
    assert_eq!(left.iter().map(|it| it.number).collect::<Vec<_>>(), [1]);
    assert_eq!(test.discarded(), 0);
}

#[test]
fn parts_of_a_job_run_after_the_stop_and_not_once_its_message_is_requeued() {
    let mut test = Test::new();
    test.submit(1);
    let (_, place) = test.step(None).unwrap();
    test.state.stop();
    let parts = Next::Parts(vec![test.part(1), test.part(2)]);
    let (number, place) = test.step(Some((place, parts))).unwrap();
    assert_eq!(number, 1);
    let (number, _) = test.step(Some((place, Next::Done))).unwrap();
    assert_eq!((number, test.discarded()), (2, 0));

    let mut test = Test::new();
    test.submit(1);
    let (_, place) = test.step(None).unwrap();
    test.state.clear(|_| true);
    let parts = Next::Parts(vec![test.part(1), test.part(2)]);
    assert!(test.step(Some((place, parts))).is_none());
    assert_eq!(test.discarded(), 1, "which ends both");
}
