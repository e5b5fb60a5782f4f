//! Whom a call goes to: whoever is free, or one instance in particular.

use std::time::{Duration, Instant};

use super::CallOptions;
use super::call_outcome::CallOutcome;
use super::core::ClientCore;
use super::decode::CallTarget;
use super::pending_table::Balanced;
use crate::error::Result;
use crate::message::Reply;
use crate::registry::{Balancer, PickedInstance, Registry};
use crate::topology;
use crate::transport::Publication;

/// How a client finds the instances of a service.
pub(super) struct Discovery {
    pub(super) registry: Registry,
    pub(super) require_instance: bool,
    pub(super) balancer: Option<Box<dyn Balancer>>,
}

/// Where a call goes.
pub(super) enum Route {
    /// Into the queue that all instances share.
    Shared,
    /// Into the queue of one that the caller has named.
    Named(String),
    /// Into the queue of one that the balancer has picked.
    Picked(String, PickedInstance),
}

/// What part of a call's time the registry may take, as one in so many.
const PATIENCE: u32 = 4;

/// That nobody is there is believed for so long.
const LATELY: Duration = Duration::from_secs(1);

impl ClientCore {
    /// Finds a way. Blocks while the registry is asked, at most for a part of what is left
    /// until `deadline`.
    pub(super) fn route(
        &self,
        target: CallTarget<'_>,
        options: &CallOptions,
        deadline: Instant,
    ) -> Result<Route> {
        let service = target.service;
        if let Some(id) = &options.instance {
            return Ok(Route::Named(topology::instance_queue(service, id)));
        }
        let Some(discovery) = &self.discovery else {
            return Ok(Route::Shared);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = Instant::now() + left / PATIENCE;
        // A registry that cannot be asked must not stop anybody.
        let Ok(mut found) = discovery.registry.lookup_until(service, patience) else {
            return Ok(Route::Shared);
        };
        if found.is_empty() && discovery.require_instance && !found.is_stale() {
            // Somebody may have come since.
            if found.age() > LATELY {
                match discovery.registry.refresh_until(service, patience) {
                    Ok(now) => found = now,
                    Err(_) => return Ok(Route::Shared),
                }
            }
            if found.is_empty() && !found.is_stale() {
                return Err(target.no_instance(&found));
            }
        }
        let Some(balancer) = discovery.balancer.as_ref().filter(|_| !found.is_empty()) else {
            return Ok(Route::Shared);
        };
        let pick = found.pick(&**balancer, options.balance_key.as_deref())?;
        Ok(match pick.has_own_queue() {
            true => Route::Picked(topology::instance_queue(service, pick.id()), pick),
            false => Route::Shared,
        })
    }

    /// Nobody answered, or one that was picked is not there: look again.
    pub(super) fn invalidate_lookup(&self, target: CallTarget<'_>) {
        if let Some(discovery) = &self.discovery {
            discovery.registry.invalidate(target.service);
        }
    }

    /// Credits the instance that answered with how long it took, and whether it failed.
    pub(super) fn record_latency(&self, target: CallTarget<'_>, outcome: &CallOutcome) {
        if let CallOutcome::Reply {
            body,
            after: Some(after),
            ..
        } = outcome
            && let Some(discovery) = &self.discovery
            && let Some(known) = discovery.registry.known(target.service)
            && let Ok(Reply {
                instance_id: Some(id),
                error_code,
                ..
            }) = Reply::decode(body)
        {
            known.answered(
                &id,
                *after,
                error_code.as_deref().is_some_and(is_of_the_instance),
            );
        }
    }
}

/// Error codes that say that the instance is at fault. A handler's own error says nothing
/// about where it ran.
fn is_of_the_instance(code: &str) -> bool {
    matches!(
        code,
        "panic" | "bad_reply" | "poison" | "deduplication_failed"
    )
}

impl Route {
    /// Directs a request that is for the service.
    pub(super) fn apply(self, publication: &mut Publication) -> Option<Balanced> {
        let (queue, pick) = match self {
            Self::Shared => return None,
            Self::Named(queue) => (queue, None),
            Self::Picked(queue, pick) => (queue, Some(pick)),
        };
        let balanced = pick.map(|pick| Balanced {
            pick: Some(pick),
            fallback: Some(publication.clone()),
            at: Instant::now(),
        });
        publication.routing_key = queue;
        balanced
    }
}
