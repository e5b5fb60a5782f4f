use std::collections::{HashMap, VecDeque};

/// What waits its turn where the order matters: arrivals that nobody has looked at, and
/// a lane for each key. A plain struct with no lock and no clock of its own.
///
/// Each lane that is not empty belongs to one job at a time, waiting, running or put
/// off, and so does looking at the arrivals: the pool may run them anywhere.
pub(super) struct KeyQueues<T> {
    arrivals: VecDeque<T>,
    /// A job looks, or will look, at the arrivals.
    sorting: bool,
    key_queues: HashMap<String, VecDeque<T>>,
    /// How often it was cleared: what was taken out before that is the broker's again.
    epoch: u64,
}

impl<T> KeyQueues<T> {
    pub(super) fn new() -> Self {
        Self {
            arrivals: VecDeque::new(),
            sorting: false,
            key_queues: HashMap::new(),
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
        if let Some(key_queue) = self.key_queues.get_mut(key) {
            key_queue.push_back(item);
            return Ok(false);
        }
        self.key_queues
            .insert(key.to_owned(), VecDeque::from([item]));
        Ok(true)
    }

    /// For a lane's job: the first item and the epoch it is of. The lane stays its.
    pub(super) fn take(&mut self, key: &str) -> Option<(T, u64)> {
        Some((self.key_queues.get_mut(key)?.pop_front()?, self.epoch))
    }

    /// The item comes again: it keeps its place. Hands back what was taken before the
    /// last clearing.
    pub(super) fn put_back(&mut self, key: &str, item: T, epoch: u64) -> Result<(), T> {
        match self.key_queues.get_mut(key) {
            Some(key_queue) if epoch == self.epoch => {
                key_queue.push_front(item);
                Ok(())
            }
            _ => Err(item),
        }
    }

    /// An item is done with; true if the lane has more for its job, else it is over.
    pub(super) fn has_more(&mut self, key: &str) -> bool {
        let more = self
            .key_queues
            .get(key)
            .is_some_and(|key_queue| !key_queue.is_empty());
        if !more {
            self.key_queues.remove(key);
        }
        more
    }

    /// The number of items that wait.
    pub(super) fn len(&self) -> usize {
        self.arrivals.len() + self.key_queues.values().map(VecDeque::len).sum::<usize>()
    }

    /// Takes out everything that waits, each key's in order. The jobs there are find
    /// nothing, and end.
    pub(super) fn clear(&mut self) -> Vec<T> {
        self.epoch += 1;
        let waiting = self
            .key_queues
            .values_mut()
            .flat_map(|key_queue| key_queue.drain(..));
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
        let mut key_queues = KeyQueues::new();
        assert!(key_queues.arrive(1));
        assert!(!key_queues.arrive(2));
        assert_eq!(key_queues.next_arrival(), Some((1, 0)));
        assert_eq!(key_queues.enter("a", 1, 0), Ok(true));
        assert_eq!(key_queues.next_arrival(), Some((2, 0)));
        assert_eq!(key_queues.enter("a", 2, 0), Ok(false));
        assert!(key_queues.next_arrival().is_none());
        assert!(key_queues.arrive(3), "the next arrival needs another job");
        assert_eq!(key_queues.take("a"), Some((1, 0)));
        assert_eq!(key_queues.put_back("a", 1, 0), Ok(()));
        assert_eq!(key_queues.take("a"), Some((1, 0)));
        assert!(key_queues.has_more("a"));
        assert_eq!(key_queues.take("a"), Some((2, 0)));
        assert!(!key_queues.has_more("a"));
        assert_eq!(key_queues.clear(), [3]);
        assert!(key_queues.take("a").is_none());
        assert!(key_queues.key_queues.is_empty());
    }

    #[test]
    fn what_was_taken_before_a_clearing_does_not_come_back() {
        let mut key_queues = KeyQueues::new();
        for n in 1..=3 {
            key_queues.arrive(n);
        }
        assert_eq!(key_queues.next_arrival(), Some((1, 0)));
        assert_eq!(key_queues.enter("a", 1, 0), Ok(true));
        assert_eq!(key_queues.take("a"), Some((1, 0)));
        assert_eq!(key_queues.next_arrival(), Some((2, 0)));
        assert_eq!(key_queues.clear(), [3]);
        assert_eq!(key_queues.enter("a", 2, 0), Err(2));
        // Its successors wait until it is over, and then it is over for good.
        key_queues.arrive(1);
        assert_eq!(key_queues.next_arrival(), Some((1, 1)));
        assert_eq!(key_queues.enter("a", 1, 1), Ok(false));
        assert_eq!(key_queues.put_back("a", 1, 0), Err(1));
        assert!(key_queues.has_more("a"));
        assert_eq!(key_queues.take("a"), Some((1, 1)));
    }

    proptest! {
        /// However jobs take turns, each key's items come out in order, one at a time.
        #[test]
        fn keys_keep_their_order(keys in prop::collection::vec(0..4u8, 1..60), turns: u64) {
            let mut random = fastrand::Rng::with_seed(turns);
            let mut key_queues = KeyQueues::new();
            let (mut jobs, mut done): (Vec<Option<String>>, Vec<(u8, usize)>) = (vec![], vec![]);
            let mut coming: VecDeque<(u8, usize)> =
                keys.iter().enumerate().map(|(n, &key)| (key, n)).collect();
            loop {
                if random.bool() && let Some(item) = coming.pop_front() {
                    if key_queues.arrive(item) {
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
                    None => while let Some((item, epoch)) = key_queues.next_arrival() {
                        let key = item.0.to_string();
                        if key_queues.enter(&key, item, epoch) == Ok(true) {
                            jobs.push(Some(key));
                        }
                    },
                    Some(key) => {
                        let (item, epoch) = key_queues.take(&key).unwrap();
                        if random.u8(..4) == 0 {
                            prop_assert!(key_queues.put_back(&key, item, epoch).is_ok());
                            jobs.push(Some(key));
                            continue;
                        }
                        done.push(item);
                        if key_queues.has_more(&key) {
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
