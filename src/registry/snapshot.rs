use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::Candidate;
use super::liveness::Ghost;

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
