use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Candidate, Instance};
use crate::deadline;

/// One moment by both clocks: heartbeats are told by the one, and waited for by the
/// other.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) at: Instant,
    unix_millis: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            unix_millis: deadline::unix_millis_after(Duration::ZERO),
        }
    }

    pub(super) fn is_alive(&self, instance: &Instance, dead_after: Duration) -> bool {
        self.dies_at(instance, dead_after) > self.at
    }

    /// When an instance counts as dead that is not heard of again. A heartbeat in the
    /// future, by a clock that is fast, counts as one of now.
    fn dies_at(&self, instance: &Instance, dead_after: Duration) -> Instant {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        let age = Duration::from_millis(self.unix_millis.saturating_sub(beat));
        self.at + dead_after.saturating_sub(age)
    }
}

/// What was known of a service at one moment.
pub(super) struct Snapshot {
    /// The living, unhealthy ones too.
    pub(super) living: Vec<Arc<Candidate>>,
    /// Those of them that can be picked.
    pub(super) ready: Vec<Arc<Candidate>>,
    /// When the first of the living counts as dead.
    pub(super) first_death: Option<Instant>,
    pub(super) loaded_at: Instant,
    /// Why it may be out of date.
    pub(super) stale: Option<Arc<str>>,
    /// Since when the store seems to have lost what it knew.
    pub(super) lost_at: Option<Instant>,
}

impl Snapshot {
    /// Of what a store has answered just now.
    pub(super) fn new(
        found: Vec<Instance>,
        clock: Clock,
        dead_after: Duration,
        before: Option<&Self>,
    ) -> Self {
        let before = before.map_or(&[][..], |before| &before.living);
        let living = found.into_iter().map(|instance| {
            let dies_at = clock.dies_at(&instance, dead_after);
            let known = before.binary_search_by(|one| one.instance().id().cmp(instance.id()));
            let known = known.ok().map(|at| &*before[at]);
            Arc::new(Candidate::new(instance, dies_at, known))
        });
        let mut living: Vec<_> = living.filter(|one| one.dies_at > clock.at).collect();
        // So that what goes by the order goes by the same in every process.
        living.sort_unstable_by(|a, b| a.instance().id().cmp(b.instance().id()));
        Self::of(living, clock.at)
    }

    fn of(living: Vec<Arc<Candidate>>, loaded_at: Instant) -> Self {
        let healthy = living.iter().filter(|one| one.instance().is_healthy());
        Self {
            ready: healthy.cloned().collect(),
            first_death: living.iter().map(|one| one.dies_at).min(),
            living,
            loaded_at,
            stale: None,
            lost_at: None,
        }
    }

    /// Without those that have died since.
    pub(super) fn without_the_dead(&self, now: Instant) -> Self {
        let living = self.living.iter().filter(|one| one.dies_at > now);
        Self::of(living.cloned().collect(), self.loaded_at)
    }

    /// The same, when the store could not be asked.
    pub(super) fn gone_stale(&self, because: Arc<str>, lost_at: Option<Instant>) -> Self {
        Self {
            stale: Some(because),
            lost_at,
            ..Self::of(self.living.clone(), self.loaded_at)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_AFTER: Duration = Duration::from_secs(60);

    fn beaten(seconds_ago: i64) -> Instance {
        let now = deadline::unix_millis_after(Duration::ZERO) / 1_000;
        let beat = now.saturating_add_signed(-seconds_ago);
        let json = format!(r#"{{"last_heartbeat":{beat}}}"#);
        Instance::from_json("s", &format!("i{seconds_ago}"), &json).unwrap()
    }

    #[test]
    fn alive_is_less_than_dead_after_old() {
        let clock = Clock::now();
        assert!(clock.is_alive(&beaten(58), DEAD_AFTER));
        assert!(!clock.is_alive(&beaten(60), DEAD_AFTER));
        assert!(!clock.is_alive(&beaten(1_000_000_000), DEAD_AFTER));
        let fast = clock.dies_at(&beaten(-1_000), DEAD_AFTER);
        assert_eq!(
            fast,
            clock.at + DEAD_AFTER,
            "a clock that is fast gives no more time"
        );
    }

    #[test]
    fn the_dead_leave_at_their_time() {
        let found = vec![beaten(50), beaten(10), beaten(70)];
        let clock = Clock::now();
        let snapshot = Snapshot::new(found, clock, DEAD_AFTER, None);
        assert_eq!(snapshot.living.len(), 2);
        let death = snapshot.first_death.unwrap();
        assert!(death <= clock.at + Duration::from_secs(10));
        let later = snapshot.without_the_dead(death);
        assert_eq!(later.ready.len(), 1);
        assert_eq!(later.ready[0].instance().id(), "i10");
    }
}
