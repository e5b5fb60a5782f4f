//! Tests of the policies of a service: which errors are retried and what that costs, the budget
//! under any schedule, and permits that end in any order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::policies::{Permit, ServicePolicies};
use super::{Breaker, BreakerState, Ejection, Resilience, Retry, RetryBudget};
use crate::error::{Error, ErrorKind, Phase};
use crate::error_kind::Refusal;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn policies(settings: &Resilience) -> Arc<ServicePolicies> {
    let report = Box::new(|_: &Breaker, _| ());
    Arc::new(ServicePolicies::new("s", settings, report))
}

fn coded(code: &str) -> Error {
    Error::new(ErrorKind::Remote, "").with_code(Some(code.to_owned()))
}

#[test]
fn errors_are_retried_as_the_table_says() {
    const FREE: (bool, bool, bool) = (true, true, false);
    const PAID: (bool, bool, bool) = (true, true, true);
    const IF_IDEMPOTENT: (bool, bool, bool) = (false, true, true);
    const NEVER: (bool, bool, bool) = (false, false, false);
    let new = |kind| Error::new(kind, "");
    let all = [
        (new(ErrorKind::NotSent), FREE),
        (Error::timed_out(Phase::Send, ""), FREE),
        (new(ErrorKind::NoRoute), FREE),
        (new(ErrorKind::NoInstance), FREE),
        (new(ErrorKind::Busy), PAID),
        (coded("named"), PAID),
        (Error::timed_out(Phase::Reply, ""), IF_IDEMPOTENT),
        (new(ErrorKind::ConnectionLost), NEVER),
        (coded("other"), NEVER),
        (coded(""), NEVER),
        (coded("busy_downstream"), NEVER),
        (coded("panic"), NEVER),
        (coded("poison"), NEVER),
        (coded("expired"), IF_IDEMPOTENT),
        (coded("bad_reply"), NEVER),
        (coded("bad_request"), NEVER),
        (coded("in_progress"), NEVER),
        (new(ErrorKind::UnknownAction), NEVER),
        (new(ErrorKind::Decode), NEVER),
        (new(ErrorKind::Encode), NEVER),
        (new(ErrorKind::PayloadTooLarge), NEVER),
        (new(ErrorKind::InvalidConfig), NEVER),
        (new(ErrorKind::Rejected), NEVER),
        (Error::refused(Refusal::RateLimit, ""), NEVER),
        (new(ErrorKind::Io), NEVER),
        (new(ErrorKind::Connect), NEVER),
        (new(ErrorKind::Broker), NEVER),
        (new(ErrorKind::Registry), NEVER),
        (new(ErrorKind::Closed), NEVER),
        (new(ErrorKind::Misuse), NEVER),
        // A code is one of a handler's errors only.
        (
            new(ErrorKind::Decode).with_code(Some("named".to_owned())),
            NEVER,
        ),
    ];
    let retry = Retry::new().on_code("named").on_code("also named");
    let rich = policies(&Resilience::none().retry(retry.clone()));
    let nothing = RetryBudget::new().share(0.0).reserve(0);
    let poor = policies(&Resilience::none().retry(retry.budget(nothing)));
    let now = Instant::now();
    let is_retried = |policies: &ServicePolicies, error: &Error, is_idempotent| {
        let next = policies.next_attempt(error, 1, is_idempotent, now, now + HOUR);
        next.is_some()
    };
    for (error, (wanted, if_idempotent, costs)) in all {
        // One of its own: the reserve pays for ten.
        let rich = policies(&rich.settings);
        assert_eq!(is_retried(&rich, &error, false), wanted, "{error:?}");
        assert_eq!(is_retried(&rich, &error, true), if_idempotent, "{error:?}");
        assert_eq!(
            is_retried(&poor, &error, false),
            wanted && !costs,
            "{error:?}"
        );
    }
    // A request that may have reached a handler in another way.
    let resent = Error::new(ErrorKind::NotSent, "").with_nothing_ran(false);
    assert!(!is_retried(&rich, &resent, false));
    assert!(is_retried(&rich, &resent, true));
    let without = policies(&Resilience::none());
    assert!(!is_retried(
        &without,
        &Error::new(ErrorKind::NoRoute, ""),
        true
    ));
}

#[test]
fn a_retry_has_its_number_its_time_and_its_price() {
    let settings = Resilience::none().retry(Retry::new().attempts(3).delays(MS, MS));
    let (policies, now) = (policies(&settings), Instant::now());
    let after = |seconds| Error::new(ErrorKind::Busy, "").with_retry_after(Some(seconds * SECOND));
    let next =
        |error: &Error, made| policies.next_attempt(error, made, false, now, now + 4 * SECOND);
    // The time that the service names, and then the delay, which spreads the callers.
    let named = now + 3 * SECOND..=now + 3 * SECOND + MS;
    assert!(next(&after(3), 1).is_some_and(|at| named.contains(&at)));
    assert_eq!(next(&after(4), 1), None, "at the deadline it is too late");
    assert!(next(&after(3), 2).is_some_and(|at| named.contains(&at)));
    assert_eq!(next(&after(3), 3), None);
    assert_eq!(next(&after(3), u32::MAX), None);
    // What is not retried has cost nothing: two of the reserve of ten are spent.
    let left = (0..20).filter(|_| next(&after(0), 1).is_some());
    assert_eq!(left.count(), 8);
}

/// A call of a schedule, all of whose attempts fail.
#[derive(Clone, Debug)]
struct Call {
    /// The time after the call before, in milliseconds.
    gap: u64,
    /// The time that each attempt takes, in milliseconds.
    takes: u64,
    error: usize,
    retry_after: u64,
}

fn any_call() -> impl Strategy<Value = Call> {
    let fields = (0..300u64, 0..200u64, 0..3usize, 0..2_000u64);
    fields.prop_map(|(gap, takes, error, retry_after)| Call {
        gap,
        takes,
        error,
        retry_after,
    })
}

proptest! {
    #[test]
    fn attempts_stay_within_the_budget_under_any_schedule(
        share in prop::sample::select(vec![0.0, 0.1, 0.2, 1.0]),
        reserve in 0..3u32,
        most in 1..6u32,
        calls in prop::collection::vec(any_call(), 1..120),
    ) {
        let budget = RetryBudget::new().share(share).reserve(reserve);
        let retry = Retry::new().attempts(most).on_code("named").budget(budget);
        let policies = policies(&Resilience::none().retry(retry));
        let start = Instant::now();
        // The beginnings and ends of attempts, the earliest first: time, call, attempt, is an end.
        let mut events = BinaryHeap::new();
        let mut at = start;
        for (number, call) in calls.iter().enumerate() {
            at += u32::try_from(call.gap).unwrap() * MS;
            events.push(Reverse((at, number, 1, false)));
        }
        let (mut begun, mut attempts) = (0u32, 0u32);
        while let Some(Reverse((now, number, attempt, is_end))) = events.pop() {
            let call = &calls[number];
            if !is_end {
                if attempt == 1 {
                    begun += 1;
                    policies.called(now);
                }
                attempts += 1;
                let bound = f64::from(begun) * (1.0 + share)
                    + f64::from(reserve) * ((now - start).as_secs_f64() + 10.0);
                prop_assert!(f64::from(attempts) <= bound + 1e-6, "{attempts} > {bound}");
                let ends = now + Duration::from_millis(call.takes);
                events.push(Reverse((ends, number, attempt, true)));
                continue;
            }
            let retry_after = Duration::from_millis(call.retry_after);
            let error = match call.error {
                0 => Error::new(ErrorKind::Busy, "").with_retry_after(Some(retry_after)),
                1 => Error::timed_out(Phase::Reply, ""),
                _ => coded("named"),
            };
            let deadline = now + 2 * SECOND;
            let next = policies.next_attempt(&error, attempt, true, now, deadline);
            if let Some(next) = next {
                prop_assert!(attempt < most);
                prop_assert!(now <= next && next < deadline);
                prop_assert!(call.error != 0 || next >= now + retry_after);
                events.push(Reverse((next, number, attempt + 1, false)));
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Admits an attempt, with this many milliseconds to its deadline.
    Admit(u32),
    /// Picks an instance for one of the attempts.
    Pick(usize, usize),
    /// Ends one of the attempts, in one of several ways.
    End(usize, usize),
    /// Lets so many milliseconds pass.
    Wait(u32),
    HoldOpen,
    Close,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_000u32).prop_map(Step::Admit),
        4 => (any::<usize>(), 0..3usize).prop_map(|(which, id)| Step::Pick(which, id)),
        6 => (any::<usize>(), 0..6usize).prop_map(|(which, how)| Step::End(which, how)),
        3 => (0..2_500u32).prop_map(Step::Wait),
        1 => Just(Step::HoldOpen),
        1 => Just(Step::Close),
    ]
}

const MOST: usize = 4;
const PROBES: usize = 2;
const INSTANCES: [&str; 3] = ["a", "b", "c"];

/// Ends an attempt, well, badly, or without an outcome.
fn end(mut permit: Permit, how: usize, now: Instant) {
    let error = match how {
        0 => return permit.ended(Ok(()), Some(MS), true, false, now),
        1 => return drop(permit),
        2 => coded("panic"),
        3 => Error::timed_out(Phase::Reply, ""),
        4 => Error::new(ErrorKind::Busy, ""),
        _ => Error::new(ErrorKind::ConnectionLost, ""),
    };
    // An instance that was picked last, and one that answers in the place of another.
    let is_of_pick = how != 4 || permit.picked(INSTANCES[0], INSTANCES.len(), now);
    permit.ended(Err(&error), None, is_of_pick, false, now);
}

/// Admits until a refusal; returns the permits, and the policy that refused.
fn admit_all(policies: &Arc<ServicePolicies>, now: Instant) -> (Vec<Permit>, Refusal) {
    let mut permits = Vec::new();
    loop {
        match policies.admit(now, now + SECOND) {
            Ok(permit) => permits.push(permit),
            Err(refused) => return (permits, refused.by),
        }
    }
}

proptest! {
    #[test]
    fn permits_give_back_their_places_however_they_end(
        steps in prop::collection::vec(any_step(), 1..150),
    ) {
        let breaker = Breaker::new().minimum_calls(4).open_for(SECOND, 2 * SECOND);
        let breaker = breaker.probes(u32::try_from(PROBES).unwrap());
        let settings = Resilience::none()
            .breaker(breaker)
            .ejection(Ejection::new().in_a_row(2).eject_for(SECOND, 2 * SECOND))
            .max_in_flight(MOST);
        let policies = policies(&settings);
        let mut now = Instant::now();
        let mut permits: Vec<Permit> = Vec::new();
        for step in steps {
            match step {
                Step::Admit(left) => match policies.admit(now, now + left * MS) {
                    Ok(permit) => {
                        prop_assert!(permits.len() < MOST);
                        permits.push(permit);
                    }
                    Err(refused) if refused.by == Refusal::InFlight => {
                        prop_assert_eq!(permits.len(), MOST);
                    }
                    Err(refused) => {
                        prop_assert_eq!(refused.by, Refusal::Breaker);
                        let (state, _) = policies.breaker(now).unwrap();
                        prop_assert_ne!(state, BreakerState::Closed);
                    }
                },
                Step::Pick(which, id) if !permits.is_empty() => {
                    let which = which % permits.len();
                    permits[which].picked(INSTANCES[id], INSTANCES.len(), now);
                }
                Step::End(which, how) if !permits.is_empty() => {
                    let which = which % permits.len();
                    end(permits.swap_remove(which), how, now);
                }
                Step::Wait(time) => now += time * MS,
                Step::HoldOpen => policies.hold_open(SECOND, now),
                Step::Close => policies.close(),
                Step::Pick(..) | Step::End(..) => {}
            }
        }
        drop(permits);
        if policies.breaker(now).unwrap().0 == BreakerState::HalfOpen {
            let (probes, by) = admit_all(&policies, now);
            prop_assert_eq!((probes.len(), by), (PROBES, Refusal::Breaker));
        }
        // Twice: the places are there, and come back.
        for _ in 0..2 {
            policies.close();
            let (permits, by) = admit_all(&policies, now);
            prop_assert_eq!((permits.len(), by), (MOST, Refusal::InFlight));
            policies.hold_open(SECOND, now);
            drop(permits);
            now += SECOND;
            for _ in 0..2 {
                let (probes, by) = admit_all(&policies, now);
                prop_assert_eq!((probes.len(), by), (PROBES, Refusal::Breaker));
            }
        }
        // Each instance has a place for a probe, or is not ejected.
        policies.close();
        now += HOUR;
        for _ in 0..2 {
            let mut permit = policies.admit(now, now + SECOND).ok().unwrap();
            for id in INSTANCES {
                prop_assert!(permit.picked(id, INSTANCES.len(), now), "{id}");
            }
        }
    }
}
