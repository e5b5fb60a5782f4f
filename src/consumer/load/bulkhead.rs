//! Bulkheads: at most so many requests of an action at a time.

/// A place in a bulkhead, or the answer to a request that gets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BulkheadAnswer {
    /// The request has a place, to be given back by [`Bulkheads::finished`].
    Run,
    /// The request waits in this process until [`Bulkheads::finished`] passes a place on to it.
    PutAside,
    /// The call is refused.
    Busy,
    /// The command goes to the queue of its bulkhead, and waits there.
    Move,
}

/// The bulkhead of one action.
#[derive(Debug)]
struct Bulkhead {
    action: usize,
    at_most: usize,
    running: usize,
    aside: usize,
}

/// The bulkheads of a server.
///
/// A request that is put aside holds a place in the prefetch, so fewer than half of the prefetch
/// are: the requests of other actions must get through.
#[derive(Debug)]
pub(super) struct Bulkheads {
    /// One for each action that has one, few in all.
    bulkheads: Box<[Bulkhead]>,
    /// The number of requests that are put aside, of all actions.
    aside: usize,
}

impl Bulkheads {
    /// Creates bulkheads for pairs of an action and the number of its requests at a time.
    pub(super) fn new(at_most: &[(usize, usize)]) -> Self {
        let bulkheads = at_most.iter().map(|&(action, at_most)| Bulkhead {
            action,
            at_most: at_most.max(1),
            running: 0,
            aside: 0,
        });
        Self {
            bulkheads: bulkheads.collect(),
            aside: 0,
        }
    }

    fn get(&mut self, action: usize) -> Option<&mut Bulkhead> {
        self.bulkheads.iter_mut().find(|it| it.action == action)
    }

    /// Decides about a request. One that `may_wait` is put aside if there is room; a request of a
    /// batch may not, as the others of its batch would wait too.
    pub(super) fn admit(
        &mut self,
        action: usize,
        is_call: bool,
        may_wait: bool,
        prefetch: usize,
    ) -> BulkheadAnswer {
        let has_room = self.aside < prefetch.saturating_sub(1) / 2;
        let Some(bulkhead) = self.get(action) else {
            return BulkheadAnswer::Run;
        };
        if bulkhead.running < bulkhead.at_most {
            bulkhead.running += 1;
            return BulkheadAnswer::Run;
        }
        if may_wait && has_room {
            bulkhead.aside += 1;
            self.aside += 1;
            return BulkheadAnswer::PutAside;
        }
        match is_call || !may_wait {
            true => BulkheadAnswer::Busy,
            false => BulkheadAnswer::Move,
        }
    }

    /// Takes a place back. Returns true if it has passed to the first request of the action that
    /// was put aside, which runs now; no later request overtakes it.
    pub(super) fn finished(&mut self, action: usize) -> bool {
        let Some(bulkhead) = self.get(action) else {
            return false;
        };
        if bulkhead.aside == 0 {
            bulkhead.running = bulkhead.running.saturating_sub(1);
            return false;
        }
        bulkhead.aside -= 1;
        self.aside -= 1;
        true
    }

    /// Records that a request which was put aside has been removed without running.
    pub(super) fn removed(&mut self, action: usize) {
        if let Some(bulkhead) = self.get(action)
            && bulkhead.aside > 0
        {
            bulkhead.aside -= 1;
            self.aside -= 1;
        }
    }

    /// Returns the number of requests of an action that wait for a place, and the number of its
    /// places.
    pub(super) fn waiting(&mut self, action: usize) -> (usize, usize) {
        let bulkhead = self.get(action);
        bulkhead.map_or((0, 1), |it| (it.aside, it.at_most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_few_are_put_aside_and_then_calls_are_refused_and_commands_moved() {
        let mut bulkheads = Bulkheads::new(&[(3, 2)]);
        let mut admit = |action, is_call| bulkheads.admit(action, is_call, true, 10);
        assert_eq!(admit(0, true), BulkheadAnswer::Run, "without a bulkhead");
        let answers: Vec<_> = (0..8).map(|_| admit(3, true)).collect();
        let (run, aside) = (BulkheadAnswer::Run, BulkheadAnswer::PutAside);
        assert_eq!(answers[..6], [run, run, aside, aside, aside, aside]);
        assert_eq!(answers[6..], [BulkheadAnswer::Busy; 2]);
        assert_eq!(admit(3, false), BulkheadAnswer::Move);
        assert_eq!(bulkheads.waiting(3), (4, 2));
        for left in (0..4).rev() {
            assert!(bulkheads.finished(3), "passed on");
            assert_eq!(bulkheads.waiting(3).0, left);
        }
        assert!(!bulkheads.finished(3) && !bulkheads.finished(3) && !bulkheads.finished(0));
        assert_eq!(bulkheads.admit(3, true, true, 10), BulkheadAnswer::Run);
    }

    #[test]
    fn nothing_is_put_aside_where_it_would_hold_up_others() {
        let mut bulkheads = Bulkheads::new(&[(0, 1)]);
        assert_eq!(bulkheads.admit(0, true, true, 2), BulkheadAnswer::Run);
        assert_eq!(bulkheads.admit(0, true, true, 2), BulkheadAnswer::Busy);
        let of_a_batch = bulkheads.admit(0, false, false, 10);
        assert_eq!(of_a_batch, BulkheadAnswer::Busy);
        assert_eq!(bulkheads.admit(0, false, true, 3), BulkheadAnswer::PutAside);
        bulkheads.removed(0);
        bulkheads.removed(0);
        assert_eq!(bulkheads.waiting(0), (0, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(usize, bool),
        Finish(usize),
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_usize, any::<bool>()).prop_map(|(action, is_call)| Step::Arrive(action, is_call)),
            (0..4_usize).prop_map(Step::Finish),
            (0..4_usize).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// The model keeps the requests themselves.
        #[test]
        fn bounds_hold_no_place_is_lost_and_no_request_overtakes(
            steps in prop::collection::vec(step(), 1..200), prefetch in 1..20_usize,
        ) {
            let limits = [(0, 1), (1, 2), (2, 5)];
            let mut bulkheads = Bulkheads::new(&limits);
            let mut running = [0_usize; 4];
            let mut aside: [VecDeque<usize>; 4] = Default::default();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Arrive(action, is_call) => {
                        let limit = limits.get(action).map_or(usize::MAX, |(_, limit)| *limit);
                        let all_aside: usize = aside.iter().map(VecDeque::len).sum();
                        match bulkheads.admit(action, is_call, true, prefetch) {
                            BulkheadAnswer::Run => {
                                prop_assert!(running[action] < limit);
                                prop_assert!(aside[action].is_empty(), "it overtakes");
                                running[action] += 1;
                            }
                            BulkheadAnswer::PutAside => {
                                prop_assert_eq!(running[action], limit);
                                aside[action].push_back(number);
                                prop_assert!(2 * (all_aside + 1) < prefetch);
                            }
                            answer => {
                                prop_assert_eq!(answer == BulkheadAnswer::Busy, is_call);
                                prop_assert_eq!(running[action], limit);
                                prop_assert!(2 * (all_aside + 1) >= prefetch);
                            }
                        }
                    }
                    Step::Finish(action) if running[action] > 0 => {
                        let passed_on = bulkheads.finished(action);
                        prop_assert_eq!(passed_on, aside[action].pop_front().is_some());
                        running[action] -= usize::from(!passed_on);
                    }
                    Step::Remove(action) if aside[action].pop_back().is_some() => {
                        bulkheads.removed(action);
                    }
                    Step::Finish(_) | Step::Remove(_) => {}
                }
                for (action, limit) in limits {
                    prop_assert!(running[action] <= limit);
                    prop_assert_eq!(bulkheads.waiting(action), (aside[action].len(), limit));
                }
            }
        }
    }
}
