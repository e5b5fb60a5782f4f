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
    /// near future, by a clock that is fast, counts as one of now; one in the far future
    /// is none.
    pub(super) fn dies_at(&self, instance: &Instance, dead_after: Duration) -> Instant {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        let ahead = Duration::from_millis(beat.saturating_sub(self.unix_millis));
        if ahead > dead_after {
            return self.at;
        }
        let age = Duration::from_millis(self.unix_millis.saturating_sub(beat));
        self.at + dead_after.saturating_sub(age)
    }
}

/// What was known of a service at one moment.
pub(super) struct Snapshot {
    /// The living, unhealthy ones too, in the order of their ids.
    pub(super) living: Vec<Arc<Candidate>>,
    /// Those of them that can be picked.
    pub(super) ready: Vec<Arc<Candidate>>,
    /// When the first of the living counts as dead.
    pub(super) first_death: Option<Instant>,
    pub(super) loaded_at: Instant,
    /// Why it may be out of date.
    pub(super) stale: Option<Arc<str>>,
    /// The store's.
    pub(super) generation: u64,
}

impl Snapshot {
    pub(super) fn new(
        mut living: Vec<Arc<Candidate>>,
        loaded_at: Instant,
        stale: Option<Arc<str>>,
        generation: u64,
    ) -> Self {
        // So that what goes by the order goes by the same in every process.
        living.sort_unstable_by(|a, b| a.instance().id().cmp(b.instance().id()));
        let healthy = living.iter().filter(|one| one.instance().is_healthy());
        Self {
            ready: healthy.cloned().collect(),
            first_death: living.iter().map(|one| one.dies_at).min(),
            living,
            loaded_at,
            stale,
            generation,
        }
    }

    /// An instance as it was known.
    pub(super) fn find(&self, id: &str) -> Option<&Arc<Candidate>> {
        let at = self
            .living
            .binary_search_by(|one| one.instance().id().cmp(id));
        at.ok().map(|at| &self.living[at])
    }

    /// The same, when the store could not be asked.
    pub(super) fn gone_stale(&self, because: Arc<str>) -> Self {
        let living = self.living.clone();
        Self::new(living, self.loaded_at, Some(because), self.generation)
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
        let fast = clock.dies_at(&beaten(-50), DEAD_AFTER);
        assert_eq!(fast, clock.at + DEAD_AFTER, "a clock that is fast");
        let millis = beaten(-1_795_422_612_000);
        assert!(
            !clock.is_alive(&millis, DEAD_AFTER),
            "a peer that writes milliseconds"
        );
    }
}
