//! The bound on the messages that wait in the request queue of a service.

use std::time::{Duration, Instant};

/// The interval at which the depth is asked for while the queue has room.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval, after an answer by which commands were let through, or the first by which
/// they were not. With the long one alone a client could send no more commands in a second than the
/// queue may hold, however fast the service takes them.
const LEAST_INTERVAL: Duration = Duration::from_millis(50);

/// The age up to which an answer stands if senders had too little time for another one.
const FRESH: Duration = Duration::from_secs(3);

/// The bound on the messages in a queue, as one client observes it: by the queue's depth, which is
/// asked for from time to time, and by what the client itself has sent since.
///
/// The depth is asked for every second while there is room, after 50 ms if the client has used that
/// up, and at intervals from 50 ms to 1 s while the queue is full.
#[derive(Debug)]
pub(super) struct Backlog {
    most: usize,
    depth: Depth,
    /// The number of commands let through since the depth was asked for.
    sent: usize,
    /// The value of `sent` when the question that is under way was asked.
    sent_before: usize,
    is_asking: bool,
    /// The time of the last answer.
    answered_at: Option<Instant>,
    /// The interval to the next question while the queue is full.
    interval: Duration,
}

/// The last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// No answer yet.
    None,
    /// The depth cannot be asked for.
    Unknown,
    Known(usize),
}

/// The decision about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Send,
    /// The depth has to be asked for first, and [answered](Backlog::answered).
    Ask,
    /// The queue is full. The next decision is due at this time, or with the answer to the question
    /// under way.
    Wait(Option<Instant>),
}

impl Backlog {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            depth: Depth::None,
            sent: 0,
            sent_before: 0,
            is_asking: false,
            answered_at: None,
            interval: LEAST_INTERVAL,
        }
    }

    /// Decides on one command, whose sender has time left to ask for the depth, or to wait for the
    /// first answer, if `may_ask` is true.
    pub(super) fn admit(&mut self, now: Instant, may_ask: bool) -> Admission {
        let ask_at = self.ask_at();
        if may_ask && !self.is_asking && ask_at.is_none_or(|at| at <= now) {
            self.is_asking = true;
            self.sent_before = self.sent;
            return Admission::Ask;
        }
        match self.depth {
            Depth::None if self.is_asking && may_ask => Admission::Wait(None),
            Depth::Known(_) if self.waiting() >= self.most => {
                Admission::Wait(ask_at.filter(|_| !self.is_asking))
            }
            // Without an answer, commands are sent as without the bound.
            Depth::None | Depth::Unknown | Depth::Known(_) => {
                self.sent = self.sent.saturating_add(1);
                Admission::Send
            }
        }
    }

    /// Records the answer to a question; `None` if the depth cannot be asked for. Returns true if
    /// it could be before.
    pub(super) fn answered(&mut self, depth: Option<usize>, now: Instant) -> bool {
        let was_unknown = self.depth == Depth::Unknown;
        self.is_asking = false;
        self.answered_at = Some(now);
        // Those that were let through meanwhile may have come too late to be counted.
        self.sent -= self.sent_before;
        self.depth = depth.map_or(Depth::Unknown, Depth::Known);
        self.interval = match depth {
            Some(depth) if depth >= self.most => (2 * self.interval).min(ASK_INTERVAL),
            _ => LEAST_INTERVAL,
        };
        depth.is_none() && !was_unknown
    }

    /// Records that the sender who asked has no more time for the answer: another one asks, and
    /// until then the last answer stands, unless it is too old. Returns as
    /// [`answered`](Backlog::answered) does.
    pub(super) fn not_answered_in_time(&mut self, now: Instant) -> bool {
        let is_fresh = self.answered_at.is_some_and(|at| now < at + FRESH);
        if is_fresh && self.depth != Depth::Unknown {
            self.is_asking = false;
            return false;
        }
        self.answered(None, now)
    }

    /// Returns the number of messages that wait in the queue, as far as it is known.
    pub(super) fn waiting(&self) -> usize {
        let depth = match self.depth {
            Depth::Known(depth) => depth,
            Depth::None | Depth::Unknown => 0,
        };
        depth.saturating_add(self.sent)
    }

    /// Returns the largest number of messages that may wait.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Returns the time of the next question; `None` if there was none.
    fn ask_at(&self) -> Option<Instant> {
        let interval = match self.depth {
            Depth::Known(depth) if depth >= self.most => self.interval,
            Depth::Known(_) if self.waiting() >= self.most => LEAST_INTERVAL,
            Depth::None | Depth::Unknown | Depth::Known(_) => ASK_INTERVAL,
        };
        self.answered_at.map(|at| at + interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn answered(most: usize, depth: usize) -> (Backlog, Instant) {
        let (mut backlog, now) = (Backlog::new(most), Instant::now());
        assert_eq!(backlog.admit(now, true), Admission::Ask);
        backlog.answered(Some(depth), now);
        (backlog, now)
    }

    #[test]
    fn the_first_command_asks_and_the_others_wait_for_the_answer() {
        let (mut backlog, now) = (Backlog::new(5), Instant::now());
        assert_eq!(backlog.admit(now, true), Admission::Ask);
        assert_eq!(backlog.admit(now, true), Admission::Wait(None));
        backlog.answered(Some(4), now);
        assert_eq!(backlog.admit(now, true), Admission::Send);
        let next = Admission::Wait(Some(now + LEAST_INTERVAL));
        assert_eq!(backlog.admit(now, true), next, "4 waited, and 1 is sent");
        assert_eq!(backlog.waiting(), 5);
    }

    #[test]
    fn a_full_queue_is_asked_less_and_less_often() {
        let (mut backlog, mut now) = answered(5, 5);
        let mut waits = Vec::new();
        for _ in 0..7 {
            let Admission::Wait(Some(until)) = backlog.admit(now, true) else {
                panic!("it is full");
            };
            waits.push((until - now).as_millis());
            now = until;
            assert_eq!(backlog.admit(now, true), Admission::Ask);
            backlog.answered(Some(9), now);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000, 1_000]);
        now += ASK_INTERVAL;
        assert_eq!(backlog.admit(now, true), Admission::Ask);
        backlog.answered(Some(0), now);
        assert_eq!(backlog.admit(now, true), Admission::Send);
    }

    #[test]
    fn a_queue_with_room_is_asked_once_a_second() {
        let (mut backlog, now) = answered(1_000, 0);
        for ms in 0..999 {
            assert_eq!(backlog.admit(now + ms * MS, true), Admission::Send);
        }
        assert_eq!(backlog.admit(now + ASK_INTERVAL, true), Admission::Ask);
        // While it is asked, the others go by the last answer.
        assert_eq!(backlog.admit(now + ASK_INTERVAL, true), Admission::Send);
        backlog.answered(Some(3), now + ASK_INTERVAL);
        assert_eq!(backlog.waiting(), 4, "one was sent meanwhile");
    }

    #[test]
    fn what_cannot_be_asked_bounds_nothing_and_is_reported_once() {
        let (mut backlog, now) = answered(1, 9);
        let later = now + ASK_INTERVAL;
        assert_eq!(backlog.admit(later, true), Admission::Ask);
        assert!(backlog.answered(None, later));
        for _ in 0..9 {
            assert_eq!(backlog.admit(later, true), Admission::Send);
        }
        let last = later + ASK_INTERVAL;
        assert_eq!(backlog.admit(last, true), Admission::Ask);
        assert!(!backlog.answered(None, last));
        assert_eq!(backlog.admit(last + ASK_INTERVAL, true), Admission::Ask);
        backlog.answered(Some(1), last + ASK_INTERVAL);
        assert!(matches!(backlog.admit(last, true), Admission::Wait(_)));
    }

    #[test]
    fn a_sender_without_time_leaves_the_question_to_the_next() {
        let (mut backlog, now) = answered(1, 1);
        let later = now + ASK_INTERVAL;
        assert!(matches!(backlog.admit(later, false), Admission::Wait(_)));
        assert_eq!(backlog.admit(later, true), Admission::Ask);
        assert!(matches!(backlog.admit(later, true), Admission::Wait(None)));
        assert!(!backlog.not_answered_in_time(later));
        assert_eq!(backlog.admit(later, true), Admission::Ask);
        // It is not held up for long by senders with too little time.
        assert!(backlog.not_answered_in_time(later + FRESH));
        assert_eq!(backlog.admit(later + FRESH, true), Admission::Send);
    }

    proptest! {
        /// Compares with a plain account of one queue: what was let through since an answer never
        /// exceeds the room of that answer, one question is under way at a time, and the questions
        /// keep their distance.
        #[test]
        fn no_more_is_sent_than_the_answer_has_room_for(
            most in 1usize..20,
            steps in prop::collection::vec((0u64..300, 0usize..30, any::<bool>()), 1..300),
        ) {
            let mut backlog = Backlog::new(most);
            let mut now = Instant::now();
            let (mut asked, mut last, mut room, mut meanwhile) = (false, None, 0, 0);
            for (ms, depth, answers) in steps {
                now += Duration::from_millis(ms);
                match backlog.admit(now, true) {
                    Admission::Ask => {
                        prop_assert!(!asked);
                        prop_assert!(last.is_none_or(|at| now >= at + LEAST_INTERVAL));
                        (asked, meanwhile) = (true, 0);
                    }
                    Admission::Send => {
                        prop_assert!(room > 0);
                        room -= 1;
                        meanwhile += 1;
                    }
                    Admission::Wait(None) => prop_assert!(asked),
                    Admission::Wait(Some(until)) => {
                        prop_assert!(!asked && room == 0 && until > now);
                        prop_assert!(until <= now + ASK_INTERVAL);
                    }
                }
                if asked && answers {
                    backlog.answered(Some(depth), now);
                    (asked, last) = (false, Some(now));
                    room = most.saturating_sub(depth + meanwhile);
                }
            }
        }
    }
}
