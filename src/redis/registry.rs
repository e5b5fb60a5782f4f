use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use r2d2_redis::redis::{self, FromRedisValue, Value};

use super::Redis;
use super::scripts::{
    DEREGISTER, GENERATION, HEARTBEAT, KEYS, PROBE, REGISTER, REMOVE_DEAD, hash, tombstone,
};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{HeartbeatResult, Instance, Registry, RegistryStore, StoredInstances};

/// Instances in Redis, in the form that services in other languages share: a hash
/// `service:registry:SERVICE` with a JSON object for each instance.
///
/// Beside it, `coney:left:SERVICE:ID` is there for five minutes after an instance was
/// deregistered: a tombstone. An instance whose field is gone without one was lost (deleted,
/// evicted, flushed), and is registered again with its next heartbeat. And
/// `coney:registry:generation` is a number that is another after Redis was emptied.
///
/// Heartbeats are written by Redis's clock, so those of the machines need not agree. An
/// instance of another library, which writes its own, lives as long as its heartbeat
/// changes.
///
/// ```
/// use std::time::{Duration, Instant};
/// use coney::{Redis, RedisRegistryStore, Registry};
///
/// let redis = Redis::new("redis://localhost")?;
/// let store = RedisRegistryStore::new(&redis).with_heartbeat_ttl(Duration::from_secs(10));
/// let registry = Registry::builder(store).build()?;
/// # let _ = registry;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct RedisRegistryStore {
    redis: Redis,
    heartbeat_ttl: Duration,
    expiry: Duration,
    /// What this process wrote last, by service and id.
    written: Mutex<HashMap<(String, String), Written>>,
    /// Values that could not be read, and were complained about.
    unreadable: Mutex<HashSet<(String, String)>>,
    /// Redis's clock in milliseconds, and when that was.
    clock: Mutex<Option<(Instant, u64)>>,
}

/// The time for which Redis's clock is reckoned on from here before it is asked for again.
const CLOCK_FOR: Duration = Duration::from_secs(30);

/// The time for which a tombstone stays.
const TOMBSTONE_TTL: Duration = Duration::from_secs(300);

/// A field of a hash, and its value.
type Field = (Vec<u8>, Vec<u8>);

#[derive(Clone)]
struct Written {
    instance: Instance,
    json: Vec<u8>,
}

impl Written {
    fn of(instance: &Instance) -> Self {
        Self {
            instance: instance.clone(),
            json: instance.to_json().into_bytes(),
        }
    }

    /// The same with a newer heartbeat.
    fn renewed(&self, newer: &Instance) -> Self {
        let mut instance = self.instance.clone();
        instance.renew_from(newer);
        Self::of(&instance)
    }
}

/// How many instances a script looks after at a time: Redis does nothing else
/// meanwhile.
const SCRIPT_SIZE: usize = 100;

/// How often a heartbeat is tried anew that somebody else got in the way of.
const MOST_ROUNDS: usize = 5;

/// More than Redis can add to its clock is no use.
const LONGEST_EXPIRY: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How many values that cannot be read are remembered.
const MOST_COMPLAINTS: usize = 1_000;

impl Registry {
    /// A registry in Redis with the default options. The URL is
    /// `redis://user:password@host:port/database`. Does not connect: Redis may be down.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the URL cannot be used.
    ///
    /// ```
    /// let registry = coney::Registry::connect("redis://localhost")?;
    /// # let _ = registry;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn connect(url: &str) -> Result<Self> {
        Self::builder(RedisRegistryStore::new(&Redis::new(url)?)).build()
    }
}

impl RedisRegistryStore {
    /// Over a Redis, with the times of the wire contract.
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
            heartbeat_ttl: Duration::from_secs(60),
            expiry: Duration::from_secs(300),
            written: Mutex::default(),
            unreadable: Mutex::default(),
            clock: Mutex::new(None),
        }
    }

    /// How old the last heartbeat of a living instance may be. Heartbeats are in
    /// whole seconds, so less than two make no sense. Default: 60 s.
    pub fn with_heartbeat_ttl(mut self, time: Duration) -> Self {
        self.heartbeat_ttl = time;
        self
    }

    /// When a service that nobody beats for is forgotten altogether; not before its
    /// instances count as dead. Default: 300 s.
    pub fn with_expiry(mut self, time: Duration) -> Self {
        self.expiry = time;
        self
    }

    /// The time by Redis's clock, in whole Unix seconds.
    fn unix_seconds(&self) -> Result<u64> {
        let known = *self.clock.lock();
        if let Some((at, millis)) = known
            && at.elapsed() < CLOCK_FOR
        {
            return Ok((millis + at.elapsed().as_millis() as u64) / 1_000);
        }
        let time: Value = self.redis.ask("read the clock", &redis::cmd("TIME"))?;
        let millis = self.set_clock(&time)?;
        Ok(millis / 1_000)
    }

    /// Takes the answer to `TIME`: seconds and microseconds.
    fn set_clock(&self, time: &Value) -> Result<u64> {
        let odd = |error| Error::new(ErrorKind::Registry, format!("Redis's TIME is odd: {error}"));
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).map_err(odd)?;
        let millis = seconds.saturating_mul(1_000) + micros / 1_000;
        *self.clock.lock() = Some((Instant::now(), millis));
        Ok(millis)
    }

    fn script(&self, text: &str) -> redis::Cmd {
        let mut script = redis::cmd("EVAL");
        script.arg(text);
        script
    }

    fn expiry_millis(&self) -> u64 {
        let expiry = self.expiry.max(self.heartbeat_ttl).min(LONGEST_EXPIRY);
        u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Tries to renew each, in one round trip.
    fn beat(&self, beats: &[(Written, Written)]) -> Result<Vec<Vec<u8>>> {
        let mut scripts = Vec::new();
        for chunk in beats.chunks(SCRIPT_SIZE) {
            let mut script = self.script(HEARTBEAT);
            script.arg(2 * chunk.len());
            for (_, new) in chunk {
                let (service, id) = (new.instance.service(), new.instance.id());
                script.arg(hash(service)).arg(tombstone(service, id));
            }
            script.arg(self.expiry_millis());
            for (old, new) in chunk {
                script
                    .arg(new.instance.id())
                    .arg(&*old.json)
                    .arg(&*new.json);
            }
            scripts.push(script);
        }
        let answers = self.redis.ask_all("renew heartbeats", &scripts)?;
        let outcomes = answers.iter().map(Vec::<Vec<u8>>::from_redis_value);
        let outcomes: Result<Vec<_>, _> = outcomes.collect();
        let outcomes = outcomes
            .map_err(|error| Error::new(ErrorKind::Registry, format!("odd heartbeats: {error}")))?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    fn complain(&self, service: &str, id: &str, fault: &dyn fmt::Display) {
        let mut unreadable = self.unreadable.lock();
        if unreadable.len() < MOST_COMPLAINTS
            && unreadable.insert((service.to_owned(), id.to_owned()))
        {
            log::warn!(target: "coney::registry", "passed over, from now on in silence: {fault}");
        }
    }
}

impl RegistryStore for RedisRegistryStore {
    fn register(&self, instance: &Instance) -> Result<()> {
        let (service, id) = (instance.service(), instance.id());
        let written = Written::of(&instance.clone().by_clock(self.unix_seconds()?));
        let mut script = self.script(REGISTER);
        script.arg(3).arg(hash(service)).arg(tombstone(service, id));
        script.arg(GENERATION).arg(self.expiry_millis());
        script.arg(id).arg(&*written.json).arg(fastrand::u32(1..));
        let what = format!("register an instance of {service}");
        self.redis.ask::<()>(&what, &script)?;
        let key = (service.to_owned(), id.to_owned());
        self.written.lock().insert(key, written);
        Ok(())
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        let key = (service.to_owned(), id.to_owned());
        self.written.lock().remove(&key);
        let mut script = self.script(DEREGISTER);
        script.arg(2).arg(hash(service)).arg(tombstone(service, id));
        script.arg(TOMBSTONE_TTL.as_millis() as u64).arg(id);
        let what = format!("deregister an instance of {service}");
        self.redis.ask(&what, &script)
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<HeartbeatResult>> {
        let mut beats = vec![HeartbeatResult::Lost; instances.len()];
        let now = self.unix_seconds()?;
        let instances: Vec<Instance> = instances
            .iter()
            .map(|instance| instance.clone().beaten_at_time(now))
            .collect();
        // Which instance, what is there, and what shall be.
        let mut open: Vec<(usize, (Written, Written))> = {
            let written = self.written.lock();
            let pair = |newer: &Instance| {
                let key = (newer.service().to_owned(), newer.id().to_owned());
                match written.get(&key) {
                    Some(old) => (old.clone(), old.renewed(newer)),
                    // An empty value is never written: what is there comes back.
                    None => {
                        let json = Vec::new();
                        let instance = newer.clone();
                        (Written { instance, json }, Written::of(newer))
                    }
                }
            };
            instances.iter().map(pair).enumerate().collect()
        };
        for _ in 0..MOST_ROUNDS {
            let pairs: Vec<_> = open.iter().map(|(_, pair)| pair.clone()).collect();
            let outcomes = self.beat(&pairs)?;
            let mut again = Vec::new();
            let mut written = self.written.lock();
            for ((at, (_, new)), outcome) in open.into_iter().zip(outcomes) {
                let (service, id) = (
                    new.instance.service().to_owned(),
                    new.instance.id().to_owned(),
                );
                match outcome.strip_prefix(b"=") {
                    Some(there) => {
                        // Another program wrote it: only the beat changes. What cannot be
                        // read is of no use, and gives way.
                        let theirs = std::str::from_utf8(there).ok();
                        let theirs =
                            theirs.and_then(|json| Instance::from_json(&service, &id, json).ok());
                        let instance = theirs.unwrap_or_else(|| instances[at].clone());
                        let json = there.to_vec();
                        let old = Written { instance, json };
                        let new = old.renewed(&instances[at]);
                        again.push((at, (old, new)));
                    }
                    None if outcome == b"renewed" => {
                        beats[at] = HeartbeatResult::Renewed;
                        written.insert((service, id), new);
                    }
                    None if outcome == b"left" => {
                        beats[at] = HeartbeatResult::Deregistered;
                        written.remove(&(service, id));
                    }
                    None => {}
                }
            }
            open = again;
            if open.is_empty() {
                return Ok(beats);
            }
        }
        Err(Error::new(
            ErrorKind::Registry,
            format!(
                "cannot renew heartbeats: another program changes {} instances all the time",
                open.len()
            ),
        ))
    }

    fn instances(&self, service: &str) -> Result<StoredInstances> {
        let what = format!("look up {service}");
        let (mut get, mut generation) = (redis::cmd("HGETALL"), redis::cmd("GET"));
        get.arg(hash(service));
        generation.arg(GENERATION);
        let mut answers = self
            .redis
            .ask_all(&what, &[get, generation, redis::cmd("TIME")])?;
        let now = answers
            .pop()
            .map(|time| self.set_clock(&time))
            .transpose()?;
        let odd = |error| Error::new(ErrorKind::Registry, format!("cannot {what}: {error}"));
        let (all, generation): (Vec<Field>, Option<Vec<u8>>) =
            redis::from_redis_value(&Value::Bulk(answers)).map_err(odd)?;
        let mut instances = Vec::with_capacity(all.len());
        for (id, json) in &all {
            let (id, json) = (String::from_utf8_lossy(id), String::from_utf8_lossy(json));
            match Instance::from_json(service, &id, &json) {
                Ok(instance) => instances.push(instance),
                Err(fault) => self.complain(service, &id, &fault),
            }
        }
        let generation = generation.and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        Ok(StoredInstances {
            instances,
            generation: generation.unwrap_or(0),
            now_millis: now,
        })
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
        f.debug_struct("RedisRegistry")
            .field("redis", &self.redis)
            .field("dead_after", &self.heartbeat_ttl)
            .finish_non_exhaustive()
    }
}
