//! The single flight under shuttle, which runs its interleavings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{check_random, thread};

use self::flights::{Flights, Joined};
use super::flight;

/// The real code of the single flight, over shuttle's locks.
#[allow(
    clippy::duplicate_mod,
    reason = "once over std's locks, once over shuttle's"
)]
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "flights.rs"]
mod flights;

mod sync {
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
}

const PATIENCE: Duration = Duration::from_secs(60);

/// The number of random schedules of each test.
const SCHEDULES: usize = 5_000;

type Flight = Flights<&'static str, u32, usize>;

fn join(flights: &Arc<Flight>) -> Joined<&'static str, u32, usize> {
    flights.join("key", Instant::now() + PATIENCE, |_| true)
}

/// Runs `callers` at once, and returns their results. Shuttle reports a caller that hangs.
fn at_once<T: Send + 'static>(
    callers: usize,
    call: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let call = Arc::new(call);
    let threads: Vec<_> = (0..callers)
        .map(|number| {
            let call = Arc::clone(&call);
            thread::spawn(move || call(number))
        })
        .collect();
    let threads = threads.into_iter();
    threads.map(|thread| thread.join().unwrap()).collect()
}

/// The cache looks again after it got the lead; `stored` stands for that look-up.
#[test]
fn callers_of_one_key_make_one_request() {
    let run = || {
        let flights = Arc::new(Flight::new());
        let stored = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let made = Arc::clone(&requests);
        let results = at_once(4, move |_| match join(&flights) {
            Joined::Lead(lead) => {
                let mut value = stored.load(Ordering::SeqCst);
                if value == 0 {
                    value = 7 + made.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    stored.store(value, Ordering::SeqCst);
                }
                lead.land(value);
                value
            }
            Joined::Shared(value) => value,
            Joined::TooLate => panic!("no deadline has passed"),
        });
        assert_eq!(results, [7; 4]);
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    };
    check_random(run, SCHEDULES);
}

/// A caller that has dropped its lead gets its response in another way, and does not come back.
#[test]
fn a_leader_that_gives_up_hands_over() {
    let run = || {
        let flights = Arc::new(Flight::new());
        let leaders = Arc::new(AtomicUsize::new(0));
        let results = at_once(4, {
            let flights = Arc::clone(&flights);
            move |number| match join(&flights) {
                Joined::Lead(lead) if number < 2 => {
                    assert_eq!(leaders.fetch_add(1, Ordering::SeqCst), 0, "two lead");
                    thread::yield_now();
                    leaders.fetch_sub(1, Ordering::SeqCst);
                    match number {
                        0 => drop(lead),
                        _ => lead.give_up(3),
                    }
                    None
                }
                Joined::Lead(lead) => {
                    lead.land(7);
                    Some(7)
                }
                Joined::Shared(value) => Some(value),
                Joined::TooLate => panic!("no deadline has passed"),
            }
        });
        // The fault of caller 1 is shared only if its flight has no other caller with time.
        assert_eq!(results[2..], [Some(7), Some(7)]);
        assert!(matches!(join(&flights), Joined::Lead(_)), "none is left");
    };
    check_random(run, SCHEDULES);
}

/// A caller that begins after an event must not get what was read before it.
#[test]
fn no_caller_gets_what_was_read_before_it_began_and_has_changed() {
    let run = || {
        let flights = Arc::new(Flight::new());
        let version = Arc::new(AtomicUsize::new(0));
        at_once(4, {
            let (flights, version) = (Arc::clone(&flights), Arc::clone(&version));
            move |number| {
                let now = || version.load(Ordering::SeqCst);
                if number == 0 {
                    version.store(1, Ordering::SeqCst); // the event
                }
                let seen = now();
                let is_current = |stamp: &u32| *stamp as usize == now();
                let value = match flights.join("key", Instant::now() + PATIENCE, is_current) {
                    Joined::Lead(lead) => {
                        lead.set_stamp(now() as u32);
                        let value = now();
                        thread::yield_now();
                        lead.land(value);
                        value
                    }
                    Joined::Shared(value) => value,
                    Joined::TooLate => panic!("no deadline has passed"),
                };
                assert!(value >= seen, "{value} was read before {seen}");
            }
        });
        assert!(matches!(join(&flights), Joined::Lead(_)), "none is left");
    };
    check_random(run, SCHEDULES);
}
