//! The keys of a registry in Redis, and the scripts that change them, each in one step.

/// The prefix of the hashes of instances; the service's name follows.
pub(super) const KEYS: &str = "service:registry:";

/// The key of a random number, which is there as long as Redis has not lost its data.
pub(super) const GENERATION: &str = "coney:registry:generation";

/// The key that is written to check that Redis accepts writes.
pub(super) const PROBE: &str = "coney:registry:probe";

/// A script that writes an instance. KEYS: hash, tombstone, generation. ARGV: time to live
/// in ms, id, value, a new generation.
pub(super) const REGISTER: &str = "
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    redis.call('DEL', KEYS[2])
    redis.call('SETNX', KEYS[3], ARGV[4])";

/// A script that removes an instance and leaves a tombstone. KEYS: hash, tombstone. ARGV: the
/// tombstone's time to live in ms, id.
pub(super) const DEREGISTER: &str = "
    redis.call('HDEL', KEYS[1], ARGV[2])
    redis.call('SET', KEYS[2], '', 'PX', ARGV[1])";

/// A script that renews heartbeats: it replaces each value that is still the old one. KEYS: hash
/// and tombstone of each instance. ARGV: time to live in ms, then id, old value and new value of
/// each. Returns for each instance `renewed`, `lost`, `left`, or `=` and the value that another
/// program wrote.
pub(super) const HEARTBEAT: &str = "
    local outcomes = {}
    for i = 1, #KEYS / 2 do
        local hash, tombstone = KEYS[2 * i - 1], KEYS[2 * i]
        local id, old, new = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
        local there = redis.pcall('HGET', hash, id)
        if type(there) == 'table' then
            outcomes[i] = 'lost'
        elseif not there then
            outcomes[i] = redis.call('EXISTS', tombstone) == 1 and 'left' or 'lost'
        elseif there == old then
            redis.call('HSET', hash, id, new)
            redis.call('PEXPIRE', hash, ARGV[1])
            outcomes[i] = 'renewed'
        else
            outcomes[i] = '=' .. there
        end
    end
    return outcomes";

/// A script that removes a dead instance unless its heartbeat was renewed. KEYS: hash. ARGV: id,
/// the heartbeat with which it was found dead, the age in seconds from which it counts as dead.
/// Leaves no tombstone: an instance that lives after all is registered again.
pub(super) const REMOVE_DEAD: &str = "
    local there = redis.call('HGET', KEYS[1], ARGV[1])
    if not there then
        return 1
    end
    local is_json, instance = pcall(cjson.decode, there)
    local beat = is_json and type(instance) == 'table' and tonumber(instance.last_heartbeat)
    local is_dead = beat and math.floor(beat) == tonumber(ARGV[2])
        and beat + ARGV[3] <= tonumber(redis.call('TIME')[1])
    if not is_dead then
        return 0
    end
    redis.call('HDEL', KEYS[1], ARGV[1])
    return 1";

/// Returns the key of the hash with a service's instances.
pub(super) fn hash(service: &str) -> String {
    format!("{KEYS}{service}")
}

/// Returns the key of an instance's tombstone, which is kept for a while after the instance was
/// deregistered. An instance that is missing and has none was lost.
pub(super) fn tombstone(service: &str, id: &str) -> String {
    format!("coney:left:{service}:{id}")
}
