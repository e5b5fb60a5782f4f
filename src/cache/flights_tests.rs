//! The deadlines of the single flight, in real time.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::flights::{Flights, Joined};

const PATIENCE: Duration = Duration::from_secs(60);

type Flight = Flights<&'static str, (), u32>;

#[test]
fn a_waiter_ends_at_its_own_deadline() {
    let flights = Arc::new(Flight::new());
    let Joined::Lead(lead) = flights.join("key", Instant::now(), |()| true) else {
        panic!("the first caller leads");
    };
    let deadline = Instant::now() + Duration::from_millis(20);
    let joined = flights.join("key", deadline, |()| true);
    assert!(matches!(joined, Joined::TooLate));
    assert!(Instant::now() >= deadline);
    let past = flights.join("key", Instant::now(), |()| true);
    assert!(matches!(past, Joined::TooLate));
    lead.land(1);
}

#[test]
fn callers_that_wait_share_the_outcome() {
    let flights = Arc::new(Flight::new());
    let Joined::Lead(lead) = flights.join("key", Instant::now(), |()| true) else {
        panic!("the first caller leads");
    };
    let (results, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..64 {
            let (flights, results) = (&flights, results.clone());
            scope.spawn(move || {
                let joined = flights.join("key", Instant::now() + PATIENCE, |()| true);
                let outcome = match joined {
                    Joined::Shared(outcome) => outcome,
                    Joined::Lead(_) | Joined::TooLate => 0,
                };
                results.send(outcome).unwrap();
            });
        }
        while flights.waiting(&"key") < 64 {
            thread::yield_now();
        }
        lead.land(7);
    });
    drop(results);
    assert_eq!(outcomes.iter().collect::<Vec<_>>(), [7; 64]);
}

#[test]
fn a_refresh_leads_only_if_no_request_is_under_way() {
    let flights = Arc::new(Flight::new());
    let lead = flights.lead("key", |()| true).unwrap();
    lead.set_stamp(());
    assert!(flights.lead("key", |()| true).is_none());
    assert!(flights.lead("other", |()| true).is_some());
    assert!(flights.lead("key", |()| false).is_some(), "it is outdated");
    drop(lead);
    assert!(flights.lead("key", |()| true).is_some());
}
