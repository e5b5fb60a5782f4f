//! The state of a queued message, between its owner and the sending thread.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const ABANDONED: u8 = 2;
/// Sent once, over a connection that was lost, and queued to be sent again.
const QUEUED_AGAIN: u8 = 3;
const ABANDONED_LATER: u8 = 4;
const SENT_AGAIN: u8 = 5;

/// The send state of a queued message, on which the thread that waits for its outcome and the
/// thread that sends it must agree.
///
/// A message leaves `QUEUED` once, either way, so a caller whose deadline passes knows for certain
/// whether its request can still be sent, and whether it ever was.
#[derive(Debug)]
pub(crate) struct SendState {
    state: AtomicU8,
    deadline: Instant,
    /// True if the message expires when its owner stops waiting.
    expires_with_owner: bool,
}

impl SendState {
    /// Creates the state of a message that must not be sent after `deadline`.
    pub(crate) fn until(deadline: Instant) -> Self {
        Self {
            state: AtomicU8::new(QUEUED),
            deadline,
            expires_with_owner: true,
        }
    }

    /// Creates the state of a message that must not be sent after `deadline`, and keeps the
    /// expiration that it has: a copy, which lives on when its sender has stopped waiting.
    pub(crate) fn of_copy(deadline: Instant) -> Self {
        Self {
            expires_with_owner: false,
            ..Self::until(deadline)
        }
    }

    /// Returns true if the message expires when its owner stops waiting.
    pub(crate) fn expires_with_owner(&self) -> bool {
        self.expires_with_owner
    }

    /// Marks the message as sent, for the sending thread. Returns false if its owner has abandoned
    /// it, or its deadline has passed.
    pub(crate) fn start_sending(&self) -> bool {
        Instant::now() < self.deadline
            && (self.transition(QUEUED, SENT) || self.transition(QUEUED_AGAIN, SENT_AGAIN))
    }

    /// Marks a sent message as lost and queued to be sent again, for the sending thread.
    pub(crate) fn queue_again(&self) {
        let _ = self.transition(SENT, QUEUED_AGAIN) || self.transition(SENT_AGAIN, QUEUED_AGAIN);
    }

    /// Marks a sent message as returned by the broker: it certainly did not run, and is queued to
    /// be sent elsewhere.
    pub(crate) fn mark_returned(&self) {
        let _ = self.transition(SENT, QUEUED) || self.transition(SENT_AGAIN, QUEUED_AGAIN);
    }

    /// Abandons the message, for its owner. Returns false if it was sent.
    pub(crate) fn abandon(&self) -> bool {
        self.transition(QUEUED_AGAIN, ABANDONED_LATER);
        self.transition(QUEUED, ABANDONED) || !self.was_sent()
    }

    /// Returns true if the message will not be sent any more: its owner has abandoned it, or its
    /// deadline has passed.
    pub(crate) fn is_expired(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        matches!(state, ABANDONED | ABANDONED_LATER) || Instant::now() >= self.deadline
    }

    /// Returns true if the message was sent and not lost since.
    pub(crate) fn is_sent(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), SENT | SENT_AGAIN)
    }

    /// Returns true if the message was sent, lost, and queued or sent again: the outcome of the
    /// first sending is unknown.
    pub(crate) fn was_resent(&self) -> bool {
        !matches!(
            self.state.load(Ordering::Acquire),
            QUEUED | SENT | ABANDONED
        )
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the time until the deadline; at least a millisecond.
    pub(crate) fn time_left(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    }

    fn was_sent(&self) -> bool {
        !matches!(self.state.load(Ordering::Acquire), QUEUED | ABANDONED)
    }

    fn transition(&self, from: u8, to: u8) -> bool {
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
    fn a_copy_keeps_its_expiration() {
        let hour = Duration::from_secs(3_600);
        let far = Instant::now() + Duration::from_secs(60);
        let expires_in = |send_state: SendState| {
            let mut publication = crate::transport::Publication::new("", "queue", Vec::new());
            publication.properties.expiration = Some(hour);
            publication.send_state = Some(send_state.into());
            assert!(publication.start_sending());
            publication.properties.expiration.unwrap()
        };
        assert_eq!(expires_in(SendState::of_copy(far)), hour);
        assert!(expires_in(SendState::until(far)) <= Duration::from_secs(60));
    }

    #[test]
    fn nothing_is_sent_after_the_deadline() {
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
    fn a_lost_message_counts_as_sent() {
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
    fn a_returned_message_is_sent_elsewhere_or_counts_as_unsent() {
        let send_state = fresh();
        assert!(send_state.start_sending());
        send_state.mark_returned();
        assert!(!send_state.is_sent());
        assert!(send_state.start_sending());
        assert!(send_state.is_sent() && !send_state.was_resent());
        send_state.mark_returned();
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
