use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const ABANDONED: u8 = 2;
/// Sent once, over a connection that was lost, and waiting to be sent again.
const QUEUED_AGAIN: u8 = 3;
const ABANDONED_LATER: u8 = 4;
const SENT_AGAIN: u8 = 5;

/// Whether a queued message has been sent: the one fact that the thread that
/// waits for its outcome and the thread that sends it must agree on.
///
/// A message leaves `queued` once, either way, so a caller whose deadline
/// passes knows for certain whether its request can still go out, and whether
/// it ever did.
#[derive(Debug)]
pub(crate) struct SendState {
    state: AtomicU8,
    deadline: Instant,
}

impl SendState {
    /// For a message that is not to be sent after `deadline`.
    pub(crate) fn until(deadline: Instant) -> Self {
        Self {
            state: AtomicU8::new(QUEUED),
            deadline,
        }
    }

    /// For the sender: may the message be sent? `false` means that its owner
    /// gave up on it, or will now, because it is too late.
    pub(crate) fn start_sending(&self) -> bool {
        Instant::now() < self.deadline
            && (self.turn(QUEUED, SENT) || self.turn(QUEUED_AGAIN, SENT_AGAIN))
    }

    /// For the sender: what was sent is lost and waits to be sent again.
    pub(crate) fn queue_again(&self) {
        let _ = self.turn(SENT, QUEUED_AGAIN) || self.turn(SENT_AGAIN, QUEUED_AGAIN);
    }

    /// For the sender: what was sent came back, so it certainly did not run, and waits to be
    /// sent elsewhere.
    pub(crate) fn came_back(&self) {
        let _ = self.turn(SENT, QUEUED) || self.turn(SENT_AGAIN, QUEUED_AGAIN);
    }

    /// For the owner: gives up on the message. `false` means that it was sent.
    pub(crate) fn abandon(&self) -> bool {
        self.turn(QUEUED_AGAIN, ABANDONED_LATER);
        self.turn(QUEUED, ABANDONED) || !self.was_sent()
    }

    /// It will not be sent any more: its owner gave up on it, or it is too late.
    pub(crate) fn is_expired(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        matches!(state, ABANDONED | ABANDONED_LATER) || Instant::now() >= self.deadline
    }

    /// It was sent and not lost since.
    pub(crate) fn is_sent(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), SENT | SENT_AGAIN)
    }

    /// It was sent, lost, and sent again: what became of the first is unknown.
    pub(crate) fn was_resent(&self) -> bool {
        !matches!(
            self.state.load(Ordering::Acquire),
            QUEUED | SENT | ABANDONED
        )
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long it may still be sent; at least a millisecond.
    pub(crate) fn left(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    }

    fn was_sent(&self) -> bool {
        !matches!(self.state.load(Ordering::Acquire), QUEUED | ABANDONED)
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> SendState {
        SendState::until(Instant::now() + Duration::from_secs(60))
    }

    #[test]
    fn nothing_is_sent_too_late() {
        let send_state = SendState::until(Instant::now());
        assert!(!send_state.start_sending());
        assert!(send_state.abandon());
    }

    #[test]
    fn is_sent_or_abandoned_never_both() {
        let send_state = fresh();
        assert!(send_state.start_sending());
        assert!(!send_state.abandon());
        assert!(send_state.is_sent());

        let send_state = fresh();
        assert!(send_state.abandon());
        assert!(!send_state.start_sending());
        assert!(!send_state.is_sent());
    }

    #[test]
    fn what_was_sent_once_is_never_called_unsent() {
        let send_state = fresh();
        assert!(send_state.start_sending());
        send_state.queue_again();
        assert!(!send_state.is_sent());
        assert!(!send_state.abandon(), "it may have run");
        assert!(!send_state.start_sending(), "and is not sent again");

        let send_state = fresh();
        assert!(send_state.start_sending());
        send_state.queue_again();
        assert!(send_state.start_sending());
        assert!(send_state.is_sent() && send_state.was_resent());
        assert!(!send_state.abandon());
    }

    #[test]
    fn what_came_back_is_sent_elsewhere_or_never_was() {
        let send_state = fresh();
        assert!(send_state.start_sending());
        send_state.came_back();
        assert!(!send_state.is_sent());
        assert!(send_state.start_sending());
        assert!(send_state.is_sent() && !send_state.was_resent());
        send_state.came_back();
        assert!(send_state.abandon(), "it did not run");
    }

    #[test]
    fn racing_threads_agree() {
        for _ in 0..2_000 {
            let send_state = fresh();
            let (sent, given_up) = std::thread::scope(|scope| {
                let sender = scope.spawn(|| send_state.start_sending());
                let given_up = send_state.abandon();
                (sender.join().unwrap(), given_up)
            });
            assert_ne!(sent, given_up);
        }
    }
}
