//! The instances of a service at one moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::Candidate;
use super::liveness::DeadInstance;

/// The instances of a service at one moment.
pub(super) struct Snapshot {
    /// The live instances, healthy or not, ordered by their ids.
    pub(super) living: Vec<Arc<Candidate>>,
    /// The live and healthy instances, ordered by their ids.
    pub(super) ready: Vec<Arc<Candidate>>,
    /// The moment at which the first live instance counts as dead.
    pub(super) first_death: Option<Instant>,
    pub(super) loaded_at: Instant,
    /// The reason for which the snapshot may be out of date.
    pub(super) stale: Option<Arc<str>>,
    /// The store's [generation](super::StoredInstances::generation).
    pub(super) generation: u64,
    /// The instances that count as dead, by id.
    pub(super) known_dead: HashMap<String, DeadInstance>,
}

impl Snapshot {
    pub(super) fn new(
        mut living: Vec<Arc<Candidate>>,
        loaded_at: Instant,
        stale: Option<Arc<str>>,
        generation: u64,
    ) -> Self {
        // By id, so that every process has the same order.
        living.sort_unstable_by(|a, b| a.instance().id().cmp(b.instance().id()));
        let healthy = living.iter().filter(|one| one.instance().is_healthy());
        Self {
            ready: healthy.cloned().collect(),
            first_death: living.iter().map(|one| one.dies_at).min(),
            living,
            loaded_at,
            stale,
            generation,
            known_dead: HashMap::new(),
        }
    }

    pub(super) fn with_known_dead(mut self, known_dead: HashMap<String, DeadInstance>) -> Self {
        self.known_dead = known_dead;
        self
    }

    /// Returns a live instance by its id.
    pub(super) fn find(&self, id: &str) -> Option<&Arc<Candidate>> {
        let at = self
            .living
            .binary_search_by(|one| one.instance().id().cmp(id));
        at.ok().map(|at| &self.living[at])
    }

    /// Returns a stale copy, for when the store could not be asked.
    pub(super) fn to_stale(&self, reason: Arc<str>) -> Self {
        let living = self.living.clone();
        Self::new(living, self.loaded_at, Some(reason), self.generation)
            .with_known_dead(self.known_dead.clone())
    }
}
