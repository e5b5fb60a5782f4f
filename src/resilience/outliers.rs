//! The state of the ejection of one service's instances.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::ejection::Ejection;
use super::instance_record::InstanceRecord;
use crate::base::recent_times::microseconds;

/// The instances of a service, with what their latest attempts say of them.
pub(crate) struct Outliers {
    settings: Ejection,
    instances: HashMap<Box<str>, InstanceRecord>,
    /// The number of ejected instances.
    ejected: usize,
    /// The number of the last probe.
    last_probe: u64,
    /// The time of the last look for instances that are not used any more.
    swept_at: Option<Instant>,
}

/// A pick of an instance, which may be a probe. The default is none: of an attempt whose
/// instance was not picked here, such as one over the queue that all instances share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pick(Option<u64>);

/// An attempt that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndedAttempt {
    pub(crate) pick: Pick,
    /// True if it failed for a reason of the instance's own.
    pub(crate) failed: bool,
    pub(crate) took: Duration,
}

/// A change that an attempt has caused, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EjectionChange {
    /// The instance was ejected, for this time.
    Ejected(Duration),
    /// The instance was restored: a probe of it succeeded.
    Restored,
    /// More instances fail than may be ejected: none is ejected any more.
    AllRestored,
}

/// The time after which an instance without attempts is forgotten.
const IDLE: Duration = Duration::from_secs(10 * 60);

/// The time between two looks for such instances.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The number of instances that are watched: more than a service has. Further ones, such as ids
/// that a peer makes up, are ignored until others are forgotten.
const MOST_INSTANCES: usize = 1_000;

/// The time without attempts after which an instance is not compared with any more: the whole
/// service may have become slower since.
const LATELY: Duration = Duration::from_secs(10);

/// The difference in microseconds up to which no attempt is slow.
const NEGLIGIBLE: u32 = 5_000;

impl Outliers {
    /// Creates the state for settings that are checked.
    pub(crate) fn new(settings: &Ejection) -> Self {
        Self {
            settings: settings.clone(),
            instances: HashMap::new(),
            ejected: 0,
            last_probe: 0,
            swept_at: None,
        }
    }

    /// Returns true if an instance is ejected. While none is, [`pickable`](Self::pickable) and
    /// [`picked`](Self::picked) look nothing up.
    pub(crate) fn has_ejected(&self) -> bool {
        self.ejected > 0
    }

    /// Returns those of the candidates, all instances that are live and healthy, which may be
    /// picked now; `None` if all may. At least one may.
    ///
    /// If instances have gone, so that more of those left are ejected than may be, all are
    /// restored.
    pub(crate) fn pickable<T: Clone>(
        &mut self,
        candidates: &[T],
        id: impl Fn(&T) -> &str,
        now: Instant,
    ) -> Option<Vec<T>> {
        if !self.has_ejected() {
            return None;
        }
        let record = |candidate: &T| self.instances.get(id(candidate));
        let ejected = candidates.iter().filter_map(record);
        let ejected = ejected.filter(|record| record.is_ejected()).count();
        if ejected > self.settings.most_ejected(candidates.len()) {
            self.restore_all(now);
            return None;
        }
        let may_pick = |one: &&T| record(one).is_none_or(|record| record.may_pick(now));
        let left: Vec<T> = candidates.iter().filter(may_pick).cloned().collect();
        (left.len() < candidates.len()).then_some(left)
    }

    /// Records that an attempt, which ends by `deadline`, goes to an instance. It must be followed by [`ended`](Self::ended)
    /// or [`released`](Self::released) with this pick.
    ///
    /// Returns `None` if the instance is ejected, or was picked for its probe meanwhile: the
    /// balancer must pick again, from those that are [`pickable`](Self::pickable) then.
    pub(crate) fn picked(
        &mut self,
        instance: &str,
        now: Instant,
        deadline: Instant,
    ) -> Option<Pick> {
        if !self.has_ejected() {
            return Some(Pick::default());
        }
        let Some(record) = self.instances.get_mut(instance) else {
            return Some(Pick::default());
        };
        if !record.is_ejected() {
            return Some(Pick::default());
        }
        if !record.may_pick(now) {
            return None;
        }
        self.last_probe += 1;
        record.begin_probe(self.last_probe, now, deadline);
        Some(Pick(Some(self.last_probe)))
    }

    /// Records that an attempt has ended without an outcome that says anything of the instance.
    pub(crate) fn released(&mut self, instance: &str, pick: Pick) {
        if let Some(number) = pick.0
            && let Some(record) = self.instances.get_mut(instance)
        {
            record.end_probe(number);
        }
    }

    /// Records the outcome of an attempt whose instance is known. `known` is the number of
    /// instances of the service that are live and healthy.
    pub(crate) fn ended(
        &mut self,
        instance: &str,
        attempt: EndedAttempt,
        known: usize,
        now: Instant,
    ) -> Option<EjectionChange> {
        self.forget_idle(now);
        let record = self.record(instance, now)?;
        record.used_at = record.used_at.max(now);
        let probe = attempt.pick.0;
        let probe_began = probe.and_then(|number| record.end_probe(number));
        if !record.counts(probe_began, attempt.took, now) {
            return None;
        }
        // How fast it fails says nothing of how fast it works.
        if !attempt.failed {
            record.latencies.add(attempt.took);
        }
        let failed = attempt.failed || self.is_slow(instance, attempt.took, now);
        let record = self.instances.get_mut(instance)?;
        if !record.is_ejected() {
            record.note(failed, &self.settings, now);
            return (failed && record.is_failing)
                .then(|| self.eject_if_few(instance, known, now))
                .flatten();
        }
        // The first attempt after the ejection decides, a probe or not.
        if failed {
            return self.eject_again(instance, known, now);
        }
        record.restore(now);
        self.ejected -= 1;
        Some(EjectionChange::Restored)
    }

    /// Returns the record of an instance, a new one if it is not known yet; `None` if too many
    /// are.
    fn record(&mut self, instance: &str, now: Instant) -> Option<&mut InstanceRecord> {
        if !self.instances.contains_key(instance) {
            if self.instances.len() >= MOST_INSTANCES {
                return None;
            }
            let record = InstanceRecord::new(now);
            self.instances.insert(instance.into(), record);
        }
        self.instances.get_mut(instance)
    }

    /// Ejects a failing instance, unless too many fail.
    fn eject_if_few(
        &mut self,
        instance: &str,
        known: usize,
        now: Instant,
    ) -> Option<EjectionChange> {
        let most = self.settings.most_ejected(known);
        let failing = self.instances.values().filter(|one| one.is_failing).count();
        if failing > most.max(known / 2) {
            return self.restore_all(now);
        }
        if self.ejected >= most {
            return None;
        }
        let record = self.instances.get_mut(instance)?;
        self.ejected += 1;
        Some(EjectionChange::Ejected(record.eject(&self.settings, now)))
    }

    /// Ejects an instance for another time, unless so many have gone that too many are ejected.
    fn eject_again(
        &mut self,
        instance: &str,
        known: usize,
        now: Instant,
    ) -> Option<EjectionChange> {
        if self.ejected > self.settings.most_ejected(known) {
            return self.restore_all(now);
        }
        let record = self.instances.get_mut(instance)?;
        Some(EjectionChange::Ejected(record.eject(&self.settings, now)))
    }

    /// Returns the ejected instances, each with the time until its next probe may begin.
    pub(crate) fn ejected(&self, now: Instant) -> Vec<(String, Duration)> {
        let ejected = self.instances.iter().filter(|(_, one)| one.is_ejected());
        let mut ejected: Vec<_> = ejected
            .map(|(id, one)| (id.to_string(), one.ejected_for(now)))
            .collect();
        ejected.sort_unstable();
        ejected
    }

    /// Returns true if a successful attempt was so much slower than those of the other instances
    /// that it counts as failed.
    fn is_slow(&mut self, instance: &str, took: Duration, now: Instant) -> bool {
        let took = microseconds(took);
        let Some(times) = self.settings.slow.filter(|_| took >= NEGLIGIBLE) else {
            return false;
        };
        let own = self.instances.get_mut(instance);
        let Some(own) = own.and_then(|record| record.latencies.median()) else {
            return false;
        };
        let others = self
            .instances
            .iter_mut()
            .filter(|(id, _)| &***id != instance);
        let mut medians: Vec<u32> = others
            .filter(|(_, one)| !one.is_ejected())
            .filter(|(_, one)| now.saturating_duration_since(one.used_at) < LATELY)
            .filter_map(|(_, record)| record.latencies.median())
            .collect();
        if medians.is_empty() {
            return false;
        }
        // The upper one of two: if the other two differ, the faster may be the one that is odd.
        let middle = medians.len() / 2;
        let median = *medians.select_nth_unstable(middle).1;
        let bound = (f64::from(median) * times).max(f64::from(median) + f64::from(NEGLIGIBLE));
        f64::from(took) > bound && f64::from(own) > bound
    }

    /// Restores all ejected instances, with the failures that they were ejected for.
    fn restore_all(&mut self, now: Instant) -> Option<EjectionChange> {
        if !self.has_ejected() {
            return None;
        }
        let ejected = self.instances.values_mut().filter(|one| one.is_ejected());
        ejected.for_each(|record| record.readmit(now));
        self.ejected = 0;
        Some(EjectionChange::AllRestored)
    }

    /// Removes, now and then, the instances that have not been used for long.
    fn forget_idle(&mut self, now: Instant) {
        let swept_at = *self.swept_at.get_or_insert(now);
        if now.saturating_duration_since(swept_at) < SWEEP_INTERVAL {
            return;
        }
        self.swept_at = Some(now);
        self.instances.retain(|_, record| record.idle(now) < IDLE);
        let ejected = self.instances.values().filter(|one| one.is_ejected());
        self.ejected = ejected.count();
    }
}
