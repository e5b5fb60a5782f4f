//! A bounded table of the states that a limit has for each key.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// The state of a limit for one key.
pub(super) trait Bucket {
    /// Returns the moment from which the state may be forgotten without loss, as it is then that of
    /// a new key; `None` if it may be at any time. The moment never moves back.
    fn idle_at(&self) -> Option<Instant>;
}

/// A bounded table of buckets by key.
///
/// A key that does not fit takes the place of an idle one; without any, of the one that is idle
/// soonest. That is the one by whose loss the fewest calls are admitted too many: at most those of
/// one burst. So a flood of new keys does not displace a key that is at its limit, which the least
/// recent use as a rule would let it do.
///
/// The queue has one entry for each bucket, with a moment that may be too early. An entry that is
/// looked at gets the true one, so that a call changes its bucket only.
#[derive(Debug)]
pub(super) struct KeyedTable<B> {
    most: usize,
    buckets: HashMap<Arc<str>, B>,
    /// The keys by the moments at which their buckets are idle, or earlier ones.
    by_idle: BinaryHeap<Reverse<(Option<Instant>, Arc<str>)>>,
}

impl<B: Bucket> KeyedTable<B> {
    /// Creates a table of at most so many keys, of at least one.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            buckets: HashMap::new(),
            by_idle: BinaryHeap::new(),
        }
    }

    /// Returns the bucket of a key, or `new` for a key that has none.
    pub(super) fn entry(&mut self, key: &str, now: Instant, new: impl FnOnce() -> B) -> &mut B {
        // Looked up twice: the borrow checker does not see that the first borrow has ended.
        if !self.buckets.contains_key(key) {
            while self.buckets.len() >= self.most {
                self.forget_one(now);
            }
            let key: Arc<str> = key.into();
            self.by_idle.push(Reverse((None, Arc::clone(&key))));
            self.buckets.insert(key, new());
        }
        self.buckets.get_mut(key).unwrap_or_else(|| unreachable!())
    }

    /// Returns the bucket of a key, if it has one.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut B> {
        self.buckets.get_mut(key)
    }

    /// Removes the bucket that is idle first.
    fn forget_one(&mut self, now: Instant) {
        while let Some(Reverse((moment, key))) = self.by_idle.pop() {
            let idle_at = self.buckets.get(&key).and_then(Bucket::idle_at);
            let is_idle = idle_at.is_none_or(|idle_at| idle_at <= now);
            if is_idle || idle_at == moment {
                self.buckets.remove(&key);
                return;
            }
            self.by_idle.push(Reverse((idle_at, key)));
        }
        self.buckets.clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::resilience::gcra::Gcra;
    use crate::resilience::rate::Rate;

    const MS: Duration = Duration::from_millis(1);

    fn admits(table: &mut KeyedTable<Gcra>, rate: &Rate, key: &str, now: Instant) -> bool {
        let gcra = table.entry(key, now, || Gcra::new(rate));
        gcra.reserve(now, Duration::ZERO).is_ok()
    }

    #[test]
    fn idle_keys_are_forgotten_first_and_then_those_that_lose_least() {
        let rate = Rate::per_second(10).burst(3);
        let mut table = KeyedTable::new(3);
        let start = Instant::now();
        for _ in 0..3 {
            assert!(admits(&mut table, &rate, "full", start));
        }
        assert!(admits(&mut table, &rate, "one", start + MS));
        assert!(admits(&mut table, &rate, "two", start + 2 * MS));
        assert!(admits(&mut table, &rate, "two", start + 2 * MS));
        // None is idle: "one" would be first.
        assert!(admits(&mut table, &rate, "new", start + 3 * MS));
        assert!(table.get_mut("one").is_none());
        assert!(!admits(&mut table, &rate, "full", start + 3 * MS));
        // "new" and "two" are idle by now, and "full" is not.
        let later = start + 210 * MS;
        assert!(admits(&mut table, &rate, "a", later));
        assert!(admits(&mut table, &rate, "b", later));
        assert!(table.get_mut("full").is_some());
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn a_flood_of_keys_displaces_no_key_at_its_limit() {
        let rate = Rate::per_second(1).burst(5);
        let mut table = KeyedTable::new(100);
        let now = Instant::now();
        while admits(&mut table, &rate, "at its limit", now) {}
        for n in 0..10_000 {
            assert!(admits(&mut table, &rate, &n.to_string(), now));
        }
        assert!(!admits(&mut table, &rate, "at its limit", now));
        assert_eq!(table.len(), 100);
    }

    proptest! {
        /// The model: a limit for each key, created anew when the table has forgotten the key.
        #[test]
        fn each_key_has_its_rate_and_a_forgotten_one_at_most_one_burst_more(
            calls in 1..50u32,
            burst in 1..6u32,
            most in 1..6usize,
            steps in prop::collection::vec((0..8usize, 0..80u64), 1..300),
        ) {
            let rate = Rate::per_second(calls).burst(burst);
            let mut table = KeyedTable::new(most);
            let mut model: HashMap<String, (Gcra, Vec<Vec<Instant>>)> = HashMap::new();
            let mut now = Instant::now();
            for (key, pause) in steps {
                now += pause as u32 * MS;
                let key = format!("k{key}");
                let is_known = table.get_mut(&key).is_some();
                let (gcra, lives) = model
                    .entry(key.clone())
                    .or_insert_with(|| (Gcra::new(&rate), Vec::new()));
                if !is_known {
                    *gcra = Gcra::new(&rate);
                    lives.push(Vec::new());
                }
                let admitted = admits(&mut table, &rate, &key, now);
                prop_assert_eq!(admitted, gcra.reserve(now, Duration::ZERO).is_ok());
                if admitted {
                    lives.last_mut().expect("a life").push(now);
                }
                prop_assert!(table.len() <= most);
                prop_assert_eq!(table.by_idle.len(), table.len());
            }
            for (_, lives) in model.values() {
                for moments in lives {
                    for (n, first) in moments.iter().enumerate() {
                        for (count, last) in (1u32..).zip(&moments[n..]) {
                            let seconds = (*last - *first).as_secs_f64();
                            let bound = f64::from(calls) * seconds + f64::from(burst);
                            prop_assert!(f64::from(count) <= bound + 1e-6);
                        }
                    }
                }
            }
        }
    }
}
