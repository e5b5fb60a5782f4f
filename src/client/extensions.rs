//! The extensions of a client beside sending its calls: policies, layers, fallbacks and caches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use super::action_cache::ActionCache;
use super::fallback::Fallback;
use super::layer::CallLayer;
use crate::base::callbacks::{LazyCallbackThread, Notifier, Watched};
use crate::base::log_relay;
use crate::error::Result;
use crate::resilience::{Breaker, BreakerChange, Report, Resilience, ServicePolicies};
use crate::transport::Broker;

/// The extensions of a client beside sending its calls. A client without any has no such value.
#[derive(Default)]
pub(super) struct Extensions {
    /// The policies for the services without policies of their own.
    pub(super) resilience: Resilience,
    pub(super) resilience_for: HashMap<String, Resilience>,
    /// The layers round each call, the outermost first.
    pub(super) layers: Vec<Arc<dyn CallLayer>>,
    /// The layers round each attempt, the outermost first.
    pub(super) attempt_layers: Vec<Arc<dyn CallLayer>>,
    actions: HashMap<String, HashMap<String, ActionExtensions>>,
    services: RwLock<HashMap<Box<str>, Arc<ServicePolicies>>>,
}

/// The extensions of a client for one action.
#[derive(Default)]
pub(super) struct ActionExtensions {
    pub(super) cache: Option<Arc<dyn ActionCache>>,
    pub(super) fallback: Option<Fallback>,
}

/// The number of services whose policies are kept. A program calls fewer, unless it takes their
/// names from requests; then those in a state of rest are
/// forgotten.
const MOST_SERVICES: usize = 4_096;

impl Extensions {
    /// Returns what is done for an action, to be filled in.
    pub(super) fn action_mut(&mut self, service: &str, action: &str) -> &mut ActionExtensions {
        let actions = self.actions.entry(service.to_owned()).or_default();
        actions.entry(action.to_owned()).or_default()
    }

    /// Returns what is done for an action, if anything is.
    pub(super) fn action(&self, service: &str, action: &str) -> Option<&ActionExtensions> {
        self.actions.get(service)?.get(action)
    }

    /// Returns true if nothing is set.
    pub(super) fn is_empty(&self) -> bool {
        self.resilience.is_none()
            && self.resilience_for.is_empty()
            && self.layers.is_empty()
            && self.attempt_layers.is_empty()
            && self.actions.is_empty()
    }

    /// Returns true if there are layers.
    pub(super) fn has_layers(&self) -> bool {
        !self.layers.is_empty() || !self.attempt_layers.is_empty()
    }

    /// Checks the settings, and opens the caches.
    pub(super) fn open(
        &self,
        broker: &Broker,
        client: &str,
        deadline: Option<Instant>,
    ) -> Result<()> {
        self.resilience.check()?;
        for (service, resilience) in &self.resilience_for {
            let checked = resilience.check();
            checked.map_err(|error| error.about(format_args!("policies for {service}")))?;
        }
        let actions = self.actions.values().flat_map(HashMap::values);
        for cache in actions.filter_map(|action| action.cache.as_ref()) {
            cache.open(broker, client, deadline)?;
        }
        Ok(())
    }

    /// Returns the policies for a service, if there are any. Changes of its breaker's state go to
    /// the callback thread of the client.
    pub(super) fn policies(
        &self,
        service: &str,
        client: &str,
        callbacks: &Arc<LazyCallbackThread>,
    ) -> Option<Arc<ServicePolicies>> {
        if let Some(policies) = self.services.read().get(service) {
            return Some(Arc::clone(policies));
        }
        let own = self.resilience_for.get(service);
        let settings = own.unwrap_or(&self.resilience);
        if settings.is_none() {
            return None;
        }
        let report = report_to(callbacks, client);
        let policies = Arc::new(ServicePolicies::new(service, settings, report));
        let mut services = self.services.write();
        if services.len() >= MOST_SERVICES {
            let now = Instant::now();
            services.retain(|service, policies| {
                Arc::strong_count(policies) > 1
                    || self.resilience_for.contains_key(&**service)
                    || !policies.may_be_forgotten(now)
            });
        }
        if services.len() >= MOST_SERVICES && own.is_none() && !services.contains_key(service) {
            return Some(policies); // for this call only
        }
        let policies = services.entry(service.into()).or_insert(policies);
        Some(Arc::clone(policies))
    }
}

/// Returns the way by which changes of a breaker's state go to their listener: the callback thread
/// runs it, in the order of the changes.
fn report_to(callbacks: &Arc<LazyCallbackThread>, client: &str) -> Report {
    // The thread belongs to the client, which owns the policies too.
    let callbacks = Arc::downgrade(callbacks);
    let client = client.to_owned();
    Box::new(move |breaker, change| {
        let call = ListenerCall {
            breaker: breaker.clone(),
            change,
            due: Instant::now(),
        };
        if let Some(callbacks) = callbacks.upgrade()
            && let Err(error) = callbacks.watch(&client, Box::new(call))
        {
            log_relay::log(
                log::Level::Warn,
                "coney::client",
                format_args!("a listener misses a change of a circuit breaker: {error}"),
            );
        }
    })
}

/// A call of a breaker's listener.
struct ListenerCall {
    breaker: Breaker,
    change: BreakerChange,
    due: Instant,
}

impl Watched for ListenerCall {
    fn start(&mut self, _ready: &Notifier) {}

    fn is_ready(&mut self, _ready: &Notifier) -> bool {
        true
    }

    fn deadline(&self) -> Instant {
        self.due
    }

    fn finish(self: Box<Self>) {
        self.breaker.notify(&self.change);
    }
}
