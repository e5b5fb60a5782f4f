use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::fields::{OURS, UNHEALTHY_BECAUSE};
use crate::base::deadline;
use crate::base::text::prefix;
use crate::error::{Error, ErrorKind, Result};

/// One running copy of a service, as the registry knows it.
///
/// Everything but the id is optional and free: what it is for is between those who
/// register and those who look up. Fields that coney does not know are kept as they
/// are, as peers in other languages write their own.
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
    /// All the rest, as it came.
    pub(super) metadata: Map<String, Value>,
}

/// What it can do beside the wire contract.
pub(crate) const CAPABILITIES: &str = "capabilities";
/// The place where the version of this library is, in an instance that it registered.
const LIBRARY: &str = "coney";

/// It takes calls from a queue of its own too.
pub(crate) const OWN_QUEUE: &str = "own_queue";

/// How much of what an instance is unhealthy of is told, in bytes.
const LONGEST_REASON: usize = 200;

/// An id goes into the name of the instance's queue.
const LONGEST_ID: usize = 64;

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

impl Instance {
    /// An instance with a random id of 16 hex digits and nothing else.
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

    /// An id of one's own, of at most 64 bytes. Two instances of a service that
    /// run at the same time must not have the same.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// The host it runs on, a name or an address.
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// The port it listens on, if it does.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The version of the program.
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// How much it takes compared with the others, where clients balance with
    /// [`Weighted`](crate::balance::Weighted); to others it means nothing. Default: 1; 0 takes
    /// nothing unless there is nobody else.
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The actions it handles.
    pub fn with_actions<S: Into<String>>(mut self, actions: impl IntoIterator<Item = S>) -> Self {
        self.actions = actions.into_iter().map(Into::into).collect();
        self
    }

    /// Anything else. A value that has no JSON, and a name that is one of coney's
    /// own, is left out.
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

    /// Its id, the only one of its service at a time.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The service it is a copy of; empty before it is registered.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// When it was registered, in Unix seconds by its own clock.
    pub fn registered_at(&self) -> u64 {
        self.registered_at
    }

    /// When it was last heard of, in Unix seconds by its own clock.
    pub fn last_heartbeat(&self) -> u64 {
        self.last_heartbeat
    }

    /// The host it runs on.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The port it listens on.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The version of its program.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// How much it takes compared with the others; 1 where it does not say.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The actions it handles, if it says.
    pub fn actions(&self) -> &[String] {
        &self.actions
    }

    /// False while one of its health checks fails.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Which check fails, and how.
    pub fn unhealthy_reason(&self) -> Option<&str> {
        self.metadata.get(UNHEALTHY_BECAUSE)?.as_str()
    }

    /// Can calls be addressed to it?
    pub(crate) fn has_own_queue(&self) -> bool {
        let capabilities = self.metadata.get(CAPABILITIES).and_then(Value::as_array);
        capabilities.is_some_and(|all| all.iter().any(|one| one == OWN_QUEUE))
    }

    /// Anything else it says of itself, if it is there and is a `T`.
    pub fn metadata<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.metadata.get(name)?).ok()
    }

    /// Checks what goes into names.
    pub(super) fn check(&self) -> Result<()> {
        if self.id.is_empty() || self.id.len() > LONGEST_ID {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("an instance id has 1 to {LONGEST_ID} bytes: {:?}", self.id),
            ));
        }
        Ok(())
    }

    /// As it is registered: for a service, from now on.
    pub(super) fn registered(mut self, service: &str) -> Self {
        service.clone_into(&mut self.service);
        self.registered_at = unix_seconds();
        self.last_heartbeat = self.registered_at;
        self.metadata
            .insert(LIBRARY.into(), env!("CARGO_PKG_VERSION").into());
        self
    }

    /// Still there, now.
    pub(crate) fn beaten(self) -> Self {
        self.beaten_at_time(unix_seconds())
    }

    /// Still there, at a time in Unix seconds.
    pub(crate) fn beaten_at_time(mut self, seconds: u64) -> Self {
        self.last_heartbeat = seconds;
        self
    }

    /// The same by another clock than this machine's, which says `seconds` now.
    #[cfg(feature = "redis")]
    pub(crate) fn by_clock(mut self, seconds: u64) -> Self {
        let now = unix_seconds();
        let there = |here: u64| seconds.saturating_sub(now.saturating_sub(here));
        self.registered_at = there(self.registered_at);
        self.last_heartbeat = there(self.last_heartbeat);
        self
    }

    /// True if this library registered it: its heartbeats are by the store's clock, and
    /// leaving is marked.
    pub(super) fn is_ours(&self) -> bool {
        self.metadata.contains_key(LIBRARY)
    }

    /// Well, or not and why.
    pub(crate) fn set_health(&mut self, fault: Option<&str>) {
        let fault = fault.map(|fault| prefix(fault, LONGEST_REASON));
        self.healthy = fault.is_none();
        match fault {
            Some(fault) => self.metadata.insert(UNHEALTHY_BECAUSE.into(), fault.into()),
            None => self.metadata.remove(UNHEALTHY_BECAUSE),
        };
    }

    /// Takes over what changes from beat to beat, and leaves the rest as somebody
    /// else may have written it.
    pub(crate) fn renew_from(&mut self, newer: &Self) {
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
    /// Without the metadata, which may hold anything.
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
