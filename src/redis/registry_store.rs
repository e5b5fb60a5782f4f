//! The store of a registry in Redis.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use r2d2_redis::redis::{self, FromRedisValue, Value};

use super::Redis;
use super::scripts::{
    DEREGISTER, GENERATION, HEARTBEAT, KEYS, PROBE, REGISTER, REMOVE_DEAD, hash, tombstone,
};
use super::written::{Written, WrittenEntries};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{HeartbeatResult, Instance, Registry, RegistryStore, StoredInstances};

/// A store of instances in Redis, in the format that services in other languages share.
///
/// Made by [`Redis::registry_store`]. Each service has a hash `service:registry:SERVICE` with
/// a JSON object for each instance. Besides these hashes there are:
///
/// | key | what it is |
/// | --- | --- |
/// | `coney:left:SERVICE:ID` | a tombstone, kept for 300 s after the instance was deregistered |
/// | `coney:registry:generation` | a random number, which changes when Redis loses its data |
///
/// An instance whose entry is missing and that has no tombstone was lost (deleted, evicted,
/// flushed), and is registered again with its next heartbeat.
///
/// Heartbeats are written by Redis's clock, so the clocks of the machines need not agree. An
/// instance of another library, which writes heartbeats by its own clock, counts as live as
/// long as its heartbeat changes.
///
/// ```
/// use std::time::Duration;
/// use coney::Registry;
/// use coney::redis::Redis;
///
/// let redis = Redis::new("redis://localhost")?;
/// let store = redis.registry_store().with_heartbeat_ttl(Duration::from_secs(10));
/// let registry = Registry::builder(store).build()?;
/// # let _ = registry;
/// # Ok::<(), coney::Error>(())
/// ```
#[must_use]
pub struct RedisRegistryStore {
    redis: Redis,
    heartbeat_ttl: Duration,
    key_ttl: Duration,
    written: WrittenEntries,
    /// Entries that cannot be read and have been logged, by service and id.
    unreadable: Mutex<HashSet<(String, String)>>,
    /// The time by Redis's clock in Unix milliseconds, and when it was read.
    clock: Mutex<Option<(Instant, u64)>>,
}

/// The time for which Redis's clock is extrapolated before it is read again.
const CLOCK_TTL: Duration = Duration::from_secs(30);

/// The time for which a tombstone is kept.
const TOMBSTONE_TTL: Duration = Duration::from_secs(300);

/// The name of a field of a hash, and its value.
type Field = (Vec<u8>, Vec<u8>);

/// The most instances that one script renews: Redis does nothing else meanwhile.
const INSTANCES_PER_SCRIPT: usize = 100;

/// The most attempts at a heartbeat whose entry other programs change meanwhile.
const MOST_ATTEMPTS: usize = 5;

/// The longest time to live of a key, a year: Redis fails if it cannot add it to its clock.
const LONGEST_KEY_TTL: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The most unreadable entries that are logged.
const MOST_UNREADABLE: usize = 1_000;

impl Redis {
    /// Returns a registry with the default options. Does not connect: Redis may be down.
    ///
    /// For other options, see [`registry_store`](Redis::registry_store).
    ///
    /// ```
    /// use coney::redis::Redis;
    ///
    /// let registry = Redis::new("redis://localhost")?.registry();
    /// # let _ = registry;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn registry(&self) -> Registry {
        Registry::with_defaults(self.registry_store())
    }

    /// Returns a store for [`Registry::builder`], with the times of the wire contract.
    pub fn registry_store(&self) -> RedisRegistryStore {
        RedisRegistryStore {
            redis: self.clone(),
            heartbeat_ttl: Duration::from_secs(60),
            key_ttl: Duration::from_secs(300),
            written: WrittenEntries::default(),
            unreadable: Mutex::default(),
            clock: Mutex::new(None),
        }
    }
}

impl RedisRegistryStore {
    /// Sets the greatest age of the last heartbeat of a live instance. Defaults to 60 s.
    /// Heartbeats are in whole seconds, so less than 2 s is too little.
    pub fn with_heartbeat_ttl(mut self, ttl: Duration) -> Self {
        self.heartbeat_ttl = ttl;
        self
    }

    /// Sets the time after which the hash of a service without heartbeats expires. Defaults to
    /// 300 s. A hash does not expire before its instances count as dead.
    pub fn with_key_ttl(mut self, ttl: Duration) -> Self {
        self.key_ttl = ttl;
        self
    }

    /// Returns the time by Redis's clock, in whole Unix seconds.
    fn unix_seconds(&self) -> Result<u64> {
        let known = *self.clock.lock();
        if let Some((at, millis)) = known
            && at.elapsed() < CLOCK_TTL
        {
            return Ok((millis + at.elapsed().as_millis() as u64) / 1_000);
        }
        let time: Value = self.redis.ask("read the clock", &redis::cmd("TIME"))?;
        let millis = self.set_clock(&time)?;
        Ok(millis / 1_000)
    }

    /// Records the reply to `TIME`, seconds and microseconds, and returns it in milliseconds.
    fn set_clock(&self, time: &Value) -> Result<u64> {
        let invalid = |error| {
            let text = format!("Redis's reply to TIME is invalid: {error}");
            Error::new(ErrorKind::Registry, text)
        };
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).map_err(invalid)?;
        let millis = seconds.saturating_mul(1_000) + micros / 1_000;
        *self.clock.lock() = Some((Instant::now(), millis));
        Ok(millis)
    }

    fn script(&self, text: &str) -> redis::Cmd {
        let mut script = redis::cmd("EVAL");
        script.arg(text);
        script
    }

    fn key_ttl_millis(&self) -> u64 {
        let ttl = self.key_ttl.max(self.heartbeat_ttl).min(LONGEST_KEY_TTL);
        u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Replaces each old entry with the new one if Redis still has the old one, in one round
    /// trip. Returns the script's outcomes.
    fn renew(&self, renewals: &[(Written, Written)]) -> Result<Vec<Vec<u8>>> {
        let mut scripts = Vec::new();
        for renewals in renewals.chunks(INSTANCES_PER_SCRIPT) {
            let mut script = self.script(HEARTBEAT);
            script.arg(2 * renewals.len());
            for (_, new) in renewals {
                let (service, id) = (new.instance.service(), new.instance.id());
                script.arg(hash(service)).arg(tombstone(service, id));
            }
            script.arg(self.key_ttl_millis());
            for (old, new) in renewals {
                script
                    .arg(new.instance.id())
                    .arg(&*old.json)
                    .arg(&*new.json);
            }
            scripts.push(script);
        }
        let replies = self.redis.ask_all("renew heartbeats", &scripts)?;
        let outcomes = replies.iter().map(Vec::<Vec<u8>>::from_redis_value);
        let outcomes: Result<Vec<_>, _> = outcomes.collect();
        let outcomes = outcomes.map_err(|error| {
            let text = format!("Redis's reply to heartbeats is invalid: {error}");
            Error::new(ErrorKind::Registry, text)
        })?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Logs an entry that cannot be read, once.
    fn log_unreadable(&self, service: &str, id: &str, fault: &dyn fmt::Display) {
        let mut unreadable = self.unreadable.lock();
        if unreadable.len() < MOST_UNREADABLE
            && unreadable.insert((service.to_owned(), id.to_owned()))
        {
            log::warn!(target: "coney::registry", "ignored, and not logged again: {fault}");
        }
    }
}

impl RegistryStore for RedisRegistryStore {
    fn register(&self, instance: &Instance) -> Result<()> {
        let (service, id) = (instance.service(), instance.id());
        let written = Written::of(&instance.clone().by_clock(self.unix_seconds()?));
        let mut script = self.script(REGISTER);
        script.arg(3).arg(hash(service)).arg(tombstone(service, id));
        script.arg(GENERATION).arg(self.key_ttl_millis());
        script.arg(id).arg(&*written.json).arg(fastrand::u32(1..));
        let what = format!("register an instance of {service}");
        self.redis.ask::<()>(&what, &script)?;
        self.written.insert(written);
        Ok(())
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        self.written.remove(service, id);
        let mut script = self.script(DEREGISTER);
        script.arg(2).arg(hash(service)).arg(tombstone(service, id));
        script.arg(TOMBSTONE_TTL.as_millis() as u64).arg(id);
        let what = format!("deregister an instance of {service}");
        self.redis.ask(&what, &script)
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
        let mut results = vec![HeartbeatResult::Lost; instances.len()];
        let now = self.unix_seconds()?;
        let instances: Vec<Instance> = instances
            .iter()
            .map(|instance| instance.clone().with_heartbeat_at(now))
            .collect();
        // The index of each instance that has no result yet, and its renewal.
        let mut open: Vec<(usize, (Written, Written))> = {
            let renewals = instances.iter().map(|newer| self.written.renewal(newer));
            renewals.enumerate().collect()
        };
        for _ in 0..MOST_ATTEMPTS {
            let renewals: Vec<_> = open.iter().map(|(_, renewal)| renewal.clone()).collect();
            let outcomes = self.renew(&renewals)?;
            let mut changed = Vec::new();
            for ((at, (_, new)), outcome) in open.into_iter().zip(outcomes) {
                let (service, id) = (new.instance.service(), new.instance.id());
                match outcome.strip_prefix(b"=") {
                    Some(there) => {
                        // Another program wrote the entry: only the heartbeat changes. An
                        // unreadable entry is of no use, and is replaced.
                        let theirs = std::str::from_utf8(there).ok();
                        let theirs =
                            theirs.and_then(|json| Instance::from_json(service, id, json).ok());
                        let instance = theirs.unwrap_or_else(|| instances[at].clone());
                        let json = there.to_vec();
                        let old = Written { instance, json };
                        let new = old.renewed(&instances[at]);
                        changed.push((at, (old, new)));
                    }
                    None if outcome == b"renewed" => {
                        results[at] = HeartbeatResult::Renewed;
                        self.written.insert(new);
                    }
                    None if outcome == b"left" => {
                        results[at] = HeartbeatResult::Deregistered;
                        self.written.remove(service, id);
                    }
                    None => {}
                }
            }
            open = changed;
            if open.is_empty() {
                return Ok(results);
            }
        }
        Err(Error::new(
            ErrorKind::Registry,
            format!(
                "cannot renew heartbeats: another program keeps changing the entries of {} \
                 instances",
                open.len()
            ),
        ))
    }

    fn instances(&self, service: &str) -> Result<StoredInstances> {
        let what = format!("look up {service}");
        let (mut get, mut generation) = (redis::cmd("HGETALL"), redis::cmd("GET"));
        get.arg(hash(service));
        generation.arg(GENERATION);
        let mut replies = self
            .redis
            .ask_all(&what, &[get, generation, redis::cmd("TIME")])?;
        let now_millis = replies
            .pop()
            .map(|time| self.set_clock(&time))
            .transpose()?;
        let invalid = |error| Error::new(ErrorKind::Registry, format!("cannot {what}: {error}"));
        let (all, generation): (Vec<Field>, Option<Vec<u8>>) =
            redis::from_redis_value(&Value::Bulk(replies)).map_err(invalid)?;
        let mut instances = Vec::with_capacity(all.len());
        for (id, json) in &all {
            let (id, json) = (String::from_utf8_lossy(id), String::from_utf8_lossy(json));
            match Instance::from_json(service, &id, &json) {
                Ok(instance) => instances.push(instance),
                Err(fault) => self.log_unreadable(service, &id, &fault),
            }
        }
        let generation = generation.and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let mut found = StoredInstances::new(instances).with_generation(generation.unwrap_or(0));
        found.now_millis = now_millis;
        Ok(found)
    }

    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        let (service, id) = (instance.service(), instance.id());
        let mut script = self.script(REMOVE_DEAD);
        script.arg(1).arg(hash(service));
        script.arg(id).arg(instance.last_heartbeat());
        script.arg(self.heartbeat_ttl.as_secs());
        let what = format!("remove a dead instance of {service}");
        self.redis.ask(&what, &script)
    }

    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<Vec<bool>> {
        let mut get = redis::cmd("MGET");
        for id in ids {
            get.arg(tombstone(service, id));
        }
        let what = format!("look for tombstones of {service}");
        let tombstones: Vec<Option<Vec<u8>>> = self.redis.ask(&what, &get)?;
        Ok(tombstones.iter().map(Option::is_some).collect())
    }

    fn check_writes(&self) -> Result<()> {
        let mut set = redis::cmd("SET");
        set.arg(PROBE).arg("").arg("PX").arg(1_000);
        self.redis.ask("write anything", &set)
    }

    fn services(&self) -> Result<Vec<String>> {
        let mut services = Vec::new();
        let mut cursor = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{KEYS}*"));
            scan.arg("COUNT").arg(1_000);
            let (next, keys): (u64, Vec<Vec<u8>>) = self.redis.ask("list the services", &scan)?;
            let names = keys.iter().map(|key| String::from_utf8_lossy(key));
            services.extend(names.filter_map(|key| key.strip_prefix(KEYS).map(str::to_owned)));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        services.sort_unstable();
        services.dedup();
        Ok(services)
    }

    fn heartbeat_ttl(&self) -> Duration {
        self.heartbeat_ttl
    }
}

impl fmt::Debug for RedisRegistryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRegistryStore")
            .field("redis", &self.redis)
            .field("heartbeat_ttl", &self.heartbeat_ttl)
            .finish_non_exhaustive()
    }
}
