//! The result of a look-up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::balance::Balancer;
use super::choice::Choice;
use super::snapshot::Snapshot;
use super::{Candidate, Instance, PickedInstance};
use crate::error::{Error, ErrorKind, Result};

/// The result of a look-up: the instances of a service at one moment.
///
/// ```
/// use coney::{Instance, Registry};
///
/// let registry = Registry::memory();
/// let web = registry.register("web", Instance::new().with_port(8080))?;
/// let found = registry.lookup("web")?;
/// for instance in &found {
///     println!("{} on port {:?}", instance.id(), instance.port());
/// }
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

    /// Returns the live and healthy instances, ordered by their ids.
    pub fn iter(&self) -> Instances<'_> {
        Instances(self.snapshot.ready.iter())
    }

    /// Returns every live instance, healthy or not, ordered by their ids.
    pub fn all(&self) -> Instances<'_> {
        Instances(self.snapshot.living.iter())
    }

    /// Returns true if no instance is live and healthy.
    pub fn is_empty(&self) -> bool {
        self.snapshot.ready.is_empty()
    }

    /// Returns true if the store could not be asked when the instances had to be refreshed.
    /// They are then the last known ones, and some may be dead.
    pub fn is_stale(&self) -> bool {
        self.snapshot.stale.is_some()
    }

    /// Returns why the result is stale, if it is.
    pub fn stale_reason(&self) -> Option<&str> {
        self.snapshot.stale.as_deref()
    }

    /// Returns the time since the store was read.
    pub fn age(&self) -> Duration {
        self.snapshot.loaded_at.elapsed()
    }

    /// Picks one of the live and healthy instances. Balancers that do not go by the key ignore
    /// it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoInstance`] if there is none.
    pub fn pick(&self, balancer: &dyn Balancer, key: Option<&str>) -> Result<PickedInstance> {
        self.pick_from(&self.snapshot.ready, balancer, key)
    }

    /// Returns the live and healthy instances as balancers see them.
    pub(crate) fn candidates(&self) -> &[Arc<Candidate>] {
        &self.snapshot.ready
    }

    /// Picks one of these instances.
    pub(crate) fn pick_from(
        &self,
        ready: &[Arc<Candidate>],
        balancer: &dyn Balancer,
        key: Option<&str>,
    ) -> Result<PickedInstance> {
        let pick = |candidates: &[Arc<Candidate>]| {
            let choice = Choice::new(&self.service, candidates, key);
            balancer.pick(&choice) % candidates.len()
        };
        if ready.is_empty() {
            return Err(self.no_instance());
        }
        let first = &ready[pick(ready)];
        if !first.is_avoided() {
            return Ok(PickedInstance::new(first));
        }
        // One of those that can be reached, if any can.
        let reachable = ready.iter().filter(|one| !one.is_avoided());
        let reachable: Vec<Arc<Candidate>> = reachable.cloned().collect();
        Ok(match reachable.is_empty() {
            true => PickedInstance::new(first),
            false => PickedInstance::new(&reachable[pick(&reachable)]),
        })
    }

    /// Records a reply of an instance to a call that did not pick it.
    pub(crate) fn answered(&self, id: &str, after: Duration, is_failure: bool) {
        if let Some(one) = self.snapshot.find(id) {
            one.answered(after, is_failure);
        }
    }

    /// Returns the error for a service without a live and healthy instance.
    pub(crate) fn no_instance(&self) -> Error {
        let service = &self.service;
        let living = &self.snapshot.living;
        let text = match living.first() {
            None => format!("{service} has no live instance: none is registered"),
            Some(one) => format!(
                "{service} has no healthy instance: {} unhealthy ({})",
                living.len(),
                one.instance()
                    .unhealthy_reason()
                    .unwrap_or("no reason given")
            ),
        };
        Error::new(ErrorKind::NoInstance, text)
    }
}

impl<'a> IntoIterator for &'a Lookup {
    type Item = &'a Instance;
    type IntoIter = Instances<'a>;

    fn into_iter(self) -> Instances<'a> {
        self.iter()
    }
}

/// An iterator over the instances of a [`Lookup`].
#[must_use = "iterators are lazy"]
#[derive(Clone)]
pub struct Instances<'a>(std::slice::Iter<'a, Arc<Candidate>>);

impl<'a> Iterator for Instances<'a> {
    type Item = &'a Instance;

    fn next(&mut self) -> Option<&'a Instance> {
        self.0.next().map(|one| one.instance())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for Instances<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|one| one.instance())
    }
}

impl ExactSizeIterator for Instances<'_> {}

impl fmt::Debug for Instances<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
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
