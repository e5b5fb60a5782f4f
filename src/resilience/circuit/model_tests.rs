//! Property tests of the circuit breaker with random schedules: a model that keeps a log of every
//! outcome, and the proof that it never stays half-open.

use super::tests::far;
use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

fn circuit() -> Circuit {
    let settings = Breaker::new().minimum_calls(4).slow(5 * MILLI, 0.8);
    Circuit::with_random(&settings, fastrand::Rng::with_seed(7))
}

/// A step of a test with random schedules.
#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Admit,
    /// Ends the n-th permit not yet given back, modulo their number.
    End(usize, Option<(bool, u64)>),
    /// Sends this many calls one after the other, which all succeed, or all fail.
    Calls(usize, bool),
    HoldOpen(u64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    // In milliseconds; 5 ms are the limit of a slow call.
    let end = prop::option::weighted(0.9, (prop::bool::weighted(0.4), 0..8u64));
    prop_oneof![
        3 => (0..100u64).prop_map(Step::Pass),
        2 => (100..3_000u64).prop_map(Step::Pass),
        1 => (3_000..70_000u64).prop_map(Step::Pass),
        20 => Just(Step::Admit),
        20 => (0..20usize, end).prop_map(|(which, end)| Step::End(which, end)),
        2 => (1..40usize, any::<bool>()).prop_map(|(calls, fail)| Step::Calls(calls, fail)),
        1 => (0..20_000u64).prop_map(Step::HoldOpen),
        1 => Just(Step::Close),
    ]
}

/// A time, by which its thread is late in milliseconds: it took the time before the lock.
fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let late = prop_oneof![4 => Just(0), 1 => 0..1_500u64];
    prop::collection::vec((step(), late), 1..300)
}

fn end((failed, took): (bool, u64)) -> CallEnd {
    let took = Duration::from_millis(took);
    CallEnd { failed, took }
}

/// The breaker as a log: the outcomes of its present state, and the moments of its changes.
struct Model {
    random: fastrand::Rng,
    /// The states entered so far; their number is the generation.
    states: Vec<BreakerState>,
    until: Instant,
    closed_at: Option<Instant>,
    periods: i32,
    /// The outcomes closed, with the number of the bucket; half-open, those of probes.
    log: Vec<(u128, CallEnd)>,
    /// The last outcome closed that was no failure.
    last_well: Option<Instant>,
    probes_in_flight: usize,
    first: Option<Instant>,
    latest: u128,
}

impl Model {
    fn new() -> Self {
        Self {
            random: fastrand::Rng::with_seed(7),
            states: vec![BreakerState::Closed],
            until: Instant::now(),
            closed_at: None,
            periods: 0,
            log: Vec::new(),
            last_well: None,
            probes_in_flight: 0,
            first: None,
            latest: 0,
        }
    }

    fn recorded(&self) -> BreakerState {
        self.states[self.states.len() - 1]
    }

    fn state(&self, now: Instant) -> BreakerState {
        match self.recorded() {
            BreakerState::Open | BreakerState::HeldOpen if now >= self.until => {
                BreakerState::HalfOpen
            }
            state => state,
        }
    }

    fn enter(&mut self, state: BreakerState) {
        self.states.push(state);
        self.log.clear();
        self.last_well = None;
        self.probes_in_flight = 0;
    }

    fn leave_closed(&mut self, now: Instant) {
        let closed_at = self
            .closed_at
            .filter(|_| self.recorded() == BreakerState::Closed);
        if closed_at.is_some_and(|at| now.saturating_duration_since(at) >= 30 * SECOND) {
            self.periods = 0;
        }
    }

    fn open(&mut self, now: Instant) {
        self.leave_closed(now);
        let seconds = (5.0 * 2f64.powi(self.periods)).min(60.0 / 1.1);
        self.periods += 1;
        let jitter = (self.random.f64() - 0.5) * JITTER;
        let length = Duration::from_secs_f64(seconds).mul_f64(1.0 + jitter);
        self.until = now + length.min(60 * SECOND);
        self.enter(BreakerState::Open);
    }

    fn admit(&mut self, now: Instant) -> Option<usize> {
        let state = self.state(now);
        if state != self.recorded() {
            self.enter(state);
        }
        match state {
            BreakerState::Closed => {}
            BreakerState::HalfOpen if self.probes_in_flight < 3 => self.probes_in_flight += 1,
            _ => return None,
        }
        Some(self.states.len())
    }

    fn ended(&mut self, permit: usize, end: Option<CallEnd>, now: Instant) {
        if permit != self.states.len() {
            return;
        }
        let is_half_open = self.recorded() == BreakerState::HalfOpen;
        self.probes_in_flight -= usize::from(is_half_open);
        let Some(end) = end else { return };
        if is_half_open {
            self.log.push((0, end));
            if end.failed || end.took > 5 * MILLI {
                self.open(now);
            } else if self.log.len() == 3 {
                self.closed_at = Some(now);
                self.enter(BreakerState::Closed);
            }
            return;
        }
        let first = *self.first.get_or_insert(now);
        let bucket = now.saturating_duration_since(first).as_secs();
        self.latest = self.latest.max(bucket.into());
        self.log.push((self.latest, end));
        let inside = |(bucket, _): &&(u128, CallEnd)| bucket + 10 > self.latest;
        let ends: Vec<CallEnd> = self.log.iter().filter(inside).map(|it| it.1).collect();
        let failed = ends.iter().filter(|end| end.failed).count();
        let slow = ends.iter().filter(|end| end.took > 5 * MILLI).count();
        if !end.failed {
            self.last_well = Some(now);
        }
        let in_a_row = self.log.iter().rev().take_while(|(_, end)| end.failed);
        let is_quiet = |last| now.saturating_duration_since(last) >= SECOND;
        let is_outage =
            in_a_row.count() >= 10 && failed >= 10 && self.last_well.is_none_or(is_quiet);
        let is_reached = failed * 2 >= ends.len() || slow * 5 >= ends.len() * 4;
        if ends.len() >= 4 && (is_reached || is_outage) {
            self.open(now);
        }
    }
}

proptest! {
    #[test]
    fn it_does_as_the_model(steps in steps()) {
        let mut circuit = circuit();
        let mut model = Model::new();
        let mut clock = Instant::now() + 10 * SECOND;
        let mut permits = Vec::new();
        let mut seen = vec![BreakerState::Closed];
        for (step, late) in steps {
            if let Step::Pass(millis) = step {
                clock += Duration::from_millis(millis);
            }
            let now = clock - Duration::from_millis(late);
            match step {
                Step::Pass(_) => {}
                Step::Admit => {
                    let (permit, wanted) = (circuit.admit(now, far(now)), model.admit(now));
                    prop_assert_eq!(permit.is_ok(), wanted.is_some());
                    permits.extend(permit.ok().zip(wanted));
                }
                Step::End(which, outcome) if !permits.is_empty() => {
                    let (permit, wanted) = permits.swap_remove(which % permits.len());
                    circuit.ended(permit, outcome.map(end), now);
                    model.ended(wanted, outcome.map(end), now);
                }
                Step::End(..) => {}
                Step::Calls(calls, fail) => {
                    for _ in 0..calls {
                        let (permit, wanted) = (circuit.admit(now, far(now)), model.admit(now));
                        prop_assert_eq!(permit.is_ok(), wanted.is_some());
                        if let (Ok(permit), Some(wanted)) = (permit, wanted) {
                            circuit.ended(permit, Some(end((fail, 1))), now);
                            model.ended(wanted, Some(end((fail, 1))), now);
                        }
                    }
                }
                Step::HoldOpen(millis) => {
                    let length = Duration::from_millis(millis);
                    circuit.hold_open(now, length);
                    model.leave_closed(now);
                    model.until = now + length;
                    model.enter(BreakerState::HeldOpen);
                }
                Step::Close => {
                    circuit.close();
                    (model.periods, model.closed_at) = (0, None);
                    model.enter(BreakerState::Closed);
                }
            }
            prop_assert_eq!(circuit.state(now), model.state(now));
            let is_open = matches!(model.recorded(), BreakerState::Open | BreakerState::HeldOpen);
            let left = model.until.saturating_duration_since(now);
            prop_assert_eq!(circuit.retry_after(now), (is_open && !left.is_zero()).then_some(left));
            // No change is lost: each begins where the one before ended.
            while let Some(change) = circuit.take_change() {
                prop_assert_eq!(Some(&change.from), seen.last());
                let is_refusing = matches!(change.to, BreakerState::Open | BreakerState::HeldOpen);
                prop_assert_eq!(change.retry_after.is_some(), is_refusing);
                seen.push(change.to);
            }
        }
        model.states.dedup(); // held open again, or closed again, is no change
        prop_assert_eq!(seen, model.states);
    }

    /// Whatever happened before: while it is half-open no more than three permits are not given
    /// back, and once all are, a call is sent as soon as the period has passed.
    #[test]
    fn it_never_stays_half_open(
        steps in steps(), last in prop::option::of((any::<bool>(), 0..8u64)),
    ) {
        let mut circuit = circuit();
        let mut now = Instant::now();
        let mut permits: Vec<CircuitPermit> = Vec::new();
        for (step, _) in steps {
            match step {
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Admit => permits.extend(circuit.admit(now, far(now))),
                Step::End(which, outcome) if !permits.is_empty() => {
                    let permit = permits.swap_remove(which % permits.len());
                    circuit.ended(permit, outcome.map(end), now);
                }
                Step::End(..) => {}
                Step::Calls(calls, fail) => {
                    for _ in 0..calls {
                        if let Ok(permit) = circuit.admit(now, far(now)) {
                            circuit.ended(permit, Some(end((fail, 1))), now);
                        }
                    }
                }
                Step::HoldOpen(millis) => circuit.hold_open(now, Duration::from_millis(millis)),
                Step::Close => circuit.close(),
            }
            if let Phase::HalfOpen { .. } = circuit.phase {
                let current = permits.iter().filter(|it| it.generation == circuit.generation);
                prop_assert!(current.count() <= 3);
            }
        }
        for permit in permits {
            circuit.ended(permit, last.map(end), now);
        }
        let left = circuit.retry_after(now).unwrap_or_default();
        prop_assert!(circuit.admit(now + left, far(now + left)).is_ok());
    }
}
