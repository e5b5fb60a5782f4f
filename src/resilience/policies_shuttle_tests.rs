//! The policies of a service under shuttle, which runs the interleavings of threads at their lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{check_random, thread};

use self::policies::{Permit, ServicePolicies};
use super::breaker_change::{BreakerChange, BreakerState};
use super::{Breaker, Ejection, Resilience};
use super::{breaker, breaker_change, budget, circuit, outliers, retry, service_state, settings};
use crate::error::{Error, ErrorKind};
use crate::error_kind::Refusal;

/// The real code of the policies, over shuttle's lock.
#[allow(
    clippy::duplicate_mod,
    reason = "once over parking_lot's lock, once over shuttle's"
)]
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "policies.rs"]
mod policies;

/// Shuttle's lock in the form of parking_lot's.
mod sync {
    pub(super) use shuttle::sync::MutexGuard;

    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread panics with the lock")
        }
    }
}

/// The number of random schedules of each test.
const SCHEDULES: usize = 3_000;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

type Changes = Arc<std::sync::Mutex<Vec<BreakerChange>>>;

/// Returns the policies, and the changes that they report.
fn policies_of(settings: &Resilience) -> (Arc<ServicePolicies>, Changes) {
    let changes = Changes::default();
    let reported = Arc::clone(&changes);
    let report = Box::new(move |_: &Breaker, change| reported.lock().unwrap().push(change));
    let policies = ServicePolicies::new("s", settings, report);
    (Arc::new(policies), changes)
}

/// Runs `act` on so many threads at once; shuttle reports one that hangs.
fn at_once(threads: usize, act: impl Fn(usize) + Send + Sync + 'static) {
    let act = Arc::new(act);
    let threads: Vec<_> = (0..threads)
        .map(|number| {
            let act = Arc::clone(&act);
            thread::spawn(move || act(number))
        })
        .collect();
    threads.into_iter().for_each(|it| it.join().unwrap());
}

/// The number of threads within a section, which must not exceed a bound.
struct Section {
    inside: AtomicUsize,
    most: usize,
}

impl Section {
    fn new(most: usize) -> Arc<Self> {
        let inside = AtomicUsize::new(0);
        Arc::new(Self { inside, most })
    }

    fn pass(&self) {
        let before = self.inside.fetch_add(1, Ordering::SeqCst);
        assert!(before < self.most, "more than {} at once", self.most);
        thread::yield_now();
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Remote, "").with_code(Some("panic".to_owned()))
}

/// Ends an attempt well, badly, without an outcome, or by a drop.
fn end(permit: Permit, how: usize, now: Instant) {
    match how {
        0 => permit.ended(Ok(()), None, true, false, now),
        1 => permit.ended(Err(&panicked()), None, true, false, now),
        2 => permit.ended(
            Err(&Error::new(ErrorKind::NoRoute, "")),
            None,
            true,
            false,
            now,
        ),
        _ => drop(permit),
    }
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

#[test]
fn places_in_flight_are_not_exceeded_and_come_back() {
    let run = || {
        let (policies, _) = policies_of(&Resilience::none().max_in_flight(2));
        let (now, section) = (Instant::now(), Section::new(2));
        let shared = Arc::clone(&policies);
        at_once(4, move |number| {
            if let Ok(permit) = shared.admit(now, now + SECOND) {
                section.pass();
                end(permit, number, now);
            }
        });
        let (permits, by) = admit_all(&policies, now);
        assert_eq!((permits.len(), by), (2, Refusal::InFlight));
    };
    check_random(run, SCHEDULES);
}

/// The settings of a breaker that opens at the first failure, and has three probes.
fn breaker_settings() -> Breaker {
    Breaker::new()
        .minimum_calls(1)
        .open_for(SECOND, SECOND)
        .on_change(|_| ())
}

#[test]
fn probes_are_not_more_than_their_places_and_some_outcomes_end_the_half_open_state() {
    let run = || {
        let (policies, changes) = policies_of(&Resilience::none().breaker(breaker_settings()));
        let now = Instant::now();
        end(policies.admit(now, now + SECOND).ok().unwrap(), 1, now);
        assert!(policies.admit(now, now + SECOND).is_err());
        let (now, section) = (now + MINUTE, Section::new(3));
        let shared = Arc::clone(&policies);
        at_once(5, move |number| {
            if let Ok(permit) = shared.admit(now, now + SECOND) {
                // Once it is closed, there is no bound.
                if shared.breaker(now).unwrap().0 == BreakerState::HalfOpen {
                    section.pass();
                }
                end(permit, if number < 3 { 0 } else { number - 1 }, now);
            }
        });
        // Whatever its state, it lets calls through later, and they close it.
        let later = now + MINUTE;
        let mut ended = 0;
        while policies.breaker(later).unwrap().0 != BreakerState::Closed {
            let Ok(permit) = policies.admit(later, later + SECOND) else {
                panic!("a place is free");
            };
            end(permit, 0, later);
            ended += 1;
            assert!(ended <= 3, "three probes that go well close it");
        }
        let changes = changes.lock().unwrap();
        assert_eq!(changes[0].from(), BreakerState::Closed);
        assert!(changes.windows(2).all(|two| two[0].to() == two[1].from()));
        assert_eq!(changes.last().unwrap().to(), BreakerState::Closed);
    };
    check_random(run, SCHEDULES);
}

#[test]
fn late_outcomes_and_operators_leave_a_breaker_that_works() {
    let run = || {
        let settings = Resilience::none().breaker(breaker_settings());
        let (policies, changes) = policies_of(&settings.max_in_flight(9));
        let now = Instant::now();
        let shared = Arc::clone(&policies);
        at_once(4, move |number| match number {
            0 => {
                shared.hold_open(SECOND, now);
                shared.close();
            }
            1 => shared.hold_open(SECOND, now),
            _ => {
                if let Ok(permit) = shared.admit(now, now + SECOND) {
                    end(permit, number - 1, now);
                }
            }
        });
        {
            let changes = changes.lock().unwrap();
            assert!(changes.windows(2).all(|two| two[0].to() == two[1].from()));
            let state = policies.breaker(now).unwrap().0;
            let last = changes
                .last()
                .map_or(BreakerState::Closed, BreakerChange::to);
            assert_eq!(last, state, "each change is reported, and in order");
        }
        policies.close();
        let (permits, by) = admit_all(&policies, now);
        assert_eq!((permits.len(), by), (9, Refusal::InFlight));
    };
    check_random(run, SCHEDULES);
}

#[test]
fn an_ejected_instance_has_one_probe_at_a_time() {
    let run = || {
        let settings = Resilience::none().ejection(Ejection::new().in_a_row(1));
        let (policies, _) = policies_of(&settings);
        let now = Instant::now();
        let mut permit = policies.admit(now, now + SECOND).ok().unwrap();
        assert!(permit.picked("a", 3, now));
        end(permit, 1, now);
        assert_eq!(policies.ejected(now).len(), 1);
        let (later, section) = (now + MINUTE, Section::new(1));
        let shared = Arc::clone(&policies);
        at_once(4, move |number| {
            let mut permit = shared.admit(later, later + SECOND).ok().unwrap();
            if permit.picked("a", 3, later) {
                section.pass();
                match number {
                    0 => assert!(permit.picked("b", 3, later), "it is picked in its place"),
                    _ => end(permit, number, later),
                }
            }
        });
        let (mut permits, last) = (Vec::new(), later + 10 * MINUTE);
        for wanted in [true, false] {
            let mut permit = policies.admit(last, last + SECOND).ok().unwrap();
            assert_eq!(permit.picked("a", 3, last), wanted);
            permits.push(permit);
        }
        end(permits.swap_remove(0), 0, last);
        assert!(policies.ejected(last).is_empty());
    };
    check_random(run, SCHEDULES);
}
