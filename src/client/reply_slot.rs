use std::cell::Cell;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::call_outcome::CallOutcome;

/// A channel with one slot, for the outcome of one call at a time.
///
/// Making one costs as much as encoding a request, so each thread keeps one for its next
/// call. Whoever is to fill it takes the call out of the pending table before, and whoever
/// waits either takes the call out itself, or takes the outcome: so one that is given back
/// is empty, and stays so. One whose outcome has been decided and has not come is not.
#[derive(Clone)]
pub(super) struct ReplySlot {
    sender: Sender<CallOutcome>,
    pub(super) outcome: Receiver<CallOutcome>,
}

thread_local! {
    static SPARE: Cell<Option<ReplySlot>> = const { Cell::new(None) };
}

impl ReplySlot {
    /// This thread's, or another if that is in use.
    pub(super) fn take() -> Self {
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        spare.unwrap_or_else(|| {
            let (sender, outcome) = bounded(1);
            Self { sender, outcome }
        })
    }

    pub(super) fn sender(&self) -> Sender<CallOutcome> {
        self.sender.clone()
    }

    /// For the next call: its own call has ended, and its outcome been taken, if there was
    /// one.
    pub(super) fn put_back(self) {
        let _ = SPARE.try_with(|spare| spare.set(Some(self)));
    }
}
