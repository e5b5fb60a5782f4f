//! Tests of the admission of requests.

use std::time::{Duration, Instant};

use super::admission::{Admitted, Arrival, LoadControl, LoadSettings};
use super::estimate::QueueDepth;
use super::saturation::Occupancy;
use super::shed::Shed;

const MS: Duration = Duration::from_millis(1);

const CALL: Arrival = Arrival {
    action: 0,
    is_call: true,
    left: None,
    timeout: None,
    opens_message: true,
};

const COMMAND: Arrival = Arrival {
    is_call: false,
    ..CALL
};

const FULL: Occupancy = Occupancy {
    busy: 1,
    workers: 1,
    unsettled: 2,
    prefetch: 2,
    waiting: 0,
    batched: 0,
};

fn control() -> LoadControl {
    LoadControl::new(&LoadSettings {
        actions: 2,
        shed: Some(Shed::new().above(200 * MS)),
        ..LoadSettings::default()
    })
}

fn run(control: &mut LoadControl, now: Instant, took: Duration) {
    let Admitted::Run(ticket) = control.admit(now, &COMMAND, &FULL) else {
        panic!("refused");
    };
    control.finished(now + took, ticket, true, &FULL);
}

/// Returns a control that has been saturated for long, with these messages in the queue.
fn overloaded(shared: u64) -> (LoadControl, Instant) {
    let mut control = control();
    let mut now = Instant::now();
    for _ in 0..16 {
        run(&mut control, now, 50 * MS);
        now += 50 * MS;
    }
    assert!(control.next_sample().is_some_and(|at| at <= now));
    let depth = QueueDepth {
        shared,
        consumers: 1,
        own: 0,
    };
    control.sampling(now);
    control.sampled(now, &depth);
    (control, now)
}

#[test]
fn refusals_lower_the_estimate_until_calls_run_again() {
    let (mut control, now) = overloaded(11);
    assert_eq!(control.wait(now, &FULL), 550 * MS);
    let first = control.admit(now, &CALL, &FULL);
    assert!(matches!(first, Admitted::Run(_)), "a tenth runs");
    for wait in [450, 400, 350, 300, 250] {
        let after = wait * MS;
        let refused = control.admit(now, &CALL, &FULL);
        assert_eq!(refused, Admitted::Busy { after });
    }
    let call = control.admit(now, &CALL, &FULL);
    assert!(matches!(call, Admitted::Run(_)), "{call:?}");
}

#[test]
fn commands_are_never_refused_and_old_samples_refuse_nothing() {
    let (mut control, now) = overloaded(1_000);
    let _ = control.admit(now, &CALL, &FULL);
    for _ in 0..100 {
        let command = control.admit(now, &COMMAND, &FULL);
        assert!(matches!(command, Admitted::Run(_)));
    }
    let busy = control.admit(now, &CALL, &FULL);
    assert!(matches!(busy, Admitted::Busy { .. }));
    let later = now + 501 * MS;
    let call = control.admit(later, &CALL, &FULL);
    assert!(matches!(call, Admitted::Run(_)));
}

#[test]
fn a_server_without_saturation_refuses_no_call() {
    let (mut control, now) = overloaded(1_000);
    let free = Occupancy { busy: 0, ..FULL };
    control.update(now, &free);
    let later = now + 21 * MS;
    control.update(later, &free);
    assert_eq!(control.saturated_since(later), None);
    assert_eq!(control.wait(later, &free), Duration::ZERO);
    let call = control.admit(later, &CALL, &free);
    assert!(matches!(call, Admitted::Run(_)));
}

#[test]
fn a_call_without_the_time_that_its_action_takes_is_expired_and_a_command_never() {
    let (mut control, now) = overloaded(0);
    let late = Arrival {
        left: Some(49 * MS),
        ..CALL
    };
    let probe = control.admit(now, &late, &FULL);
    assert!(matches!(probe, Admitted::Run(_)), "a probe");
    assert_eq!(control.admit(now, &late, &FULL), Admitted::Expired);
    let command = Arrival {
        is_call: false,
        ..late
    };
    let command = control.admit(now, &command, &FULL);
    assert!(matches!(command, Admitted::Run(_)));
}

#[test]
fn the_first_slow_requests_are_seen_before_they_end() {
    let mut control = control();
    let now = Instant::now();
    let _ = control.admit(now, &COMMAND, &FULL);
    control.update(now + 60 * MS, &FULL);
    assert_eq!(control.wait(now + 60 * MS, &FULL), Duration::ZERO);
    let later = now + 400 * MS;
    control.update(later, &FULL);
    let depth = QueueDepth {
        shared: 3,
        consumers: 1,
        own: 0,
    };
    control.sampled(later, &depth);
    assert_eq!(control.wait(later, &FULL), 1_200 * MS);
    // The next request has just begun, and says nothing.
    let _ = control.admit(later, &COMMAND, &FULL);
    assert_eq!(control.wait(later, &FULL), Duration::ZERO);
}
