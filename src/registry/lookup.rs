use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::snapshot::Snapshot;
use super::{Balancer, Candidate, Instance, PickedInstance};
use crate::error::{Error, ErrorKind, Result};

/// What a look-up has found: the instances of a service, at one moment.
///
/// ```
/// use coney::{Instance, Registry};
///
/// let registry = Registry::memory();
/// let web = registry.register("web", Instance::new().with_port(8080))?;
/// let found = registry.lookup("web")?;
/// assert_eq!(found.iter().next().and_then(Instance::port), Some(8080));
/// assert!(!found.is_stale());
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct Lookup {
    service: Arc<str>,
    snapshot: Arc<Snapshot>,
}

impl Lookup {
    pub(super) fn new(service: &Arc<str>, snapshot: &Arc<Snapshot>) -> Self {
        Self {
            service: Arc::clone(service),
            snapshot: Arc::clone(snapshot),
        }
    }

    /// The living and healthy instances, in the order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Instance> {
        self.snapshot.ready.iter().map(|one| one.instance())
    }

    /// Every living instance, those that are not well too.
    pub fn all(&self) -> impl ExactSizeIterator<Item = &Instance> {
        self.snapshot.living.iter().map(|one| one.instance())
    }

    /// True if there is nobody alive and healthy.
    pub fn is_empty(&self) -> bool {
        self.snapshot.ready.is_empty()
    }

    /// True if the registry could not be asked when it should have been: then this is
    /// what was last known, dead instances and all.
    pub fn is_stale(&self) -> bool {
        self.snapshot.stale.is_some()
    }

    /// Why it is stale.
    pub fn stale_reason(&self) -> Option<&str> {
        self.snapshot.stale.as_deref()
    }

    /// How long ago the registry said so.
    pub fn age(&self) -> Duration {
        self.snapshot.loaded_at.elapsed()
    }

    /// Picks one of the living and healthy; for a key, if the balancer goes by it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoInstance`] if there is none.
    pub fn pick(&self, balancer: &dyn Balancer, key: Option<&str>) -> Result<PickedInstance> {
        let ready = &self.snapshot.ready;
        if ready.is_empty() {
            return Err(self.no_instance());
        }
        let first = &ready[balancer.pick(ready, key) % ready.len()];
        if !first.is_avoided() {
            return Ok(PickedInstance::new(first));
        }
        // From those that can be reached, if any can.
        let reachable = ready.iter().filter(|one| !one.is_avoided());
        let reachable: Vec<Arc<Candidate>> = reachable.cloned().collect();
        Ok(match reachable.len() {
            0 => PickedInstance::new(first),
            some => PickedInstance::new(&reachable[balancer.pick(&reachable, key) % some]),
        })
    }

    /// An instance has answered somebody who did not pick it.
    pub(crate) fn answered(&self, id: &str, after: Duration, is_failure: bool) {
        if let Some(one) = self.snapshot.find(id) {
            one.answered(after, is_failure);
        }
    }

    /// The error for a service without a living and healthy instance.
    pub(crate) fn no_instance(&self) -> Error {
        let service = &self.service;
        let unwell: Vec<&Arc<Candidate>> = self.snapshot.living.iter().collect();
        let text = match unwell.first() {
            None => format!("{service} has no live instance: none is registered"),
            Some(one) => format!(
                "{service} has no healthy instance: {} unwell ({})",
                unwell.len(),
                one.instance()
                    .unhealthy_reason()
                    .unwrap_or("no reason given")
            ),
        };
        Error::new(ErrorKind::NoInstance, text)
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup")
            .field("service", &self.service)
            .field("living", &self.snapshot.living.len())
            .field("ready", &self.snapshot.ready.len())
            .field("stale", &self.snapshot.stale)
            .finish_non_exhaustive()
    }
}
