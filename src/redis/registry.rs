use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use r2d2_redis::redis;

use super::Redis;
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{Beat, Instance, Registry, ServiceRegistry};

/// Instances in Redis, in the form that services in other languages share: a hash
/// `service:registry:SERVICE` with a JSON object for each instance.
///
/// Beside it, `coney:registered:SERVICE:ID` is there from an instance's registration
/// until five minutes after its last beat. By it an instance that was deregistered
/// (its field is gone) is told from one that Redis has lost (both are gone).
///
/// The ages of heartbeats are judged by the local clock, so the clocks of all
/// machines must agree to within some seconds.
///
/// ```
/// use std::time::Duration;
/// use coney::{Redis, RedisRegistry, Registry};
///
/// let redis = Redis::new("redis://localhost")?;
/// let store = RedisRegistry::new(&redis).with_dead_after(Duration::from_secs(10));
/// let registry = Registry::builder(store).build()?;
/// # let _ = registry;
/// # Ok::<(), coney::Error>(())
/// ```
pub struct RedisRegistry {
    redis: Redis,
    dead_after: Duration,
    expiry: Duration,
    /// What this process wrote last, by service and id.
    written: Mutex<HashMap<(String, String), Written>>,
    /// Values that could not be read, and were complained about.
    unreadable: Mutex<HashSet<(String, String)>>,
}

#[derive(Clone)]
struct Written {
    instance: Instance,
    json: String,
}

impl Written {
    fn of(instance: &Instance) -> Self {
        Self {
            instance: instance.clone(),
            json: instance.to_json(),
        }
    }

    /// The same with a newer heartbeat.
    fn renewed(&self, newer: &Instance) -> Self {
        let mut instance = self.instance.clone();
        instance.renew_from(newer);
        Self::of(&instance)
    }
}

const KEYS: &str = "service:registry:";

/// How many instances a script looks after at a time: Redis does nothing else
/// meanwhile.
const SCRIPT_SIZE: usize = 100;

/// How often a heartbeat is tried anew that somebody else got in the way of.
const MOST_ROUNDS: usize = 5;

/// How many values that cannot be read are remembered.
const MOST_COMPLAINTS: usize = 1_000;

/// KEYS: hash, mark. ARGV: expiry in ms, id, value.
const REGISTER: &str = "
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    redis.call('SET', KEYS[2], '', 'PX', ARGV[1])";

/// The mark stays. KEYS: hash, mark. ARGV: expiry in ms, id.
const DEREGISTER: &str = "
    redis.call('HDEL', KEYS[1], ARGV[2])
    redis.call('SET', KEYS[2], '', 'PX', ARGV[1])";

/// Writes each value if what is there is what was written last. KEYS: hash and mark of
/// each. ARGV: expiry in ms, then id, old value, new value of each. Returns for each
/// one what came of it, or the other value that is there.
const HEARTBEAT: &str = "
    local outcomes = {}
    for i = 1, #KEYS / 2 do
        local hash, mark = KEYS[2 * i - 1], KEYS[2 * i]
        local id, old, new = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
        local there = redis.pcall('HGET', hash, id)
        if type(there) == 'table' then
            outcomes[i] = 'lost'
        elseif not there then
            outcomes[i] = redis.call('EXISTS', mark) == 1 and 'left' or 'lost'
        elseif there == old then
            redis.call('HSET', hash, id, new)
            redis.call('PEXPIRE', hash, ARGV[1])
            redis.call('SET', mark, '', 'PX', ARGV[1])
            outcomes[i] = 'renewed'
        else
            outcomes[i] = '=' .. there
        end
    end
    return outcomes";

/// KEYS: hash, mark. ARGV: id, the heartbeat it was found dead with.
const REMOVE_DEAD: &str = "
    local there = redis.call('HGET', KEYS[1], ARGV[1])
    if there then
        local is_json, instance = pcall(cjson.decode, there)
        local beat = is_json and type(instance) == 'table' and tonumber(instance.last_heartbeat)
        if not beat or math.floor(beat) ~= tonumber(ARGV[2]) then
            return 0
        end
        redis.call('HDEL', KEYS[1], ARGV[1])
    end
    redis.call('DEL', KEYS[2])
    return 1";

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
        Self::builder(RedisRegistry::new(&Redis::new(url)?)).build()
    }
}

impl RedisRegistry {
    /// Over a Redis, with the times of the wire contract.
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
            dead_after: Duration::from_secs(60),
            expiry: Duration::from_secs(300),
            written: Mutex::default(),
            unreadable: Mutex::default(),
        }
    }

    /// How old the last heartbeat of a living instance may be. Heartbeats are in
    /// whole seconds, so less than two make no sense. Default: 60 s.
    pub fn with_dead_after(mut self, time: Duration) -> Self {
        self.dead_after = time;
        self
    }

    /// When a service that nobody beats for is forgotten altogether. Default: 300 s.
    pub fn with_expiry(mut self, time: Duration) -> Self {
        self.expiry = time;
        self
    }

    fn script(&self, text: &str) -> redis::Cmd {
        let mut script = redis::cmd("EVAL");
        script.arg(text);
        script
    }

    fn expiry_millis(&self) -> u64 {
        u64::try_from(self.expiry.as_millis())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// Tries to renew each, in one round trip.
    fn beat(&self, beats: &[(Written, Written)]) -> Result<Vec<String>> {
        let mut pipeline = redis::pipe();
        for chunk in beats.chunks(SCRIPT_SIZE) {
            let mut script = self.script(HEARTBEAT);
            script.arg(2 * chunk.len());
            for (_, new) in chunk {
                let (service, id) = (new.instance.service(), new.instance.id());
                script.arg(hash(service)).arg(mark(service, id));
            }
            script.arg(self.expiry_millis());
            for (old, new) in chunk {
                script.arg(new.instance.id()).arg(&old.json).arg(&new.json);
            }
            pipeline.add_command(script);
        }
        let outcomes: Vec<Vec<String>> = self
            .redis
            .run("renew heartbeats", |it| pipeline.query(it))?;
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

impl ServiceRegistry for RedisRegistry {
    fn register(&self, instance: &Instance) -> Result<()> {
        let (service, id) = (instance.service(), instance.id());
        let written = Written::of(instance);
        let mut script = self.script(REGISTER);
        script.arg(2).arg(hash(service)).arg(mark(service, id));
        script.arg(self.expiry_millis()).arg(id).arg(&written.json);
        let what = format!("register an instance of {service}");
        self.redis.run(&what, |it| script.query::<()>(it))?;
        let key = (service.to_owned(), id.to_owned());
        self.written.lock().insert(key, written);
        Ok(())
    }

    fn deregister(&self, service: &str, id: &str) -> Result<()> {
        let key = (service.to_owned(), id.to_owned());
        self.written.lock().remove(&key);
        let mut script = self.script(DEREGISTER);
        script.arg(2).arg(hash(service)).arg(mark(service, id));
        script.arg(self.expiry_millis()).arg(id);
        let what = format!("deregister an instance of {service}");
        self.redis.run(&what, |it| script.query(it))
    }

    fn heartbeat(&self, instances: &[Instance]) -> Result<Vec<Beat>> {
        let mut beats = vec![Beat::Lost; instances.len()];
        // Which instance, what is there, and what shall be.
        let mut open: Vec<(usize, (Written, Written))> = {
            let written = self.written.lock();
            let pair = |newer: &Instance| {
                let key = (newer.service().to_owned(), newer.id().to_owned());
                match written.get(&key) {
                    Some(old) => (old.clone(), old.renewed(newer)),
                    // Nobody has written an empty value: what is there comes back.
                    None => {
                        let json = String::new();
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
                match outcome.strip_prefix('=') {
                    Some(there) => {
                        // Somebody else wrote it: only the beat changes. What cannot be
                        // read is of no use to anybody, and gives way.
                        let theirs = Instance::from_json(&service, &id, there);
                        let instance = theirs.unwrap_or_else(|_| instances[at].clone());
                        let json = there.to_owned();
                        let old = Written { instance, json };
                        let new = old.renewed(&instances[at]);
                        again.push((at, (old, new)));
                    }
                    None if outcome == "renewed" => {
                        beats[at] = Beat::Renewed;
                        written.insert((service, id), new);
                    }
                    None if outcome == "left" => {
                        beats[at] = Beat::Deregistered;
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
                "cannot renew heartbeats: somebody else changes {} instances all the time",
                open.len()
            ),
        ))
    }

    fn instances(&self, service: &str) -> Result<Vec<Instance>> {
        let what = format!("look up {service}");
        let all: Vec<(Vec<u8>, Vec<u8>)> = self.redis.run(&what, |it| {
            redis::cmd("HGETALL").arg(hash(service)).query(it)
        })?;
        let mut instances = Vec::with_capacity(all.len());
        for (id, json) in &all {
            let (id, json) = (String::from_utf8_lossy(id), String::from_utf8_lossy(json));
            match Instance::from_json(service, &id, &json) {
                Ok(instance) => instances.push(instance),
                Err(fault) => self.complain(service, &id, &fault),
            }
        }
        Ok(instances)
    }

    fn remove_dead(&self, instance: &Instance) -> Result<bool> {
        let (service, id) = (instance.service(), instance.id());
        let mut script = self.script(REMOVE_DEAD);
        script.arg(2).arg(hash(service)).arg(mark(service, id));
        script.arg(id).arg(instance.last_heartbeat());
        let what = format!("remove a dead instance of {service}");
        self.redis.run(&what, |it| script.query(it))
    }

    fn was_deregistered(&self, service: &str, ids: &[&str]) -> Result<bool> {
        let mut exists = redis::cmd("EXISTS");
        for id in ids {
            exists.arg(mark(service, id));
        }
        let what = format!("look for goodbyes of {service}");
        let marks: u64 = self.redis.run(&what, |it| exists.query(it))?;
        Ok(marks > 0)
    }

    fn services(&self) -> Result<Vec<String>> {
        let mut services = Vec::new();
        let mut cursor = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{KEYS}*"));
            scan.arg("COUNT").arg(1_000);
            let (next, keys): (u64, Vec<Vec<u8>>) =
                self.redis.run("list the services", |it| scan.query(it))?;
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

    fn dead_after(&self) -> Duration {
        self.dead_after
    }
}

/// Where a service's instances are.
fn hash(service: &str) -> String {
    format!("{KEYS}{service}")
}

/// Where it is marked that an instance was registered.
fn mark(service: &str, id: &str) -> String {
    format!("coney:registered:{service}:{id}")
}

impl fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRegistry")
            .field("redis", &self.redis)
            .field("dead_after", &self.dead_after)
            .finish_non_exhaustive()
    }
}
