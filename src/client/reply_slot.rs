//! The channel by which a caller gets its outcome.

use std::cell::Cell;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::call_outcome::CallOutcome;

/// A channel with one slot, for the outcome of one call at a time.
///
/// Making one costs as much as encoding a request, so each thread keeps one for its next
/// call. The thread that fills it takes the call out of the pending table first, and the
/// caller either takes the call out itself, or takes the outcome: so a slot that is put back
/// is empty, and stays so. A slot whose outcome was decided and never came is not put back.
#[derive(Clone)]
pub(super) struct ReplySlot {
    sender: Sender<CallOutcome>,
    pub(super) outcome: Receiver<CallOutcome>,
}

thread_local! {
    static SPARE: Cell<Option<ReplySlot>> = const { Cell::new(None) };
}

impl ReplySlot {
    /// Takes this thread's slot, or creates one if that is in use.
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

    /// Keeps the slot for this thread's next call. The call has ended, and its outcome was
    /// taken if there was one.
    pub(super) fn put_back(self) {
        let _ = SPARE.try_with(|spare| spare.set(Some(self)));
    }
}
