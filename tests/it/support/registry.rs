//! Registries over a private Redis.

use std::time::Duration;

use coney::Registry;
use coney::redis::Redis;
use coney::registry::Lookup;

const MS: Duration = Duration::from_millis(1);

/// The longest time that their look-ups may take.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Returns a registry with frequent heartbeats, so that the tests need not wait long.
pub fn registry(url: &str, heartbeat_ttl: Duration) -> Registry {
    let redis = Redis::builder(url).timeout(1_000 * MS).build().unwrap();
    let store = redis.registry_store().with_heartbeat_ttl(heartbeat_ttl);
    Registry::builder(store)
        .heartbeat_interval(100 * MS)
        .cache_ttl(400 * MS)
        .lookup_timeout(LOOKUP_TIMEOUT)
        .build()
        .unwrap()
}

pub fn ids(lookup: &Lookup) -> Vec<String> {
    lookup.iter().map(|one| one.id().to_owned()).collect()
}

pub fn unix_seconds() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}
