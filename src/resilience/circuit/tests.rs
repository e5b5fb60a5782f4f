//! Tests of the circuit breaker's rules, one by one.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const WELL: Option<CallEnd> = Some(CallEnd {
    failed: false,
    took: MILLI,
});
const FAILED: Option<CallEnd> = Some(CallEnd {
    failed: true,
    took: MILLI,
});

fn settings() -> Breaker {
    Breaker::new().minimum_calls(4)
}

fn circuit(settings: &Breaker) -> Circuit {
    Circuit::with_random(settings, fastrand::Rng::with_seed(7))
}

fn call(circuit: &mut Circuit, end: Option<CallEnd>, now: Instant) {
    let permit = circuit.admit(now, far(now)).unwrap();
    circuit.ended(permit, end, now);
}

fn changes(circuit: &mut Circuit) -> Vec<(BreakerState, BreakerState)> {
    let all = std::iter::from_fn(|| circuit.take_change());
    all.map(|change| (change.from, change.to)).collect()
}

/// Makes calls fail until the breaker opens; returns the length of the period.
fn open(circuit: &mut Circuit, now: Instant) -> Duration {
    while circuit.state(now) == BreakerState::Closed {
        call(circuit, FAILED, now);
    }
    circuit.retry_after(now).unwrap()
}

fn is_about(length: Duration, wanted: Duration) -> bool {
    // The longest period varies below its length.
    let least = if wanted == 60 * SECOND { 0.81 } else { 0.9 };
    let most = if wanted == 60 * SECOND { 1.0 } else { 1.1 };
    length >= wanted.mul_f64(least) && length <= wanted.mul_f64(most)
}

/// Returns a deadline far from `now`.
pub(super) fn far(now: Instant) -> Instant {
    now + Duration::from_secs(3_600)
}

/// A program may start asynchronous calls and not wait for them.
#[test]
fn probes_that_are_not_given_back_end_a_second_after_their_deadline() {
    let mut circuit = Circuit::new(&Breaker::new());
    let start = Instant::now();
    circuit.hold_open(start, SECOND);
    let (now, deadline) = (start + SECOND, start + 6 * SECOND);
    let kept: Vec<_> = (0..3)
        .map(|_| circuit.admit(now, deadline).unwrap())
        .collect();
    let last = deadline + LATE_END;
    assert_eq!(circuit.admit(last, far(now)), Err(PROBE_WAIT));
    let later = last + Duration::from_nanos(1);
    let probe = circuit.admit(later, far(now)).unwrap();
    for permit in kept {
        let failed = CallEnd {
            failed: true,
            took: SECOND,
        };
        circuit.ended(permit, Some(failed), later);
    }
    assert_eq!(
        circuit.state(later),
        BreakerState::HalfOpen,
        "late outcomes do not count"
    );
    circuit.ended(probe, None, later);
}

#[test]
fn opens_at_the_rate_and_not_below_the_minimum() {
    let now = Instant::now();
    let mut circuit = circuit(&Breaker::new());
    for end in [FAILED; 10].into_iter().chain([WELL; 9]) {
        call(&mut circuit, end, now);
    }
    assert_eq!(circuit.state(now), BreakerState::Closed);
    call(&mut circuit, WELL, now); // 10 of 20
    assert_eq!(circuit.state(now), BreakerState::Open);
    let left = circuit.admit(now, far(now)).unwrap_err();
    assert!(is_about(left, 5 * SECOND), "{left:?}");
    assert_eq!(circuit.retry_after(now), Some(left));
    assert_eq!(circuit.retry_after(now + left), None);
}

#[test]
fn a_rate_such_as_a_tenth_is_reached_exactly() {
    let now = Instant::now();
    let mut circuit = circuit(&Breaker::new().failure_rate(0.1).minimum_calls(30));
    for end in [FAILED; 3].into_iter().chain([WELL; 26]) {
        call(&mut circuit, end, now);
    }
    assert_eq!(circuit.state(now), BreakerState::Closed);
    call(&mut circuit, WELL, now); // 3 of 30
    assert_eq!(circuit.state(now), BreakerState::Open);
}

#[test]
fn failures_outside_the_window_do_not_count() {
    let start = Instant::now();
    let mut circuit = circuit(&settings());
    for second in 0..100 {
        let end = if second % 8 == 0 { FAILED } else { None };
        call(&mut circuit, end, start + second * SECOND);
    }
    assert_eq!(circuit.state(start + 100 * SECOND), BreakerState::Closed);
}

/// A thousand calls a second succeed; then 20 callers get no reply, once in a second.
#[test]
fn an_outage_is_noticed_although_the_window_is_full_of_successes() {
    let mut circuit = circuit(&Breaker::new());
    let start = Instant::now();
    for call_number in 0..10_000 {
        call(&mut circuit, WELL, start + call_number * MILLI);
    }
    let now = start + 11 * SECOND;
    for failures in 0..20 {
        let state = circuit.state(now);
        assert_eq!(state, BreakerState::Closed, "after {failures} failures");
        call(&mut circuit, FAILED, now);
    }
    assert_eq!(circuit.state(now), BreakerState::Open);
}

#[test]
fn failures_in_a_row_do_not_open_it_if_a_call_has_just_succeeded() {
    let mut circuit = circuit(&Breaker::new().minimum_calls(1));
    let start = Instant::now();
    for _ in 0..1_000 {
        call(&mut circuit, WELL, start);
    }
    let stall = start + SECOND - Duration::from_nanos(1);
    for _ in 0..100 {
        call(&mut circuit, FAILED, stall);
    }
    assert_eq!(circuit.state(stall), BreakerState::Closed);
    let later = start + 2 * SECOND;
    call(&mut circuit, WELL, later);
    for _ in 0..9 {
        call(&mut circuit, FAILED, later + SECOND);
    }
    assert_eq!(circuit.state(later + SECOND), BreakerState::Closed);
    call(&mut circuit, FAILED, later + SECOND); // the tenth
    assert_eq!(circuit.state(later + SECOND), BreakerState::Open);
}

#[test]
fn slow_calls_open_it_if_the_program_says_so() {
    let now = Instant::now();
    let settings = settings().slow(SECOND, 0.75);
    let took = |took| {
        Some(CallEnd {
            failed: false,
            took,
        })
    };
    let mut circuit = circuit(&settings);
    for end in [took(2 * SECOND), took(2 * SECOND), took(SECOND), WELL] {
        call(&mut circuit, end, now); // no slower than 1 s is not slow
    }
    assert_eq!(circuit.state(now), BreakerState::Closed);
    for _ in 0..4 {
        call(&mut circuit, took(2 * SECOND), now); // in the end 6 of 8
    }
    assert_eq!(circuit.state(now), BreakerState::Open);
    // A slow probe has not gone well.
    let now = now + circuit.retry_after(now).unwrap();
    call(&mut circuit, took(SECOND), now);
    assert_eq!(circuit.state(now), BreakerState::HalfOpen);
    call(&mut circuit, took(2 * SECOND), now);
    assert_eq!(circuit.state(now), BreakerState::Open);
}

#[test]
fn three_probes_at_a_time_and_three_in_a_row_close_it() {
    let start = Instant::now();
    let mut circuit = circuit(&settings());
    let now = start + open(&mut circuit, start);
    assert_eq!(circuit.state(now), BreakerState::HalfOpen);
    let probes: Vec<_> = (0..3)
        .map(|_| circuit.admit(now, far(now)).unwrap())
        .collect();
    assert_eq!(circuit.admit(now, far(now)), Err(PROBE_WAIT));
    // A probe without an outcome frees its place, and is no vote.
    circuit.ended(probes[0], None, now);
    let other = circuit.admit(now, far(now)).unwrap();
    assert_eq!(circuit.admit(now, far(now)), Err(PROBE_WAIT));
    circuit.ended(probes[1], WELL, now);
    circuit.ended(probes[2], WELL, now);
    assert_eq!(circuit.state(now), BreakerState::HalfOpen);
    circuit.ended(other, WELL, now);
    assert_eq!(circuit.state(now), BreakerState::Closed);
    use BreakerState::{Closed, HalfOpen, Open};
    let seen = changes(&mut circuit);
    assert_eq!(seen, [(Closed, Open), (Open, HalfOpen), (HalfOpen, Closed)]);
}

#[test]
fn outcomes_of_an_earlier_state_do_not_count() {
    let start = Instant::now();
    let mut circuit = circuit(&settings());
    let early: Vec<_> = (0..9)
        .map(|_| circuit.admit(start, far(start)).unwrap())
        .collect();
    let now = start + open(&mut circuit, start);
    circuit.ended(early[0], FAILED, now);
    let probe = circuit.admit(now, far(now)).unwrap();
    early[1..4]
        .iter()
        .for_each(|it| circuit.ended(*it, WELL, now));
    circuit.ended(early[4], FAILED, now);
    assert_eq!(circuit.state(now), BreakerState::HalfOpen);
    circuit.ended(probe, WELL, now);
    call(&mut circuit, WELL, now);
    call(&mut circuit, WELL, now);
    assert_eq!(circuit.state(now), BreakerState::Closed);
    early[5..]
        .iter()
        .for_each(|it| circuit.ended(*it, FAILED, now));
    circuit.ended(probe, FAILED, now);
    assert_eq!(circuit.state(now), BreakerState::Closed);
}

#[test]
fn periods_double_up_to_the_longest_and_begin_anew_after_30_s_closed() {
    let mut now = Instant::now();
    let mut circuit = circuit(&settings());
    now += open(&mut circuit, now);
    for seconds in [10, 20, 40, 60, 60, 60] {
        call(&mut circuit, FAILED, now); // a probe
        let length = circuit.retry_after(now).unwrap();
        assert!(is_about(length, seconds * SECOND), "{length:?}, {seconds}");
        now += length;
    }
    for (closed_for, seconds) in [(29, 60), (30, 5), (29, 10)] {
        for _ in 0..3 {
            call(&mut circuit, WELL, now);
        }
        now += closed_for * SECOND;
        let length = open(&mut circuit, now);
        assert!(is_about(length, seconds * SECOND), "{length:?}, {seconds}");
        now += length;
    }
}

#[test]
fn periods_beyond_measure_do_not_panic() {
    let mut now = Instant::now();
    let settings = settings().open_for(Duration::from_nanos(1), Duration::MAX);
    let mut circuit = circuit(&settings);
    now += open(&mut circuit, now);
    for _ in 0..100 {
        call(&mut circuit, FAILED, now);
        now += circuit.retry_after(now).unwrap_or_default();
    }
    circuit.hold_open(now, Duration::MAX);
    assert_eq!(circuit.retry_after(now), Some(LONGEST_PERIOD));
}

#[test]
fn periods_vary_so_that_clients_do_not_probe_at_once() {
    let now = Instant::now();
    let lengths = (0..100).map(|_| open(&mut Circuit::new(&settings()), now));
    let (least, most) = lengths.fold((5 * SECOND, 5 * SECOND), |(least, most), length| {
        assert!(is_about(length, 5 * SECOND), "{length:?}");
        (least.min(length), most.max(length))
    });
    assert!(most - least > 300 * MILLI, "{least:?} to {most:?}");
}

#[test]
fn the_program_holds_it_open_and_closes_it() {
    use BreakerState::{Closed, HalfOpen, HeldOpen, Open};
    let now = Instant::now();
    let mut circuit = circuit(&settings());
    let early = circuit.admit(now, far(now)).unwrap();
    circuit.hold_open(now, 60 * SECOND);
    circuit.hold_open(now, 50 * SECOND);
    assert_eq!(circuit.state(now), HeldOpen);
    assert_eq!(
        circuit.admit(now + 20 * SECOND, far(now + 20 * SECOND)),
        Err(30 * SECOND)
    );
    circuit.ended(early, FAILED, now);
    // What follows is half-open, so that a service that is still gone gets a few calls only.
    let now = now + 50 * SECOND;
    call(&mut circuit, FAILED, now);
    assert_eq!(circuit.state(now), Open);
    assert!(is_about(circuit.retry_after(now).unwrap(), 5 * SECOND));
    circuit.close();
    assert_eq!(circuit.state(now), Closed);
    assert!(is_about(open(&mut circuit, now), 5 * SECOND));
    circuit.hold_open(now, SECOND);
    circuit.close();
    circuit.close();
    let seen = changes(&mut circuit);
    let held = [(Closed, HeldOpen), (HeldOpen, HalfOpen), (HalfOpen, Open)];
    let closed = [(Open, Closed), (Closed, Open), (Open, HeldOpen)];
    assert_eq!(seen, [&held[..], &closed, &[(HeldOpen, Closed)]].concat());
}

#[test]
fn holding_it_open_does_not_bring_back_long_periods() {
    let mut now = Instant::now();
    let mut circuit = circuit(&settings());
    now += open(&mut circuit, now);
    for _ in 0..3 {
        call(&mut circuit, WELL, now);
    }
    now += 30 * SECOND;
    circuit.hold_open(now, SECOND);
    now += SECOND;
    call(&mut circuit, FAILED, now);
    assert!(is_about(circuit.retry_after(now).unwrap(), 5 * SECOND));
}
