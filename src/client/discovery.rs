//! The queue a call goes to: the one that all instances share, or one instance's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call_outcome::CallOutcome;
use super::decode::CallTarget;
use super::pending_table::Balanced;
use crate::error::Result;
use crate::message::Reply;
use crate::registry::{Balancer, Candidate, PickedInstance, Registry};
use crate::resilience::Place;
use crate::topology;
use crate::transport::Publication;
use crate::verdict::Verdict;

/// The registry and the balancer of a client.
pub(super) struct Discovery {
    pub(super) registry: Registry,
    pub(super) require_instance: bool,
    pub(super) balancer: Option<Box<dyn Balancer>>,
}

/// The queue of a call.
pub(super) enum Route {
    /// The queue that all instances share.
    Shared,
    /// The queue of an instance that the caller has named.
    Named(String),
    /// The queue of an instance that the balancer has picked.
    Picked(String, PickedInstance),
}

/// A choice of the instances that an attempt may go to.
pub(super) trait InstanceFilter {
    /// Returns the candidates that are allowed, at least one; `None` if all are.
    fn narrow(&mut self, candidates: &[Arc<Candidate>]) -> Option<Vec<Arc<Candidate>>>;

    /// Records the instance that was picked, one of `known`; false if another must be picked.
    fn picked(&mut self, id: &str, known: usize) -> bool;

    /// Takes the place of the request among those that wait for replies, if they are limited.
    fn take_place(&mut self) -> Option<Place>;
}

/// The filter of calls that may go to any instance.
pub(super) struct AnyInstance;

impl InstanceFilter for AnyInstance {
    fn narrow(&mut self, _candidates: &[Arc<Candidate>]) -> Option<Vec<Arc<Candidate>>> {
        None
    }

    fn picked(&mut self, _id: &str, _known: usize) -> bool {
        true
    }

    fn take_place(&mut self) -> Option<Place> {
        None
    }
}

/// The share of a call's time that a look-up may take: one part in so many.
const LOOKUP_SHARE: u32 = 4;

/// The age up to which a look-up without instances is believed.
const EMPTY_LOOKUP_TTL: Duration = Duration::from_secs(1);

impl Discovery {
    /// Chooses the queue of a call. Blocks while the registry is asked, at most for a share of
    /// the time left until `deadline`.
    pub(super) fn route(
        &self,
        target: CallTarget<'_>,
        balance_key: Option<&str>,
        deadline: Instant,
        filter: &mut dyn InstanceFilter,
    ) -> Result<Route> {
        let service = target.service;
        let left = deadline.saturating_duration_since(Instant::now());
        let lookup_deadline = Instant::now() + left / LOOKUP_SHARE;
        // A registry that does not answer must not stop calls.
        let Ok(mut lookup) = self.registry.lookup_until(service, lookup_deadline) else {
            return Ok(Route::Shared);
        };
        if lookup.is_empty() && self.require_instance && !lookup.is_stale() {
            // An instance may have registered since.
            if lookup.age() > EMPTY_LOOKUP_TTL {
                match self.registry.refresh_until(service, lookup_deadline) {
                    Ok(refreshed) => lookup = refreshed,
                    Err(_) => return Ok(Route::Shared),
                }
            }
            if lookup.is_empty() && !lookup.is_stale() {
                return Err(target.no_instance(&lookup));
            }
        }
        let Some(balancer) = self.balancer.as_ref().filter(|_| !lookup.is_empty()) else {
            return Ok(Route::Shared);
        };
        let candidates = lookup.candidates();
        let pick = |filter: &mut dyn InstanceFilter| {
            let narrowed = filter.narrow(candidates);
            let candidates = narrowed.as_deref().unwrap_or(candidates);
            lookup.pick_from(candidates, &**balancer, balance_key)
        };
        let mut picked = pick(filter)?;
        // Which instance takes a request from the shared queue is not known.
        let is_free = |picked: &PickedInstance, filter: &mut dyn InstanceFilter| {
            !picked.has_own_queue() || filter.picked(picked.id(), candidates.len())
        };
        if !is_free(&picked, filter) {
            // Another call has taken the one place that the instance has at this moment.
            picked = pick(filter)?;
            let _ = is_free(&picked, filter);
        }
        Ok(match picked.has_own_queue() {
            true => Route::Picked(topology::instance_queue(service, picked.id()), picked),
            false => Route::Shared,
        })
    }

    /// Marks the look-up of a service as out of date: no reply came, or a picked instance has
    /// no queue.
    pub(super) fn invalidate_lookup(&self, service: &str) {
        self.registry.invalidate(service);
    }

    /// Records at the instance that answered how long it took, and whether it failed.
    pub(super) fn record_latency(&self, service: &str, outcome: &CallOutcome) {
        if self.balancer.is_some()
            && let CallOutcome::Reply {
                body,
                after: Some(after),
                ..
            } = outcome
            && let Some(known) = self.registry.known(service)
            && let Ok(Reply {
                instance_id: Some(id),
                error_code,
                ..
            }) = Reply::decode(body)
        {
            let failed = Verdict::of_code(error_code.as_deref()).counts_against_instance();
            known.answered(&id, *after, failed);
        }
    }
}

impl Route {
    /// Addresses a request to the queue.
    pub(super) fn apply(self, publication: &mut Publication) -> Option<Balanced> {
        let (queue, pick) = match self {
            Self::Shared => return None,
            Self::Named(queue) => (queue, None),
            Self::Picked(queue, pick) => (queue, Some(pick)),
        };
        let balanced = pick.map(|pick| Balanced {
            pick: Some(pick),
            fallback: Some(publication.clone()),
        });
        publication.routing_key = queue;
        balanced
    }
}
