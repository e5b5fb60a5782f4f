//! The state that all clones of a client share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::answer::CallReply;
use super::backlog_gate::BacklogGates;
use super::bound_services::BoundServices;
use super::call_outcome::CallOutcome;
use super::decode::CallTarget;
use super::discovery::{Discovery, InstanceFilter, Route};
use super::extensions::Extensions;
use super::lone_spin::LoneSpin;
use super::options::RequestOptions;
use super::router::Router;
use super::sent_call::SentCall;
use crate::base::callbacks::{LazyCallbackThread, Watched};
use crate::error::{Error, Result};
use crate::resilience::ServicePolicies;
use crate::topology;
use crate::transport::{Broker, CoalesceLimits, LinkHandle, Sink};

/// A client without its handles.
pub(super) struct ClientCore {
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) broker: Broker,
    pub(super) handle: Arc<dyn LinkHandle>,
    pub(super) router: Arc<Router>,
    pub(super) discovery: Option<Discovery>,
    /// The limits of a message that several calls share, if they may.
    pub(super) coalesce: Option<CoalesceLimits>,
    /// The spinning of a call that is the only one in flight, if it may.
    pub(super) lone_spin: Option<LoneSpin>,
    /// The bounds on the backlogs of services that commands are sent to.
    pub(super) backlogs: BacklogGates,
    /// Policies, layers, fallbacks and caches, if there are any.
    pub(super) extensions: Option<Box<Extensions>>,
    pub(super) callbacks: Arc<LazyCallbackThread>,
    pub(super) delayed: BoundServices,
}

const CLIENT_CLOSED: &str = "the client has been closed";

impl ClientCore {
    /// Chooses the queue of a call. Blocks while the registry is asked, at most for a share of
    /// the time left until `deadline`.
    pub(super) fn route(
        &self,
        target: CallTarget<'_>,
        options: &RequestOptions,
        deadline: Instant,
        filter: &mut dyn InstanceFilter,
    ) -> Result<Route> {
        if let Some(id) = &options.instance {
            let queue = topology::instance_queue(target.service, id);
            return Ok(Route::Named(queue));
        }
        match &self.discovery {
            Some(discovery) => {
                discovery.route(target, options.balance_key.as_deref(), deadline, filter)
            }
            None => Ok(Route::Shared),
        }
    }

    /// Converts an outcome into the caller's result, and records it for the balancer.
    pub(super) fn result<T: DeserializeOwned>(
        &self,
        target: CallTarget<'_>,
        outcome: CallOutcome,
    ) -> Result<T> {
        target.decode(self.reply(target, outcome)?.json())
    }

    /// Converts an outcome into the answer, undecoded, and records it for the balancer.
    pub(super) fn reply(&self, target: CallTarget<'_>, outcome: CallOutcome) -> Result<CallReply> {
        self.record_latency(target, &outcome);
        if matches!(outcome, CallOutcome::NoRoute { .. }) {
            self.invalidate_lookup(target);
        }
        target.reply(outcome, self.address())
    }

    pub(super) fn record_latency(&self, target: CallTarget<'_>, outcome: &CallOutcome) {
        if let Some(discovery) = &self.discovery {
            discovery.record_latency(target.service, outcome);
        }
    }

    fn invalidate_lookup(&self, target: CallTarget<'_>) {
        if let Some(discovery) = &self.discovery {
            discovery.invalidate_lookup(target.service);
        }
    }

    /// Returns the policies for a service, if there are any.
    pub(super) fn policies(&self, service: &str) -> Option<Arc<ServicePolicies>> {
        let extensions = self.extensions.as_ref()?;
        extensions.policies(service, &self.name, &self.callbacks)
    }

    /// Drops a call whose outcome is not wanted any more.
    pub(super) fn forget(&self, sent: &SentCall) {
        if self.broker.is_forked() {
            std::mem::forget(sent.clone());
            return;
        }
        sent.send_state.abandon();
        self.router.forget(sent.id);
    }

    pub(super) fn timed_out(&self, target: CallTarget<'_>, sent: &SentCall) -> Error {
        self.invalidate_lookup(target);
        target.timed_out(&sent.send_state, sent.timeout, self.address())
    }

    /// Creates the error of a call whose outcome is not known and will not be.
    pub(super) fn unreported(&self, target: CallTarget<'_>) -> Error {
        let reply = target.reply(CallOutcome::Unreported, self.address());
        reply
            .err()
            .unwrap_or_else(|| target.closed("its outcome never came"))
    }

    pub(super) fn address(&self) -> &str {
        self.broker.address()
    }

    /// Watches a result on the callback thread, which starts with the first.
    pub(super) fn watch(&self, watched: Box<dyn Watched>) -> Result<()> {
        let begun = format!("a request of {}", self.name);
        self.broker.check_owner_process(&begun)?;
        self.callbacks.watch(&self.name, watched)
    }

    pub(super) fn close(&self) {
        self.router.closed(CLIENT_CLOSED);
        self.handle.close();
    }
}

impl Drop for ClientCore {
    fn drop(&mut self) {
        if self.broker.is_forked() {
            std::mem::forget((Arc::clone(&self.router), Arc::clone(&self.handle)));
            return;
        }
        self.close();
    }
}
