use std::sync::atomic::{AtomicU8, Ordering};

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const ABANDONED: u8 = 2;

/// Whether a queued message has been sent: the one fact that the thread that
/// waits for its outcome and the thread that sends it must agree on.
///
/// A message leaves `queued` once, either way, so a caller whose deadline
/// passes knows for certain whether its request can still go out.
#[derive(Debug, Default)]
pub(crate) struct Ticket(AtomicU8);

impl Ticket {
    /// For the sender: may the message be sent? `false` means its owner gave
    /// up on it.
    pub(crate) fn start_sending(&self) -> bool {
        self.leave_queued(SENT)
    }

    /// For the owner: gives up on the message. `false` means it was sent.
    pub(crate) fn abandon(&self) -> bool {
        self.leave_queued(ABANDONED) || !self.is_sent()
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.0.load(Ordering::Acquire) == SENT
    }

    fn leave_queued(&self, to: u8) -> bool {
        self.0
            .compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sent_or_abandoned_never_both() {
        let ticket = Ticket::default();
        assert!(ticket.start_sending());
        assert!(!ticket.abandon());
        assert!(ticket.is_sent());

        let ticket = Ticket::default();
        assert!(ticket.abandon());
        assert!(!ticket.start_sending());
        assert!(!ticket.is_sent());
    }

    #[test]
    fn racing_threads_agree() {
        for _ in 0..2_000 {
            let ticket = Ticket::default();
            let (sent, given_up) = std::thread::scope(|scope| {
                let sender = scope.spawn(|| ticket.start_sending());
                let given_up = ticket.abandon();
                (sender.join().unwrap(), given_up)
            });
            assert_ne!(sent, given_up);
        }
    }
}
