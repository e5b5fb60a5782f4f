//! Tests of the ejection of instances: single rules, and a model that keeps the log of all
//! attempts.

use std::time::{Duration, Instant};

use super::ejection::Ejection;
use super::outliers::{EjectionChange, EndedAttempt, Outliers, Pick};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A service with instances `i0`, `i1`, …, and the time.
struct Service {
    outliers: Outliers,
    ids: Vec<String>,
    now: Instant,
}

impl Service {
    fn new(instances: usize, settings: &Ejection) -> Self {
        settings.check().unwrap();
        Self {
            outliers: Outliers::new(settings),
            ids: (0..instances).map(|n| format!("i{n}")).collect(),
            now: Instant::now(),
        }
    }

    /// Ends an attempt that was not a probe.
    fn ended(&mut self, at: usize, failed: bool, took: Duration) -> Option<EjectionChange> {
        self.end(at, Pick::default(), failed, took)
    }

    fn end(
        &mut self,
        at: usize,
        pick: Pick,
        failed: bool,
        took: Duration,
    ) -> Option<EjectionChange> {
        let attempt = EndedAttempt { pick, failed, took };
        self.outliers
            .ended(&self.ids[at], attempt, self.ids.len(), self.now)
    }

    fn fail(&mut self, at: usize, times: usize) -> Option<EjectionChange> {
        let ends = (0..times).map(|_| self.ended(at, true, Duration::ZERO));
        ends.last().flatten()
    }

    fn pick(&mut self, at: usize) -> Option<Pick> {
        self.outliers
            .picked(&self.ids[at], self.now, self.now + SECOND)
    }

    fn pickable(&mut self) -> Vec<String> {
        let left = self.outliers.pickable(&self.ids, |id| id, self.now);
        left.unwrap_or_else(|| self.ids.clone())
    }

    fn ejected(&self) -> Vec<String> {
        let ejected = self.outliers.ejected(self.now).into_iter();
        let ids: Vec<String> = ejected.map(|(id, _)| id).collect();
        assert_eq!(self.outliers.has_ejected(), !ids.is_empty());
        ids
    }
}

const fn ejected_for(seconds: u64) -> Option<EjectionChange> {
    Some(EjectionChange::Ejected(Duration::from_secs(seconds)))
}

/// icebob/moleculer#93: two instances consume one queue, and the broker picks.
#[test]
fn a_failing_instance_never_gets_a_healthy_one_ejected() {
    let mut service = Service::new(2, &Ejection::new());
    let mut rng = fastrand::Rng::with_seed(93);
    for _ in 0..20_000 {
        service.now += rng.u32(0..20) * MS;
        // It fails fast, and the other takes a hundred times as long.
        match rng.bool() {
            true => service.ended(0, true, MS / 10),
            false => service.ended(1, false, 10 * MS),
        };
        assert!(!service.ejected().contains(&"i1".to_owned()));
    }
    assert_eq!(service.ejected(), ["i0"]);
}

#[test]
fn an_instance_is_ejected_at_the_fifth_failure_in_a_row() {
    let mut service = Service::new(3, &Ejection::new());
    assert_eq!(service.fail(0, 4), None);
    assert_eq!(service.ended(0, false, MS), None);
    assert_eq!(service.fail(0, 4), None);
    assert_eq!(service.pickable(), ["i0", "i1", "i2"]);
    assert_eq!(service.fail(0, 1), ejected_for(10));
    assert_eq!(service.pickable(), ["i1", "i2"]);
    assert_eq!(service.pick(0), None);
    assert_eq!(service.pick(1), Some(Pick::default()));
    assert_eq!(
        service.outliers.ejected(service.now),
        [("i0".to_owned(), 10 * SECOND)]
    );
}

#[test]
fn an_instance_is_ejected_if_half_of_twenty_attempts_fail() {
    let mut service = Service::new(3, &Ejection::new());
    for n in 1..=20 {
        service.now += 400 * MS;
        let change = service.ended(0, n % 2 == 0, MS);
        assert_eq!(change, if n == 20 { ejected_for(10) } else { None });
    }
    // Of another, no ten seconds have twenty attempts.
    for n in 0..100 {
        service.now += 600 * MS;
        assert_eq!(service.ended(1, n % 2 == 0, MS), None);
    }
}

#[test]
fn one_of_four_that_is_twenty_times_slower_is_ejected_within_twenty_attempts() {
    let mut rng = fastrand::Rng::with_seed(4);
    for was_fast in [0, 1_000] {
        let mut service = Service::new(4, &Ejection::new());
        let mut attempts = 0;
        for n in 0.. {
            service.now += MS;
            let at = rng.usize(..4);
            let is_slow = at == 2 && n >= was_fast;
            let took = rng.u32(8..12) * if is_slow { 20 * MS } else { MS };
            attempts += u32::from(is_slow);
            // The attempt took as long as that: it began before.
            service.now += took;
            if service.ended(at, false, took).is_some() {
                break;
            }
            assert!(attempts < 20, "not ejected");
        }
        assert_eq!(service.ejected(), ["i2"]);
        // A slow probe is a failed one.
        service.now += 10 * SECOND;
        for at in [0, 1, 3] {
            service.ended(at, false, 10 * MS);
        }
        let probe = service.pick(2).unwrap();
        service.now += 200 * MS;
        assert_eq!(service.end(2, probe, false, 200 * MS), ejected_for(20));
        service.now += 20 * SECOND;
        let probe = service.pick(2).unwrap();
        let restored = Some(EjectionChange::Restored);
        assert_eq!(service.end(2, probe, false, 10 * MS), restored);
    }
}

#[test]
fn single_expensive_calls_and_small_differences_eject_no_instance() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut service = Service::new(3, &Ejection::new());
    for _ in 0..50_000 {
        service.now += MS;
        let at = rng.usize(..3);
        // The third is fifty times slower, by less than 5 ms; a fifth of all calls is expensive.
        let usual = if at == 2 { 5 * MS } else { MS / 10 };
        let took = if rng.u32(..5) == 0 { 100 * MS } else { usual };
        assert_eq!(service.ended(at, false, took), None);
    }
    let mut apart = Service::new(3, &Ejection::new().ignore_slow());
    for n in 0..1_000 {
        let took = if n % 3 == 2 { SECOND } else { MS };
        assert_eq!(apart.ended(n % 3, false, took), None);
    }
}

#[test]
fn a_service_that_becomes_slower_is_compared_with_what_it_is_now() {
    let mut service = Service::new(2, &Ejection::new());
    (0..20).for_each(|_| assert_eq!(service.ended(0, false, MS), None));
    service.now += 10 * SECOND;
    for _ in 0..50 {
        service.now += 50 * MS;
        assert_eq!(
            service.ended(1, false, 50 * MS),
            None,
            "the other was not used lately"
        );
    }
}

#[test]
fn a_probe_that_ends_without_an_outcome_frees_its_place() {
    let mut service = Service::new(2, &Ejection::new());
    service.fail(0, 5);
    service.now += 10 * SECOND - MS;
    assert_eq!(service.pick(0), None);
    service.now += MS;
    let probe = service.pick(0).unwrap();
    assert_eq!(service.pickable(), ["i1"]);
    assert_eq!(service.pick(0), None, "one at a time");
    service.outliers.released("i0", probe);
    let next = service.pick(0).unwrap();
    // Ended twice, which frees nothing of the next.
    service.outliers.released("i0", probe);
    assert_eq!(service.pick(0), None);
    assert_eq!(
        service.end(0, next, false, MS),
        Some(EjectionChange::Restored)
    );
    assert_eq!(service.pickable(), ["i0", "i1"]);
}

#[test]
fn outcomes_of_attempts_before_an_ejection_do_not_count_after_it() {
    let mut service = Service::new(2, &Ejection::new());
    service.fail(0, 5);
    for failed in [true, false] {
        assert_eq!(service.ended(0, failed, SECOND), None);
    }
    service.now += 11 * SECOND;
    let probe = service.pick(0).unwrap();
    assert_eq!(
        service.ended(0, false, 2 * SECOND),
        None,
        "it began before the period was over"
    );
    assert_eq!(service.pick(0), None, "the probe has not ended");
    service.end(0, probe, false, MS);
    service.now += SECOND;
    for _ in 0..50 {
        assert_eq!(service.ended(0, true, 5 * SECOND), None);
    }
    assert_eq!(service.fail(0, 5), ejected_for(20));
    // Without a balancer, an attempt over the shared queue is as good as a probe.
    service.now += 21 * SECOND;
    assert_eq!(service.ended(0, false, MS), Some(EjectionChange::Restored));
}

#[test]
fn ejections_become_longer_and_shorter_again() {
    let mut service = Service::new(2, &Ejection::new().eject_for(10 * SECOND, 25 * SECOND));
    assert_eq!(service.fail(0, 5), ejected_for(10));
    for seconds in [20, 25, 25, 25] {
        service.now += 25 * SECOND;
        let probe = service.pick(0).unwrap();
        assert_eq!(service.end(0, probe, true, MS), ejected_for(seconds));
    }
    let back = |service: &mut Service| {
        service.now += 25 * SECOND;
        let probe = service.pick(0).unwrap();
        assert_eq!(
            service.end(0, probe, false, MS),
            Some(EjectionChange::Restored)
        );
    };
    back(&mut service);
    service.now += 60 * SECOND;
    assert_eq!(service.fail(0, 5), ejected_for(20));
    back(&mut service);
    service.now += 300 * SECOND;
    assert_eq!(service.fail(0, 5), ejected_for(10));
}

#[test]
fn if_more_than_half_fail_none_is_ejected() {
    let mut service = Service::new(4, &Ejection::new());
    service.fail(0, 5);
    service.fail(1, 5);
    assert_eq!(service.pickable(), ["i2", "i3"]);
    assert_eq!(service.fail(2, 5), Some(EjectionChange::AllRestored));
    for _ in 0..100 {
        service.now += 100 * MS;
        for at in 0..3 {
            assert_eq!(service.fail(at, 1), None);
        }
    }
    assert_eq!(service.pickable().len(), 4);
    // The last two recover, one after the other.
    service.now += 10 * SECOND;
    service.ended(2, false, MS);
    assert_eq!(service.fail(0, 1), ejected_for(20));
    assert_eq!(service.fail(1, 1), ejected_for(20));
}

#[test]
fn instances_that_are_gone_do_not_count() {
    let mut service = Service::new(4, &Ejection::new());
    service.fail(0, 5);
    service.fail(1, 5);
    // Two healthy ones go: the rest must not be ejected altogether.
    service.ids.truncate(2);
    assert_eq!(service.pickable(), ["i0", "i1"]);
    assert!(!service.outliers.has_ejected());
}

/// A program may start an asynchronous call and not wait for it.
#[test]
fn a_probe_that_does_not_end_holds_its_place_until_after_its_deadline() {
    let mut service = Service::new(3, &Ejection::new());
    service.fail(0, 5);
    service.now += 10 * SECOND;
    let kept = service.pick(0);
    assert!(kept.is_some());
    service.now += 2 * SECOND; // its deadline was a second after it began
    assert_eq!(service.pick(0), None);
    service.now += MS;
    let probe = service.pick(0).unwrap();
    assert_eq!(
        service.end(0, probe, false, MS),
        Some(EjectionChange::Restored)
    );
}

#[test]
fn the_only_instance_is_never_ejected() {
    let mut service = Service::new(1, &Ejection::new().at_most(1.0));
    assert_eq!(service.fail(0, 100), None);
    assert_eq!(service.pickable(), ["i0"]);
}

#[test]
fn instances_that_are_not_used_are_forgotten() {
    let mut service = Service::new(2_000, &Ejection::new());
    service.fail(0, 5);
    (1..2_000).for_each(|at| assert_eq!(service.ended(at, false, MS), None));
    assert_eq!(service.fail(1_500, 5), None, "a thousand are watched");
    service.now += 609 * SECOND;
    service.ended(1, false, MS);
    assert_eq!(service.ejected(), ["i0"], "ten minutes after its ejection");
    service.now += 60 * SECOND;
    service.ended(1, false, MS);
    assert_eq!(service.ejected(), [""; 0]);
    assert_eq!(service.fail(1_500, 5), ejected_for(10));
}
