//! Tests of the throttle: a model that keeps a log of every request, and simulations of services
//! under more load than they take.

use std::collections::VecDeque;

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn throttle(settings: &Throttle) -> ThrottleState {
    ThrottleState::with_random(settings, fastrand::Rng::with_seed(11))
}

#[test]
fn settings_out_of_range_are_refused_with_a_remedy() {
    let new = Throttle::new;
    for (throttle, remedy) in [
        (new().k(1.0), "k to at least 1.1, not to 1"),
        (new().k(f64::NAN), "not to NaN"),
        (new().k(f64::INFINITY), "not to inf"),
        (new().window(Duration::ZERO), "window longer than zero"),
        (new().at_most(0.0), "above 0 and below 1, not to 0"),
        (new().at_most(1.0), "above 0 and below 1, not to 1"),
        (new().at_most(f64::NAN), "not to NaN"),
    ] {
        let error = throttle.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(remedy), "{error}: {remedy}");
    }
    assert!(Throttle::default().k(1.1).at_most(0.99).check().is_ok());
}

#[test]
fn below_five_requests_a_second_none_is_refused() {
    let start = Instant::now();
    let mut throttle = throttle(&Throttle::new());
    for request in 0..149 {
        let now = start + request * SECOND / 5;
        assert_eq!(throttle.admit(now), Ok(()));
        throttle.ended(true, now);
    }
    let now = start + 30 * SECOND - Duration::from_nanos(1);
    throttle.ended(true, now);
    let refused = (0..100).filter(|_| throttle.admit(now).is_err()).count();
    assert!((80..100).contains(&refused), "{refused}");
}

#[test]
fn requests_in_flight_do_not_count() {
    let now = Instant::now();
    let mut throttle = throttle(&Throttle::new());
    // A service that has become slow: thousands are in flight, and every answer is an accept.
    for _ in 0..10_000 {
        assert_eq!(throttle.admit(now), Ok(()));
    }
    for _ in 0..1_000 {
        throttle.ended(false, now);
        assert_eq!(throttle.admit(now), Ok(()));
    }
}

#[test]
fn the_counts_are_cleared_when_the_service_accepts_again() {
    let start = Instant::now();
    let mut throttle = throttle(&Throttle::new());
    let is_throttled = |throttle: &mut ThrottleState, now| {
        let mut calls = std::iter::repeat_with(|| throttle.admit(now));
        calls.by_ref().take(200).any(|call| call.is_err())
    };
    (0..1_000).for_each(|_| throttle.ended(true, start));
    let calm = start + 3 * SECOND;
    (0..19).for_each(|_| throttle.ended(false, calm));
    throttle.ended(true, calm);
    (0..25).for_each(|_| throttle.ended(false, calm)); // in a row, but not for long enough
    assert!(is_throttled(&mut throttle, calm));
    throttle.ended(true, calm);
    let later = calm + 3 * SECOND;
    (0..19).for_each(|_| throttle.ended(false, later)); // long enough, but not in a row enough
    assert!(is_throttled(&mut throttle, later));
    throttle.ended(false, later);
    assert!(!is_throttled(&mut throttle, later));
}

proptest! {
    /// The model keeps the log of all requests, and has the same random numbers.
    #[test]
    fn it_decides_as_the_formula_says(
        k in 1.1..4.0, at_most in 0.1..0.95,
        steps in prop::collection::vec(
            (0..150u64, any::<bool>(), 0..60usize, prop::sample::select(vec![0.1, 0.5, 1.0])),
            1..150,
        ),
    ) {
        let settings = Throttle::new().k(k).at_most(at_most).window(3 * SECOND);
        let mut throttle = throttle(&settings);
        let mut random = fastrand::Rng::with_seed(11);
        let mut outcomes = fastrand::Rng::with_seed(5);
        let mut log: Vec<(u128, bool)> = Vec::new();
        let mut since_busy: Option<Vec<Instant>> = None;
        let start = Instant::now();
        let mut now = start;
        let _ = throttle.admit(start); // the buckets begin here
        for (millis, is_call, times, rate) in steps {
            now += Duration::from_millis(millis);
            let bucket = (now - start).as_millis() / 100;
            for _ in 0..times {
                if is_call {
                    let inside = log.iter().filter(|(at, _)| at + 30 > bucket);
                    let requests = inside.clone().count() as f64;
                    let accepts = inside.filter(|(_, accepted)| *accepted).count() as f64;
                    let share = ((requests - k * accepts) / (requests + 1.0)).clamp(0.0, at_most);
                    let is_refused = requests >= 15.0 && share > 0.0 && random.f64() < share;
                    prop_assert_eq!(throttle.admit(now).is_err(), is_refused);
                    if is_refused {
                        log.push((bucket, false));
                    }
                } else {
                    let accepted = outcomes.f64() < rate;
                    throttle.ended(!accepted, now);
                    if !accepted {
                        since_busy = Some(vec![now]);
                    } else if let Some(times) = &mut since_busy {
                        times.push(now);
                        let accepts = times.len() as i32 - 1;
                        if k.powi(accepts) >= 1e6 && now - times[0] >= SECOND * 3 / 10 {
                            (log, since_busy) = (Vec::new(), None);
                        }
                    }
                    log.push((bucket, accepted));
                }
            }
        }
    }
}

/// A service that takes so many requests in each second and refuses the others as busy, and the
/// calls of its clients, evenly spread, which end after a latency.
struct Simulation {
    clients: Vec<ThrottleState>,
    random: fastrand::Rng,
    now: Instant,
    /// The outcomes to come: when, of which client, and whether busy.
    outcomes: VecDeque<(Instant, usize, bool)>,
    latency: Duration,
    /// The requests that the service takes at once.
    room: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u32,
    accepted: u32,
    refused: u32,
}

impl Simulation {
    fn new(clients: u64, latency: Duration) -> Self {
        let seeds = (0..clients).map(fastrand::Rng::with_seed);
        let settings = Throttle::new();
        Self {
            clients: seeds
                .map(|seed| ThrottleState::with_random(&settings, seed))
                .collect(),
            random: fastrand::Rng::with_seed(13),
            now: Instant::now(),
            outcomes: VecDeque::new(),
            latency,
            room: 1.0,
        }
    }

    /// Simulates seconds with so many calls in each.
    fn run(&mut self, seconds: u32, calls: u32) -> Tally {
        let mut tally = Tally::default();
        let start = self.now;
        for call in 1..=seconds * calls {
            self.now = start + SECOND * call / calls;
            while let Some(&(at, client, busy)) = self.outcomes.front()
                && at <= self.now
            {
                self.outcomes.pop_front();
                self.clients[client].ended(busy, at);
            }
            // One place more each 1 / capacity seconds, as in a queue of ten.
            self.room = f64::min(self.room + f64::from(CAPACITY) / f64::from(calls), 10.0);
            let client = self.random.usize(..self.clients.len());
            if self.clients[client].admit(self.now).is_err() {
                tally.refused += 1;
                continue;
            }
            tally.sent += 1;
            let busy = self.room < 1.0;
            if !busy {
                self.room -= 1.0;
                tally.accepted += 1;
            }
            self.outcomes
                .push_back((self.now + self.latency, client, busy));
        }
        tally
    }
}

/// The calls per second that the service takes.
const CAPACITY: u32 = 500;

/// Asserts that little more than twice as many messages reach the service as it accepts, in
/// `seconds` of so many times its capacity, and that it is used well.
fn assert_throttled(simulation: &mut Simulation, seconds: u32, times: u32) {
    let tally = simulation.run(seconds, CAPACITY * times);
    let ratio = f64::from(tally.sent) / f64::from(tally.accepted);
    let goodput = f64::from(tally.accepted) / f64::from(seconds * CAPACITY);
    let seen = format!("{times}×: {ratio:.2}, {goodput:.2}, {tally:?}");
    assert!(ratio <= 2.2 && goodput >= 0.9, "{seen}");
}

#[test]
fn an_overloaded_service_gets_little_more_than_twice_what_it_accepts() {
    for (times, latency) in [(2, SECOND / 2), (4, SECOND / 20), (10, SECOND / 50)] {
        let mut simulation = Simulation::new(1, latency);
        assert_throttled(&mut simulation, 60, times);
        // The overload ends: after 5 s no call is refused any more.
        simulation.run(5, CAPACITY * 4 / 5);
        let after = simulation.run(60, CAPACITY * 4 / 5);
        assert_eq!((after.refused, after.accepted), (0, after.sent), "{times}×");
    }
}

#[test]
fn many_clients_of_a_few_calls_each_are_throttled_too() {
    let mut simulation = Simulation::new(100, SECOND / 20);
    // Each client makes 20 calls in a second; the first 150 it makes are not refused.
    simulation.run(10, CAPACITY * 4);
    assert_throttled(&mut simulation, 120, 4);
    simulation.run(30, CAPACITY * 4 / 5);
    let after = simulation.run(60, CAPACITY * 4 / 5);
    assert_eq!((after.refused, after.accepted), (0, after.sent));
}
