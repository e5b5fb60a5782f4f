//! The number of processes that share a rate limit.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::base::catch::catch;

/// The way to count the processes that share a limit; `None` if that is not known now.
pub(crate) type CountPeers = Arc<Count>;

type Count = dyn Fn() -> Option<u32> + Send + Sync;

/// The number of processes that share a limit, as it is set, or was counted last.
pub(super) struct Peers {
    set: Option<u32>,
    /// 0 as long as they were never counted.
    counted: AtomicU32,
    /// Kept by the server that counts.
    count: Mutex<Option<Weak<Count>>>,
}

impl Peers {
    pub(super) fn new(set: Option<u32>) -> Self {
        Self {
            set,
            counted: AtomicU32::new(0),
            count: Mutex::new(None),
        }
    }

    /// Returns the number, at least 1.
    pub(super) fn get(&self) -> u32 {
        let counted = || self.counted.load(Ordering::Relaxed);
        self.set.unwrap_or_else(counted).max(1)
    }

    /// Returns true if the number is set or was counted.
    pub(super) fn is_known(&self) -> bool {
        self.set.is_some() || self.counted.load(Ordering::Relaxed) > 0
    }

    /// Sets the way to count, for as long as `count` is kept.
    pub(super) fn count_by(&self, count: &CountPeers) {
        *self.count.lock() = Some(Arc::downgrade(count));
    }

    /// Counts again, unless the number is set. Blocks as long as that takes.
    pub(super) fn count(&self) {
        let count = self.count.lock().as_ref().and_then(Weak::upgrade);
        if self.set.is_none()
            && let Some(count) = count
            && let Ok(Some(peers)) = catch(|| count())
        {
            self.counted.store(peers.max(1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_set_counts_before_one_that_is_counted() {
        let count: CountPeers = Arc::new(|| Some(8));
        for (set, wanted) in [(None, 8), (Some(3), 3)] {
            let peers = Peers::new(set);
            assert_eq!(
                (peers.get(), peers.is_known()),
                (set.unwrap_or(1), set.is_some())
            );
            peers.count_by(&count);
            peers.count();
            assert_eq!((peers.get(), peers.is_known()), (wanted, true));
        }
    }

    #[test]
    fn the_last_number_stays_when_counting_fails_or_ends() {
        let peers = Peers::new(None);
        let eight: CountPeers = Arc::new(|| Some(8));
        peers.count_by(&eight);
        peers.count();
        drop(eight);
        peers.count();
        for fails in [
            Arc::new(|| None) as CountPeers,
            Arc::new(|| panic!("a test")),
        ] {
            peers.count_by(&fails);
            peers.count();
            assert_eq!(peers.get(), 8);
        }
    }
}
