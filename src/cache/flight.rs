//! One request that many callers wait for: its leader, the waiters, and what each does next.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A request on its way, with the callers that wait for its outcome. A plain struct that is given
/// the time; [`Flights`](super::flights::Flights) has the locks.
///
/// `S` is what the leader has seen before it sent the request, `T` the outcome.
pub(super) struct Flight<S, T> {
    phase: Phase<T>,
    /// The moment at which the present leader began.
    begun: Instant,
    /// None until the leader sets it: then everything that has happened so far is seen.
    stamp: Option<S>,
    waiting: BTreeSet<Seat>,
    last_ticket: u64,
}

enum Phase<T> {
    /// A leader calls.
    Led,
    /// The leader has given up, and the waiter with this ticket calls next.
    HandedTo(u64),
    /// The outcome is there.
    Landed(T),
}

/// A waiter's place: its deadline, and a number that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat {
    pub(super) deadline: Instant,
    ticket: u64,
}

/// The next step of a waiter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<T> {
    /// Goes on waiting.
    Wait,
    /// Leads: the leader has given up.
    Lead,
    /// Takes the outcome.
    Share(T),
    /// Ends: the deadline has passed.
    TooLate,
}

/// The part of the last leader's time that the next one must have left to try again after a
/// timeout. Callers that began together have next to nothing left when the first times out: each in
/// turn would send a request that cannot be answered.
const WORTH_A_TRY: u32 = 4;

impl<S, T: Clone> Flight<S, T> {
    /// Creates a flight that its creator leads.
    pub(super) fn led(now: Instant) -> Self {
        Self {
            phase: Phase::Led,
            begun: now,
            stamp: None,
            waiting: BTreeSet::new(),
            last_ticket: 0,
        }
    }

    /// Sets what the leader has seen before it sends the request.
    pub(super) fn set_stamp(&mut self, stamp: S) {
        self.stamp = Some(stamp);
    }

    /// Returns true if the outcome can serve a caller that comes now: nothing that the leader has
    /// seen has changed.
    pub(super) fn may_serve(&self, is_current: impl FnOnce(&S) -> bool) -> bool {
        self.stamp.as_ref().is_none_or(is_current)
    }

    /// Adds a waiter.
    pub(super) fn enter(&mut self, deadline: Instant) -> Seat {
        self.last_ticket += 1;
        let seat = Seat {
            deadline,
            ticket: self.last_ticket,
        };
        self.waiting.insert(seat);
        seat
    }

    /// Returns the next step of a waiter, which leaves its seat unless it goes on waiting.
    pub(super) fn turn(&mut self, seat: Seat, now: Instant) -> Turn<T> {
        let turn = match &self.phase {
            Phase::Landed(outcome) => Turn::Share(outcome.clone()),
            Phase::HandedTo(ticket) if *ticket == seat.ticket => {
                self.phase = Phase::Led;
                self.begun = now;
                Turn::Lead
            }
            _ if seat.deadline <= now => Turn::TooLate,
            _ => return Turn::Wait,
        };
        self.waiting.remove(&seat);
        turn
    }

    /// Ends the flight with an outcome for all waiters.
    pub(super) fn land(&mut self, outcome: T) {
        self.phase = Phase::Landed(outcome);
    }

    /// Ends the leader's part with a fault of its own, such as its timeout. The waiter with most time
    /// calls next, if it has enough left; otherwise all get the outcome. Returns false if the flight
    /// has ended.
    pub(super) fn give_up(&mut self, outcome: T, now: Instant) -> bool {
        let enough = now.saturating_duration_since(self.begun) / WORTH_A_TRY;
        let is_handed = self.hand_over(enough, now);
        if !is_handed {
            self.land(outcome);
        }
        is_handed
    }

    /// Ends the leader's part without an outcome: the waiter with most time calls next. Returns false
    /// if there is none, and the flight has ended.
    pub(super) fn abandon(&mut self, now: Instant) -> bool {
        self.hand_over(Duration::ZERO, now)
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn hand_over(&mut self, enough: Duration, now: Instant) -> bool {
        let longest = self.waiting.last();
        let next = longest.filter(|it| it.deadline.saturating_duration_since(now) >= enough);
        let Some(next) = next else {
            return false;
        };
        self.phase = Phase::HandedTo(next.ticket);
        self.stamp = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn callers_that_began_with_the_leader_share_its_timeout() {
        let start = Instant::now();
        let mut flight = Flight::<(), &str>::led(start);
        let seat = flight.enter(start + SECOND + Duration::from_millis(20));
        assert!(!flight.give_up("timed out", start + SECOND));
        let turn = flight.turn(seat, start + SECOND);
        assert_eq!(turn, Turn::Share("timed out"));
    }

    #[test]
    fn a_caller_that_began_later_calls_after_the_leaders_timeout() {
        let start = Instant::now();
        let mut flight = Flight::<(), &str>::led(start);
        let short = flight.enter(start + SECOND * 2);
        let long = flight.enter(start + SECOND * 3);
        assert!(flight.give_up("timed out", start + SECOND));
        assert_eq!(flight.turn(short, start + SECOND), Turn::Wait);
        assert_eq!(flight.turn(long, start + SECOND), Turn::Lead);
        assert_eq!(flight.turn(short, start + SECOND * 2), Turn::TooLate);
        assert!(!flight.abandon(start + SECOND * 2), "no waiter is left");
    }

    #[test]
    fn a_flight_serves_until_what_its_leader_has_seen_changes() {
        let mut flight = Flight::<u32, ()>::led(Instant::now());
        assert!(flight.may_serve(|_| false), "nothing has been seen yet");
        flight.set_stamp(7);
        assert!(flight.may_serve(|stamp| *stamp == 7));
        assert!(!flight.may_serve(|stamp| *stamp == 8));
        flight.enter(Instant::now());
        assert!(flight.abandon(Instant::now()));
        assert!(flight.may_serve(|_| false), "the next leader sees anew");
    }

    /// A step of one of the callers.
    #[derive(Clone, Debug)]
    enum Step {
        Enter(u64),
        /// The waiter at this index asks for its turn, as after a wake-up.
        Turn(usize),
        Land,
        GiveUp,
        Abandon,
        Later(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..400_u64).prop_map(Step::Enter),
            6 => (0..8_usize).prop_map(Step::Turn),
            1 => Just(Step::Land),
            2 => Just(Step::GiveUp),
            2 => Just(Step::Abandon),
            2 => (0..150_u64).prop_map(Step::Later),
        ]
    }

    proptest! {
        /// Every operation runs under one lock, so that a sequence of steps is an interleaving.
        #[test]
        fn there_is_one_leader_or_an_outcome_and_every_waiter_ends(
            steps in proptest::collection::vec(step(), 1..60),
        ) {
            let mut now = Instant::now();
            let mut flight = Flight::<(), u32>::led(now);
            let (mut is_led, mut landed) = (true, None);
            let mut waiting: BTreeMap<usize, Seat> = BTreeMap::new();
            let mut is_over = false;
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Later(millis) => now += Duration::from_millis(millis),
                    // A flight that has ended is not in the table any more.
                    Step::Enter(millis) if !is_over => {
                        waiting.insert(at, flight.enter(now + Duration::from_millis(millis)));
                    }
                    Step::Turn(index) => {
                        let Some((&id, &seat)) = waiting.iter().nth(index) else { continue };
                        match flight.turn(seat, now) {
                            Turn::Wait => {
                                prop_assert!(seat.deadline > now && landed.is_none());
                                continue;
                            }
                            Turn::Lead => {
                                prop_assert!(!is_led && landed.is_none(), "two leaders");
                                is_led = true;
                            }
                            Turn::Share(outcome) => prop_assert_eq!(Some(outcome), landed),
                            Turn::TooLate => prop_assert!(seat.deadline <= now),
                        }
                        waiting.remove(&id);
                    }
                    Step::Land if is_led => {
                        flight.land(7);
                        (is_led, landed, is_over) = (false, Some(7), true);
                    }
                    Step::GiveUp if is_led => {
                        is_led = false;
                        is_over = !flight.give_up(8, now);
                        landed = is_over.then_some(8);
                    }
                    Step::Abandon if is_led => {
                        is_led = false;
                        is_over = !flight.abandon(now);
                        prop_assert_eq!(is_over, waiting.is_empty(), "a waiter is left alone");
                    }
                    _ => {}
                }
            }
            // Whatever has happened: in the end each waiter leads, shares or is too late.
            now += Duration::from_secs(1_000);
            for seat in waiting.into_values() {
                match flight.turn(seat, now) {
                    Turn::Wait => prop_assert!(false, "a waiter waits beyond its deadline"),
                    Turn::Lead => prop_assert!(!std::mem::replace(&mut is_led, true)),
                    Turn::Share(outcome) => prop_assert_eq!(Some(outcome), landed),
                    Turn::TooLate => {}
                }
            }
            prop_assert!(flight.waiting.is_empty());
        }
    }
}
