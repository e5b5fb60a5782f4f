//! A property test of the ejection of instances against a model that keeps the log of all
//! attempts.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::ejection::Ejection;
use super::outliers::{EndedAttempt, Outliers, Pick};

/// One operation of a test; times are in milliseconds.
#[derive(Clone, Debug)]
enum Step {
    /// Ends an attempt that was not picked.
    End {
        at: usize,
        failed: bool,
        took: u64,
    },
    Pick(usize),
    /// Ends the n-th pick that has not ended, modulo their number; without an outcome if `None`.
    EndPick {
        which: usize,
        failed: Option<bool>,
    },
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let end = (0..6usize, prop::bool::weighted(0.6), 0..1_500u64);
    let end = end.prop_map(|(at, failed, took)| Step::End { at, failed, took });
    let failed = prop::option::weighted(0.8, any::<bool>());
    let end_pick = (0..10usize, failed).prop_map(|(which, failed)| Step::EndPick { which, failed });
    prop_oneof![
        10 => end,
        4 => (0..6usize).prop_map(Step::Pick),
        4 => end_pick,
        3 => (0..3_000u64).prop_map(Step::Advance),
    ]
}

/// An instance in the model.
#[derive(Clone, Default)]
struct Known {
    /// The attempts that count since it was new, or was restored by a probe.
    log: Vec<(u64, bool)>,
    /// The beginnings and ends of its ejections; the end may be in the future.
    ejections: Vec<(u64, u64)>,
    is_ejected: bool,
    /// True from an ejection until it succeeds.
    was_ejected: bool,
    times: u64,
    is_failing: bool,
    /// The pick that is its probe, and when it began.
    probe: Option<(Pick, u64)>,
}

struct Model {
    in_a_row: usize,
    minimum: usize,
    rate: f64,
    most: usize,
    first: u64,
    longest: u64,
    instances: Vec<Known>,
}

impl Known {
    fn since(&self) -> Option<u64> {
        self.ejections.last().map(|(_, end)| *end)
    }

    fn may_pick(&self, now: u64) -> bool {
        !self.is_ejected || (self.probe.is_none() && self.since().is_some_and(|end| end <= now))
    }

    fn readmit(&mut self, now: u64) {
        self.is_ejected = false;
        self.ejections.last_mut().unwrap().1 = now;
    }
}

impl Model {
    fn judged_failing(&self, at: usize, now: u64) -> bool {
        let one = &self.instances[at];
        let failures = one
            .log
            .iter()
            .rev()
            .take_while(|(_, failed)| *failed)
            .count();
        let start = one.log.first().map_or(now, |(at, _)| *at);
        let second = |at: u64| (at - start) / 1_000;
        let recent = one
            .log
            .iter()
            .filter(|(at, _)| second(*at) + 10 > second(now));
        let attempts = recent.clone().count();
        let failed = recent.filter(|(_, failed)| *failed).count();
        failures >= self.in_a_row
            || (failures > 0 && one.was_ejected)
            || (attempts >= self.minimum && failed as f64 >= self.rate * attempts as f64)
    }

    fn eject(&mut self, at: usize, now: u64) {
        let (first, longest) = (self.first, self.longest);
        let one = &mut self.instances[at];
        if !one.is_ejected
            && let Some(since) = one.since()
        {
            one.times = one.times.saturating_sub((now - since) / 30_000);
        }
        // 1 s, 2 s, 3 s: counted up to the longest.
        one.times = (one.times + 1).min(longest.div_ceil(first));
        let end = now + (first * one.times).min(longest);
        one.ejections.push((now, end));
        (one.is_ejected, one.was_ejected, one.is_failing) = (true, true, true);
    }

    fn end(&mut self, at: usize, failed: bool, began: Option<u64>, now: u64) {
        if self.instances[at]
            .since()
            .is_some_and(|since| began.is_none_or(|began| began < since))
        {
            return;
        }
        let one = &mut self.instances[at];
        match (one.is_ejected, failed) {
            (true, true) => return self.eject(at, now),
            (true, false) => {
                one.readmit(now);
                one.log.clear();
                (one.was_ejected, one.is_failing) = (false, false);
                return;
            }
            (false, _) => one.log.push((now, failed)),
        }
        one.was_ejected &= failed;
        let is_failing = self.judged_failing(at, now);
        self.instances[at].is_failing = is_failing;
        let count = |of: fn(&Known) -> bool| self.instances.iter().filter(|one| of(one)).count();
        if !failed || !is_failing {
            return;
        }
        if count(|one| one.is_failing) > self.most.max(self.instances.len() / 2) {
            let ejected = self.instances.iter_mut().filter(|one| one.is_ejected);
            ejected.for_each(|one| one.readmit(now));
        } else if count(|one| one.is_ejected) < self.most {
            self.eject(at, now);
        }
    }
}

proptest! {
    #[test]
    fn outliers_behave_like_the_model(
        count in 2..6usize,
        in_a_row in 1..5u32,
        rate in prop::sample::select(vec![0.3, 0.5, 1.0]),
        minimum in 1..8u32,
        at_most in prop::sample::select(vec![0.3, 0.5, 1.0]),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let (first, longest) = (1_000, 3_500);
        let settings = Ejection::new()
            .in_a_row(in_a_row)
            .rate(rate, minimum)
            .at_most(at_most)
            .eject_for(Duration::from_millis(first), Duration::from_millis(longest))
            .ignore_slow();
        let mut outliers = Outliers::new(&settings);
        let mut model = Model {
            in_a_row: in_a_row as usize,
            minimum: minimum as usize,
            rate,
            most: ((count as f64 * at_most).floor() as usize).min(count - 1),
            first,
            longest,
            instances: vec![Known::default(); count],
        };
        let ids: Vec<String> = (0..count).map(|n| format!("i{n}")).collect();
        let start = Instant::now();
        // The time begins late enough for attempts that began before.
        let mut at_ms = 10_000u64;
        let mut picks: Vec<(usize, Pick, u64)> = Vec::new();
        for step in steps {
            let now = start + Duration::from_millis(at_ms);
            let mut ended = |at: usize, pick, failed, took| {
                let took = Duration::from_millis(took);
                outliers.ended(&ids[at], EndedAttempt { pick, failed, took }, count, now);
            };
            match step {
                Step::Advance(time) => at_ms += time,
                Step::End { at, failed, took } => {
                    let at = at % count;
                    ended(at, Pick::default(), failed, took);
                    model.end(at, failed, Some(at_ms - took), at_ms);
                }
                Step::Pick(at) => {
                    let at = at % count;
                    let pick = outliers.picked(&ids[at], now, now + Duration::from_secs(1 << 32));
                    prop_assert_eq!(pick.is_some(), model.instances[at].may_pick(at_ms));
                    let Some(pick) = pick else { continue };
                    picks.push((at, pick, at_ms));
                    let one = &mut model.instances[at];
                    prop_assert_eq!(pick == Pick::default(), !one.is_ejected);
                    if one.is_ejected {
                        prop_assert!(one.probe.replace((pick, at_ms)).is_none(), "two probes");
                    }
                }
                Step::EndPick { which, failed } => {
                    if picks.is_empty() {
                        continue;
                    }
                    let (at, pick, began) = picks.swap_remove(which % picks.len());
                    match failed {
                        Some(failed) => ended(at, pick, failed, at_ms - began),
                        None => outliers.released(&ids[at], pick),
                    }
                    let one = &mut model.instances[at];
                    one.probe.take_if(|(probe, _)| *probe == pick);
                    if let Some(failed) = failed {
                        model.end(at, failed, Some(began), at_ms);
                    }
                }
            }
            let now = start + Duration::from_millis(at_ms);
            let ejected: Vec<(String, Duration)> = ids
                .iter()
                .zip(&model.instances)
                .filter(|(_, one)| one.is_ejected)
                .map(|(id, one)| {
                    let left = one.since().unwrap().saturating_sub(at_ms);
                    (id.clone(), Duration::from_millis(left))
                })
                .collect();
            prop_assert!(ejected.len() <= model.most && model.most < count);
            prop_assert_eq!(outliers.has_ejected(), !ejected.is_empty());
            prop_assert_eq!(outliers.ejected(now), ejected);
            let mut wanted = ids.clone();
            let may_pick = |id: &String| model.instances[id[1..].parse::<usize>().unwrap()].may_pick(at_ms);
            wanted.retain(may_pick);
            prop_assert!(!wanted.is_empty());
            let pickable = outliers.pickable(&ids, |id| id, now);
            prop_assert_eq!(pickable.unwrap_or_else(|| ids.clone()), wanted);
            // Whatever the schedule, each instance has at most one probe that has not ended.
            for (n, _) in ids.iter().enumerate() {
                let probes = picks.iter().filter(|(at, pick, _)| *at == n && *pick != Pick::default());
                prop_assert!(probes.count() <= 1);
            }
        }
    }
}
