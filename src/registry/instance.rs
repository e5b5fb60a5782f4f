//! The description of one instance of a service.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::fields::{OURS, UNHEALTHY_BECAUSE};
use crate::base::deadline;
use crate::base::text::prefix;
use crate::error::{Error, ErrorKind, Result};

/// An instance of a service: one running copy, as the registry describes it.
///
/// Everything but the id is optional, and its meaning is up to the programs that register and
/// look up. Fields that coney does not know are kept unchanged, as peers in other languages write
/// their own.
///
/// ```
/// use coney::Instance;
///
/// let instance = Instance::new()
///     .with_host("10.0.0.7")
///     .with_port(8080)
///     .with_metadata("zone", &"eu-1");
/// assert_eq!(instance.port(), Some(8080));
/// assert_eq!(instance.metadata::<String>("zone").as_deref(), Some("eu-1"));
/// assert_eq!(instance.id().len(), 16);
/// ```
#[derive(Clone, PartialEq)]
#[must_use]
pub struct Instance {
    pub(super) id: String,
    pub(super) service: String,
    pub(super) registered_at: u64,
    pub(super) last_heartbeat: u64,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) version: Option<String>,
    pub(super) weight: u32,
    pub(super) actions: Vec<String>,
    pub(super) healthy: bool,
    /// All other fields, unchanged.
    pub(super) metadata: Map<String, Value>,
}

/// The metadata field with an array of what the instance supports beyond the wire contract.
pub(crate) const CAPABILITIES: &str = "capabilities";

/// The metadata field with the version of this library, in an instance that it registered.
const LIBRARY: &str = "coney";

/// The capability of an instance that takes calls from a queue of its own too.
pub(crate) const OWN_QUEUE: &str = "own_queue";

/// The greatest length of the reason for bad health, in bytes.
const LONGEST_REASON: usize = 200;

/// The greatest length of an id in bytes: it is part of the name of the instance's queue.
const LONGEST_ID: usize = 64;

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

impl Instance {
    /// Creates an instance with a random id of 16 hex digits and nothing else.
    pub fn new() -> Self {
        Self {
            id: format!("{:016x}", crate::base::random::random_u64()),
            service: String::new(),
            registered_at: 0,
            last_heartbeat: 0,
            host: None,
            port: None,
            version: None,
            weight: 1,
            actions: Vec::new(),
            healthy: true,
            metadata: Map::new(),
        }
    }

    /// Sets the id, of at most 64 bytes. Defaults to 16 random hex digits. Two instances of a
    /// service that run at the same time must not have the same id.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets the host on which the instance runs, a name or an address.
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Sets the port on which the instance listens.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the version of the program.
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets the share of calls that the instance takes compared with the others, for clients that
    /// balance with [`Weighted`](crate::balance::Weighted). Defaults to 1. With 0 it takes calls
    /// only if no other instance has a weight.
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the actions that the instance handles.
    pub fn with_actions<S: Into<String>>(mut self, actions: impl IntoIterator<Item = S>) -> Self {
        self.actions = actions.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a field of its own. A value that cannot be serialized to JSON, or a name that is one
    /// of coney's own fields, is ignored.
    pub fn with_metadata<V: Serialize + ?Sized>(
        mut self,
        name: impl Into<String>,
        value: &V,
    ) -> Self {
        let name = name.into();
        if let (Ok(value), false) = (serde_json::to_value(value), OURS.contains(&name.as_str())) {
            self.metadata.insert(name, value);
        }
        self
    }

    /// Returns the id, unique among the running instances of the service.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the name of the service; empty before the instance is registered.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Returns when it was registered, in Unix seconds by the clock of its store or process.
    pub fn registered_at(&self) -> u64 {
        self.registered_at
    }

    /// Returns the time of its last heartbeat, in Unix seconds by the clock of its store or
    /// process.
    pub fn last_heartbeat(&self) -> u64 {
        self.last_heartbeat
    }

    /// Returns the host on which it runs.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Returns the port on which it listens.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the version of its program.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Returns its weight; 1 if none is registered.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns the actions that it handles; none if none are registered.
    pub fn actions(&self) -> &[String] {
        &self.actions
    }

    /// Returns false while one of its health checks fails.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Returns why it is unhealthy: the check that fails, and its error.
    pub fn unhealthy_reason(&self) -> Option<&str> {
        self.metadata.get(UNHEALTHY_BECAUSE)?.as_str()
    }

    /// Returns true if it takes calls from a queue of its own.
    pub(crate) fn has_own_queue(&self) -> bool {
        let capabilities = self.metadata.get(CAPABILITIES).and_then(Value::as_array);
        capabilities.is_some_and(|all| all.iter().any(|one| one == OWN_QUEUE))
    }

    /// Returns a field of its own, if it is there and deserializes to `T`.
    pub fn metadata<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.metadata.get(name)?).ok()
    }

    /// Checks the id, which becomes part of names.
    pub(super) fn check(&self) -> Result<()> {
        if self.id.is_empty() || self.id.len() > LONGEST_ID {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("an instance id has 1 to {LONGEST_ID} bytes: {:?}", self.id),
            ));
        }
        if self.id.contains(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("an instance id has no control characters: {:?}", self.id),
            ));
        }
        Ok(())
    }

    /// Returns the instance as it is registered: for a service, from now on.
    pub(super) fn registered(mut self, service: &str) -> Self {
        service.clone_into(&mut self.service);
        self.registered_at = unix_seconds();
        self.last_heartbeat = self.registered_at;
        self.metadata
            .insert(LIBRARY.into(), env!("CARGO_PKG_VERSION").into());
        self
    }

    /// Returns the instance with a heartbeat now, by this machine's clock.
    pub(super) fn with_heartbeat_now(self) -> Self {
        self.with_heartbeat_at(unix_seconds())
    }

    /// Returns the instance with a heartbeat at a time in Unix seconds.
    pub(crate) fn with_heartbeat_at(mut self, seconds: u64) -> Self {
        self.last_heartbeat = seconds;
        self
    }

    /// Returns the instance with its times moved from this machine's clock to another clock,
    /// whose time is `seconds` now.
    #[cfg(feature = "redis")]
    pub(crate) fn by_clock(mut self, seconds: u64) -> Self {
        let now = unix_seconds();
        let there = |here: u64| seconds.saturating_sub(now.saturating_sub(here));
        self.registered_at = there(self.registered_at);
        self.last_heartbeat = there(self.last_heartbeat);
        self
    }

    /// Returns true if this library registered it: its heartbeats are written by the store's
    /// clock, and deregistering it leaves a tombstone.
    pub(super) fn is_ours(&self) -> bool {
        self.metadata.contains_key(LIBRARY)
    }

    /// Sets its health: unhealthy for the given reason, or healthy.
    pub(crate) fn set_health(&mut self, fault: Option<&str>) {
        let fault = fault.map(|fault| prefix(fault, LONGEST_REASON));
        self.healthy = fault.is_none();
        match fault {
            Some(fault) => self.metadata.insert(UNHEALTHY_BECAUSE.into(), fault.into()),
            None => self.metadata.remove(UNHEALTHY_BECAUSE),
        };
    }

    /// Takes over the heartbeat and the health of `newer`, and leaves the rest, which another
    /// program may have written. For [`RegistryStore::heartbeat`](super::RegistryStore::heartbeat)
    /// of a store of one's own.
    pub fn renew_from(&mut self, newer: &Self) {
        self.last_heartbeat = newer.last_heartbeat;
        let reason = |one: &Self| one.unhealthy_reason().map(str::to_owned);
        if (self.healthy, reason(self)) != (newer.healthy, reason(newer)) {
            let fault = reason(newer).unwrap_or_default();
            self.set_health((!newer.healthy).then_some(&*fault));
        }
    }
}

fn unix_seconds() -> u64 {
    deadline::unix_millis_after(std::time::Duration::ZERO) / 1_000
}

impl fmt::Debug for Instance {
    /// Formats the instance without its metadata, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("id", &self.id)
            .field("service", &self.service)
            .field("last_heartbeat", &self.last_heartbeat)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("healthy", &self.healthy)
            .finish_non_exhaustive()
    }
}
