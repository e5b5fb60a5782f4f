//! The field names of an instance in the registry's JSON.

pub(super) const ID: &str = "instance_id";
pub(super) const REGISTERED_AT: &str = "registered_at";
pub(super) const LAST_HEARTBEAT: &str = "last_heartbeat";
pub(super) const HOST: &str = "host";
pub(super) const PORT: &str = "port";
pub(super) const VERSION: &str = "version";
pub(super) const WEIGHT: &str = "weight";
pub(super) const ACTIONS: &str = "actions";
pub(super) const HEALTHY: &str = "healthy";

/// The reason for which an instance is unhealthy.
pub(super) const UNHEALTHY_BECAUSE: &str = "unhealthy_because";

/// The names that metadata cannot have.
pub(super) const OURS: [&str; 10] = [
    ID,
    REGISTERED_AT,
    LAST_HEARTBEAT,
    HOST,
    PORT,
    VERSION,
    WEIGHT,
    ACTIONS,
    HEALTHY,
    UNHEALTHY_BECAUSE,
];
