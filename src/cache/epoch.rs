//! The state of an action's event subscriptions: whether they consume, and since when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A number that changes when one of the subscriptions stops consuming, and when it consumes again.
/// Two responses with the same number have missed the same events.
#[derive(Default)]
pub(super) struct Epoch {
    number: AtomicU64,
    down: AtomicUsize,
}

impl Epoch {
    /// Returns the number.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// Returns true if one of the subscriptions does not consume: events are missed.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst) > 0
    }
}

/// One subscription's part in an [`Epoch`]. It does not consume at first.
pub(super) struct Consuming {
    epoch: Arc<Epoch>,
    is_up: AtomicBool,
}

impl Consuming {
    pub(super) fn not_yet(epoch: &Arc<Epoch>) -> Self {
        epoch.down.fetch_add(1, Ordering::SeqCst);
        Self {
            epoch: Arc::clone(epoch),
            is_up: AtomicBool::new(false),
        }
    }

    /// Records that the subscription consumes.
    pub(super) fn begin(&self) {
        if !self.is_up.swap(true, Ordering::SeqCst) {
            // In this order: no response from before may count as one from now, however briefly.
            self.epoch.number.fetch_add(1, Ordering::SeqCst);
            self.epoch.down.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Records that the subscription does not consume any more.
    pub(super) fn end(&self) {
        if self.is_up.swap(false, Ordering::SeqCst) {
            self.epoch.down.fetch_add(1, Ordering::SeqCst);
            self.epoch.number.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_down_until_all_subscriptions_consume() {
        let epoch = Arc::new(Epoch::default());
        assert!(!epoch.is_down(), "there is nothing to miss");
        let [one, two] = [(); 2].map(|()| Consuming::not_yet(&epoch));
        one.begin();
        assert!(epoch.is_down());
        two.begin();
        assert!(!epoch.is_down());
        let before = epoch.number();
        one.begin(); // reported twice
        assert_eq!(epoch.number(), before);
        one.end();
        one.end();
        assert!(epoch.is_down());
        let lost = epoch.number();
        assert_ne!(lost, before);
        one.begin();
        assert!(!epoch.is_down());
        assert!(![before, lost].contains(&epoch.number()));
    }
}
