//! The order of waiting events, by key.

use std::collections::{HashMap, VecDeque};

/// The waiting items of an ordered subscription: arrivals whose keys have not been read yet, and
/// a queue for each key. Has no lock and reads no clock.
///
/// Each key's queue belongs to one job at a time, which waits, runs or is delayed, and so do the
/// arrivals: any worker of the pool may run these jobs.
pub(super) struct KeyQueues<T> {
    arrivals: VecDeque<T>,
    /// True if there is a job that distributes the arrivals.
    has_arrivals_job: bool,
    by_key: HashMap<String, VecDeque<T>>,
    /// The number of times that the queues were cleared: the broker has requeued the items that
    /// were taken before.
    epoch: u64,
}

impl<T> KeyQueues<T> {
    pub(super) fn new() -> Self {
        Self {
            arrivals: VecDeque::new(),
            has_arrivals_job: false,
            by_key: HashMap::new(),
            epoch: 0,
        }
    }

    /// Adds an arrival; returns true if a job must be submitted for the arrivals.
    pub(super) fn arrive(&mut self, item: T) -> bool {
        self.arrivals.push_back(item);
        !std::mem::replace(&mut self.has_arrivals_job, true)
    }

    /// Takes the next arrival, with the current epoch, for the arrivals' job; `None` ends the job.
    pub(super) fn next_arrival(&mut self) -> Option<(T, u64)> {
        let next = self.arrivals.pop_front();
        self.has_arrivals_job = next.is_some();
        Some((next?, self.epoch))
    }

    /// Appends an item to the queue of its key; returns true if a job must be submitted for the
    /// key. Returns an item that was taken before the last clearing as the error.
    pub(super) fn enter(&mut self, key: &str, item: T, epoch: u64) -> Result<bool, T> {
        if epoch != self.epoch {
            return Err(item);
        }
        if let Some(key_queue) = self.by_key.get_mut(key) {
            key_queue.push_back(item);
            return Ok(false);
        }
        self.by_key.insert(key.to_owned(), VecDeque::from([item]));
        Ok(true)
    }

    /// Takes the first item of a key, with the current epoch, for the key's job, which keeps the
    /// queue.
    pub(super) fn take(&mut self, key: &str) -> Option<(T, u64)> {
        Some((self.by_key.get_mut(key)?.pop_front()?, self.epoch))
    }

    /// Puts an item that is to be processed again back into its place at the front. Returns an item
    /// that was taken before the last clearing as the error.
    pub(super) fn put_back(&mut self, key: &str, item: T, epoch: u64) -> Result<(), T> {
        match self.by_key.get_mut(key) {
            Some(key_queue) if epoch == self.epoch => {
                key_queue.push_front(item);
                Ok(())
            }
            _ => Err(item),
        }
    }

    /// Returns true if a key has more items for its job; otherwise removes the queue, and the job
    /// ends.
    pub(super) fn has_more(&mut self, key: &str) -> bool {
        let more = self
            .by_key
            .get(key)
            .is_some_and(|key_queue| !key_queue.is_empty());
        if !more {
            self.by_key.remove(key);
        }
        more
    }

    /// Returns the number of items that wait.
    pub(super) fn len(&self) -> usize {
        self.arrivals.len() + self.by_key.values().map(VecDeque::len).sum::<usize>()
    }

    /// Removes all items, each key's in order. Running jobs find nothing more, and end.
    pub(super) fn clear(&mut self) -> Vec<T> {
        self.epoch += 1;
        let waiting = self
            .by_key
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
    fn one_job_per_key_and_one_for_the_arrivals() {
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
        assert!(key_queues.by_key.is_empty());
    }

    #[test]
    fn items_taken_before_a_clearing_do_not_come_back() {
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
        // Later items of the key wait for the running job, which cannot put the taken item back.
        key_queues.arrive(1);
        assert_eq!(key_queues.next_arrival(), Some((1, 1)));
        assert_eq!(key_queues.enter("a", 1, 1), Ok(false));
        assert_eq!(key_queues.put_back("a", 1, 0), Err(1));
        assert!(key_queues.has_more("a"));
        assert_eq!(key_queues.take("a"), Some((1, 1)));
    }

    proptest! {
        /// Runs the jobs in random order: each key's items come out in order, one at a time.
        #[test]
        fn keys_keep_their_order(keys in prop::collection::vec(0..4u8, 1..60), turns: u64) {
            let mut random = fastrand::Rng::with_seed(turns);
            let mut key_queues = KeyQueues::new();
            let (mut jobs, mut done): (Vec<Option<String>>, Vec<(u8, usize)>) = (vec![], vec![]);
            let mut arriving: VecDeque<(u8, usize)> =
                keys.iter().enumerate().map(|(n, &key)| (key, n)).collect();
            loop {
                if random.bool() && let Some(item) = arriving.pop_front() {
                    if key_queues.arrive(item) {
                        jobs.push(None);
                    }
                    continue;
                }
                if jobs.is_empty() {
                    if arriving.is_empty() {
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
