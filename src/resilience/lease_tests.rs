//! Tests of the leases of one process: what it asks for, and that it never hands out more than it
//! was granted.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const ZERO: Duration = Duration::ZERO;

fn per_second(calls: u32) -> Leases {
    Leases::new(Rate::per_second(calls))
}

#[test]
fn a_first_call_asks_for_one_token_and_waits_for_it() {
    let mut leases = per_second(2_000);
    let now = Instant::now();
    assert_eq!(leases.next_request(now), None);
    assert_eq!(leases.take(now, false), Taken::Awaited(now + LATE_AFTER));
    assert_eq!(leases.next_request(now), Some(now));
    assert_eq!(leases.ask(now, 0.0), Some(1));
    assert_eq!(leases.next_request(now), None, "one at a time");
    leases.answered(now + MS, 1, 1, ZERO, 0.0);
    assert_eq!(leases.take(now + MS, true), Taken::Token);
    assert_eq!(leases.next_request(now + MS), None, "no other call came");
}

#[test]
fn a_steady_load_is_asked_for_ahead_and_uses_all_of_it() {
    let mut leases = per_second(20_000);
    let start = Instant::now();
    let (mut asks, mut granted, mut missed) = (0, 0, 0);
    for tick in 0..10_000u32 {
        // Ten calls each millisecond, and an answer at once.
        let now = start + tick * MS / 10;
        missed += u32::from(leases.take(now, false) != Taken::Token);
        if leases.next_request(now).is_some_and(|at| at <= now)
            && let Some(wanted) = leases.ask(now, 0.5)
        {
            leases.answered(now, wanted, wanted, ZERO, 0.5);
            asks += 1;
            granted += wanted;
        }
    }
    assert!(asks <= 30, "{asks} requests in a second");
    assert!(granted <= 10_700, "{granted} tokens for 10,000 calls");
    assert!(missed <= 50, "{missed} calls found no token");
}

#[test]
fn at_the_limit_calls_are_refused_until_the_next_answer() {
    let mut leases = per_second(2_000);
    let now = Instant::now();
    let _ = leases.take(now, false);
    let _ = leases.take(now, false);
    assert_eq!(leases.ask(now, 0.0), Some(2));
    leases.answered(now, 2, 1, MS, 0.0);
    assert_eq!(leases.take(now, true), Taken::Token);
    let next = now + LEAST_GAP;
    let Taken::NotBefore(at) = leases.take(now, true) else {
        panic!("there is one token");
    };
    assert_eq!(at, next + AFTER_ANSWER);
    assert_eq!(leases.next_request(now), Some(next));
    // Once a request is due, it is worth waiting for again.
    let late = next + LATE_AFTER;
    assert_eq!(leases.take(next, false), Taken::Awaited(late));
}

#[test]
fn callers_that_wait_come_back_a_few_at_a_time() {
    let mut leases = per_second(40);
    let now = Instant::now();
    let _ = leases.take(now, false);
    let _ = leases.ask(now, 0.0);
    leases.answered(now, 1, 0, 25 * MS, 0.0);
    let mut last = now;
    for _ in 0..100 {
        let Taken::NotBefore(at) = leases.take(now, false) else {
            panic!("there is no token");
        };
        assert!(at >= last);
        last = at;
    }
    assert!(last >= now + 20 * LEASE_TIME, "{:?}", last - now);
}

#[test]
fn without_an_answer_the_share_counts_and_begins_without_a_burst() {
    let mut leases = per_second(80);
    let start = Instant::now();
    let Taken::Awaited(until) = leases.take(start, false) else {
        panic!("a request is due");
    };
    let _ = leases.ask(start, 0.0);
    assert!(!leases.is_late(until - MS) && leases.is_late(until));
    let mut admitted = 0;
    for ms in 0..1_000 {
        let now = until + ms * MS;
        admitted += u32::from(leases.take_of_share(now, 8) == Taken::Token);
    }
    assert_eq!(admitted, 9, "ten a second, the first after its interval");
    leases.answered(until, 1, 1, ZERO, 0.0);
    assert!(!leases.is_late(until + LATE_AFTER));
}

#[test]
fn a_rare_limit_is_not_late_while_it_waits_for_its_next_token() {
    let mut leases = Leases::new(Rate::every(Duration::from_secs(10)));
    let now = Instant::now();
    let _ = leases.take(now, false);
    let _ = leases.ask(now, 0.0);
    leases.answered(now, 1, 0, Duration::from_secs(9), 0.0);
    let free = now + Duration::from_secs(9);
    let _ = leases.take(now, true);
    assert_eq!(leases.next_request(now), Some(free));
    assert!(!leases.is_late(free + LATE_AFTER - MS));
    assert!(leases.is_late(free + LATE_AFTER));
}

#[derive(Clone, Debug)]
enum Step {
    Call {
        again: bool,
    },
    /// Asks if a request is due, and answers with a share of what is wanted, so much later.
    Ask {
        share: f64,
        after: u64,
    },
    Fail,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<bool>().prop_map(|again| Step::Call { again }),
        2 => (0.0..1.2f64, 0..60u64).prop_map(|(share, after)| Step::Ask { share, after }),
        1 => Just(Step::Fail),
        3 => (0..70u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// The model: every token with its moment of lapsing, handed out the earliest first.
    #[test]
    fn no_more_is_handed_out_than_was_leased_and_has_not_lapsed(
        calls in 1..5_000u32,
        random in 0.0..1.0f64,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut leases = per_second(calls);
        let mut now = Instant::now();
        let mut model: Vec<Instant> = Vec::new();
        for step in steps {
            match step {
                Step::Call { again } => {
                    model.retain(|lapses_at| *lapses_at > now);
                    let has_token = !model.is_empty();
                    let taken = leases.take(now, again);
                    prop_assert_eq!(taken == Taken::Token, has_token);
                    match taken {
                        Taken::Token => drop(model.remove(0)),
                        Taken::NotBefore(at) | Taken::Awaited(at) => {
                            prop_assert!(at >= now || leases.is_late(now));
                            prop_assert!(leases.is_pending || leases.next_request(now).is_some());
                        }
                    }
                }
                Step::Ask { share, after } => {
                    if leases.next_request(now).is_none_or(|at| at > now) {
                        continue;
                    }
                    let asked_at = now;
                    if let Some(wanted) = leases.ask(now, random) {
                        prop_assert!((1..=most_leased(&leases.rate)).contains(&wanted));
                        now += after as u32 * MS;
                        let granted = ((f64::from(wanted) * share) as u32).min(wanted);
                        leases.answered(now, wanted, granted, MS, random);
                        let lapses_at = asked_at + LAPSE_TIME;
                        model.extend((0..granted).map(|_| lapses_at));
                    }
                }
                Step::Fail => {
                    if leases.next_request(now).is_some_and(|at| at <= now)
                        && leases.ask(now, random).is_some()
                    {
                        leases.failed(now);
                    }
                }
                Step::Pass(ms) => now += ms as u32 * MS,
            }
        }
    }
}
