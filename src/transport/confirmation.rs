//! Publisher confirms: whether the broker accepted a message, and if not, why.
//!
//! A confirm is a pair, like the two ends of a channel: the transport settles the
//! [`ConfirmSender`], and the publisher waits on the [`ConfirmReceiver`].

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::confirm_tally::{Answer, TallyPlace};
use crate::base::callbacks::Notifier;

/// The outcome of a message published with a confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConfirmOutcome {
    /// The broker accepted the message.
    Confirmed,
    /// The broker returned the message, which no queue was bound for; the broker's reason.
    Returned(String),
    /// The broker refused the message; the reason.
    Refused(String),
    /// The message is larger than the broker accepts; the limit, if the broker named it.
    TooLarge(Option<usize>),
    /// The connection was lost before the confirm; the cause.
    Lost(Arc<str>),
    /// The transport dropped the message, for example because it was closed.
    Dropped,
}

impl ConfirmOutcome {
    fn answer(&self) -> Answer {
        match self {
            Self::Confirmed | Self::Returned(_) => Answer::Confirmed,
            Self::Refused(_) | Self::TooLarge(_) => Answer::Refused,
            Self::Lost(_) | Self::Dropped => Answer::None,
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    decided: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<ConfirmOutcome>,
    /// Notified when the outcome is decided.
    notifier: Option<Notifier>,
}

/// The transport's end of a confirm. Dropping it settles it with [`ConfirmOutcome::Dropped`], so
/// that no thread waits for the confirm of a message that is gone.
pub(crate) struct ConfirmSender {
    shared: Arc<Shared>,
    /// The message's place in the tally of its lane.
    place: Option<TallyPlace>,
    _permit: Permit,
}

/// The publisher's end of a confirm.
pub(crate) struct ConfirmReceiver {
    shared: Arc<Shared>,
}

pub(crate) fn pair(permit: Permit) -> (ConfirmSender, ConfirmReceiver) {
    let shared = Arc::new(Shared::default());
    let confirm = ConfirmSender {
        shared: Arc::clone(&shared),
        place: None,
        _permit: permit,
    };
    (confirm, ConfirmReceiver { shared })
}

impl ConfirmSender {
    /// Counts the message in the tally of its lane until the outcome is settled.
    pub(super) fn counted(mut self, place: TallyPlace) -> Self {
        self.place = Some(place);
        self
    }

    /// Records that the message is sent, and the broker's answer is due.
    pub(crate) fn sent(&mut self) {
        if let Some(place) = &mut self.place {
            place.sent(Instant::now());
        }
    }

    /// Records that the message was lost and waits to be sent again.
    pub(crate) fn unsent(&mut self) {
        if let Some(place) = &mut self.place {
            place.unsent();
        }
    }

    pub(crate) fn settle(mut self, outcome: ConfirmOutcome) {
        if let Some(place) = self.place.take() {
            place.answered(outcome.answer());
        }
        self.decide(outcome);
    }

    fn decide(&self, outcome: ConfirmOutcome) {
        let mut state = self.shared.state.lock();
        state.outcome.get_or_insert(outcome);
        let notifier = state.notifier.take();
        drop(state);
        self.shared.decided.notify_all();
        if let Some(notifier) = notifier {
            notifier.notify();
        }
    }
}

impl Drop for ConfirmSender {
    fn drop(&mut self) {
        self.decide(ConfirmOutcome::Dropped);
    }
}

impl ConfirmReceiver {
    /// Blocks until the outcome is known, at most until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> Option<ConfirmOutcome> {
        let mut state = self.shared.state.lock();
        while state.outcome.is_none() {
            let decided = &self.shared.decided;
            if decided.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.outcome.clone()
    }

    /// Returns true if the outcome is known.
    pub(crate) fn is_decided(&self) -> bool {
        self.shared.state.lock().outcome.is_some()
    }

    /// Registers `notifier` to be notified when the outcome is decided after this; replaces the
    /// one before.
    pub(crate) fn set_notifier(&self, notifier: Notifier) {
        self.shared.state.lock().notifier = Some(notifier);
    }
}

/// A bound on the number of unconfirmed messages. Publishers block at the bound, so that a broker
/// that confirms slowly slows them down.
pub(crate) struct ConfirmWindow {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The permit of one unconfirmed message in a [`ConfirmWindow`], returned on drop.
pub(crate) struct Permit(Arc<ConfirmWindow>);

impl ConfirmWindow {
    pub(crate) fn new(messages: usize) -> Self {
        Self {
            free: Mutex::new(messages),
            freed: Condvar::new(),
        }
    }

    /// Blocks until fewer messages than the bound are unconfirmed, at most until `deadline`.
    pub(crate) fn enter(self: &Arc<Self>, deadline: Instant) -> Option<Permit> {
        let mut free = self.free.lock();
        while *free == 0 {
            if self.freed.wait_until(&mut free, deadline).timed_out() && *free == 0 {
                return None;
            }
        }
        *free -= 1;
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn a_confirm_is_settled_once_and_on_drop() {
        let window = Arc::new(ConfirmWindow::new(1));
        let (confirm, confirmation) = pair(window.enter(soon()).unwrap());
        assert_eq!(confirmation.wait(soon()), None);
        assert!(window.enter(soon()).is_none(), "one at a time");
        let waiting =
            thread::spawn(move || confirmation.wait(Instant::now() + Duration::from_secs(60)));
        confirm.settle(ConfirmOutcome::Confirmed);
        assert_eq!(waiting.join().unwrap(), Some(ConfirmOutcome::Confirmed));
        let (confirm, confirmation) = pair(window.enter(soon()).expect("room again"));
        drop(confirm);
        assert_eq!(confirmation.wait(soon()), Some(ConfirmOutcome::Dropped));
    }

    #[test]
    fn entering_blocks_until_a_permit_is_returned() {
        let window = Arc::new(ConfirmWindow::new(1));
        let permit = window.enter(soon()).unwrap();
        let other = Arc::clone(&window);
        let waiting = thread::spawn(move || {
            other
                .enter(Instant::now() + Duration::from_secs(60))
                .is_some()
        });
        thread::sleep(Duration::from_millis(10));
        drop(permit);
        assert!(waiting.join().unwrap());
    }
}
