use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::liveness::Ghost;
use super::{Candidate, Instance};
use crate::base::deadline;

/// One moment by both clocks: heartbeats are told by the one, and waited for by the
/// other.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) at: Instant,
    unix_millis: u64,
}

impl Clock {
    /// Now, by the store's clock if it has one.
    pub(super) fn now(store_millis: Option<u64>) -> Self {
        let ours = || deadline::unix_millis_after(Duration::ZERO);
        Self::at(Instant::now(), store_millis.unwrap_or_else(ours))
    }

    pub(super) fn at(at: Instant, unix_millis: u64) -> Self {
        Self { at, unix_millis }
    }

    /// The time since an instance was last heard of, by this clock; nothing for one of the
    /// near future, as a clock that is fast writes it.
    pub(super) fn age(&self, instance: &Instance) -> Duration {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        Duration::from_millis(self.unix_millis.saturating_sub(beat))
    }

    /// True if the heartbeat is of the time before or after now, as far as `heartbeat_ttl`.
    pub(super) fn is_young(&self, instance: &Instance, heartbeat_ttl: Duration) -> bool {
        let beat = instance.last_heartbeat.saturating_mul(1_000);
        let ahead = Duration::from_millis(beat.saturating_sub(self.unix_millis));
        ahead <= heartbeat_ttl && self.age(instance) < heartbeat_ttl
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
    /// Those that count as dead, by id.
    pub(super) ghosts: HashMap<String, Ghost>,
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
            ghosts: HashMap::new(),
        }
    }

    pub(super) fn with_ghosts(mut self, ghosts: HashMap<String, Ghost>) -> Self {
        self.ghosts = ghosts;
        self
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
            .with_ghosts(self.ghosts.clone())
    }
}
