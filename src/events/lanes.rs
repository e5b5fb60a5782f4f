use std::collections::{HashMap, VecDeque};

/// What waits its turn where the order matters: arrivals that nobody has looked at, and
/// a lane for each key. A plain struct with no lock and no clock of its own.
///
/// Each lane that is not empty belongs to one job at a time, waiting, running or put
/// off, and so does looking at the arrivals: the pool may run them anywhere.
pub(super) struct Lanes<T> {
    arrivals: VecDeque<T>,
    /// A job looks, or will look, at the arrivals.
    sorting: bool,
    lanes: HashMap<String, VecDeque<T>>,
    /// How often it was cleared: what was taken out before that is the broker's again.
    epoch: u64,
}

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self {
            arrivals: VecDeque::new(),
            sorting: false,
            lanes: HashMap::new(),
            epoch: 0,
        }
    }

    /// Adds an arrival; true if a job must be made that looks at it.
    pub(super) fn arrive(&mut self, item: T) -> bool {
        self.arrivals.push_back(item);
        !std::mem::replace(&mut self.sorting, true)
    }

    /// For that job: the next arrival and the epoch it is of, or the job's end.
    pub(super) fn next_arrival(&mut self) -> Option<(T, u64)> {
        let next = self.arrivals.pop_front();
        self.sorting = next.is_some();
        Some((next?, self.epoch))
    }

    /// Puts an item behind those of its key; true if a job must be made for the lane.
    /// Hands back what was taken before the last clearing.
    pub(super) fn enter(&mut self, key: &str, item: T, epoch: u64) -> Result<bool, T> {
        if epoch != self.epoch {
            return Err(item);
        }
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.push_back(item);
            return Ok(false);
        }
        self.lanes.insert(key.to_owned(), VecDeque::from([item]));
        Ok(true)
    }

    /// For a lane's job: the first item and the epoch it is of. The lane stays its.
    pub(super) fn take(&mut self, key: &str) -> Option<(T, u64)> {
        Some((self.lanes.get_mut(key)?.pop_front()?, self.epoch))
    }

    /// The item comes again: it keeps its place. Hands back what was taken before the
    /// last clearing.
    pub(super) fn put_back(&mut self, key: &str, item: T, epoch: u64) -> Result<(), T> {
        match self.lanes.get_mut(key) {
            Some(lane) if epoch == self.epoch => {
                lane.push_front(item);
                Ok(())
            }
            _ => Err(item),
        }
    }

    /// An item is done with; true if the lane has more for its job, else it is over.
    pub(super) fn has_more(&mut self, key: &str) -> bool {
        let more = self.lanes.get(key).is_some_and(|lane| !lane.is_empty());
        if !more {
            self.lanes.remove(key);
        }
        more
    }

    /// The number of items that wait.
    pub(super) fn len(&self) -> usize {
        self.arrivals.len() + self.lanes.values().map(VecDeque::len).sum::<usize>()
    }

    /// Takes out everything that waits, each key's in order. The jobs there are find
    /// nothing, and end.
    pub(super) fn clear(&mut self) -> Vec<T> {
        self.epoch += 1;
        let waiting = self.lanes.values_mut().flat_map(|lane| lane.drain(..));
        let mut all: Vec<T> = waiting.collect();
        all.extend(self.arrivals.drain(..));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_job_a_lane_and_one_for_the_arrivals() {
        let mut lanes = Lanes::new();
        assert!(lanes.arrive(1));
        assert!(!lanes.arrive(2));
        assert_eq!(lanes.next_arrival(), Some((1, 0)));
        assert_eq!(lanes.enter("a", 1, 0), Ok(true));
        assert_eq!(lanes.next_arrival(), Some((2, 0)));
        assert_eq!(lanes.enter("a", 2, 0), Ok(false));
        assert!(lanes.next_arrival().is_none());
        assert!(lanes.arrive(3), "the next arrival needs another job");
        assert_eq!(lanes.take("a"), Some((1, 0)));
        assert_eq!(lanes.put_back("a", 1, 0), Ok(()));
        assert_eq!(lanes.take("a"), Some((1, 0)));
        assert!(lanes.has_more("a"));
        assert_eq!(lanes.take("a"), Some((2, 0)));
        assert!(!lanes.has_more("a"));
        assert_eq!(lanes.clear(), [3]);
        assert!(lanes.take("a").is_none());
        assert!(lanes.lanes.is_empty());
    }

    #[test]
    fn what_was_taken_before_a_clearing_does_not_come_back() {
        let mut lanes = Lanes::new();
        for n in 1..=3 {
            lanes.arrive(n);
        }
        assert_eq!(lanes.next_arrival(), Some((1, 0)));
        assert_eq!(lanes.enter("a", 1, 0), Ok(true));
        assert_eq!(lanes.take("a"), Some((1, 0)));
        assert_eq!(lanes.next_arrival(), Some((2, 0)));
        assert_eq!(lanes.clear(), [3]);
        assert_eq!(lanes.enter("a", 2, 0), Err(2));
        // Its successors wait until it is over, and then it is over for good.
        lanes.arrive(1);
        assert_eq!(lanes.next_arrival(), Some((1, 1)));
        assert_eq!(lanes.enter("a", 1, 1), Ok(false));
        assert_eq!(lanes.put_back("a", 1, 0), Err(1));
        assert!(lanes.has_more("a"));
        assert_eq!(lanes.take("a"), Some((1, 1)));
    }

    proptest! {
        /// However jobs take turns, each key's items come out in order, one at a time.
        #[test]
        fn keys_keep_their_order(keys in prop::collection::vec(0..4u8, 1..60), turns: u64) {
            let mut random = fastrand::Rng::with_seed(turns);
            let mut lanes = Lanes::new();
            let (mut jobs, mut done): (Vec<Option<String>>, Vec<(u8, usize)>) = (vec![], vec![]);
            let mut coming: VecDeque<(u8, usize)> =
                keys.iter().enumerate().map(|(n, &key)| (key, n)).collect();
            loop {
                if random.bool() && let Some(item) = coming.pop_front() {
                    if lanes.arrive(item) {
                        jobs.push(None);
                    }
                    continue;
                }
                if jobs.is_empty() {
                    if coming.is_empty() {
                        break;
                    }
                    continue;
                }
                let job = jobs.swap_remove(random.usize(..jobs.len()));
                match job {
                    None => while let Some((item, epoch)) = lanes.next_arrival() {
                        let key = item.0.to_string();
                        if lanes.enter(&key, item, epoch) == Ok(true) {
                            jobs.push(Some(key));
                        }
                    },
                    Some(key) => {
                        let (item, epoch) = lanes.take(&key).unwrap();
                        if random.u8(..4) == 0 {
                            prop_assert!(lanes.put_back(&key, item, epoch).is_ok());
                            jobs.push(Some(key));
                            continue;
                        }
                        done.push(item);
                        if lanes.has_more(&key) {
                            jobs.push(Some(key));
                        }
                    }
                }
            }
            prop_assert_eq!(done.len(), keys.len());
            for key in 0..4 {
                let numbers: Vec<usize> =
                    done.iter().filter(|(k, _)| *k == key).map(|(_, n)| *n).collect();
                prop_assert!(numbers.is_sorted());
            }
        }
    }
}
