//! What a registry keeps in Redis, and the scripts that change it, each as one step.

pub(super) const KEYS: &str = "service:registry:";

/// What is there as long as Redis has not lost what it knew: a number.
pub(super) const GENERATION: &str = "coney:registry:generation";

/// What is written to see whether anything can be.
pub(super) const PROBE: &str = "coney:registry:probe";

/// KEYS: hash, tombstone, generation. ARGV: expiry in ms, id, value, a new generation.
pub(super) const REGISTER: &str = "
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    redis.call('DEL', KEYS[2])
    redis.call('SETNX', KEYS[3], ARGV[4])";

/// KEYS: hash, tombstone. ARGV: the tombstone's time in ms, id.
pub(super) const DEREGISTER: &str = "
    redis.call('HDEL', KEYS[1], ARGV[2])
    redis.call('SET', KEYS[2], '', 'PX', ARGV[1])";

/// Writes each value if what is there is what was written last. KEYS: hash and tombstone
/// of each. ARGV: expiry in ms, then id, old value, new value of each. Returns for each
/// one what came of it, or the other value that is there.
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

/// KEYS: hash. ARGV: id, the heartbeat it was found dead with, after how many
/// seconds it is. Leaves no tombstone: if it lives after all, it registers again.
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

/// Where a service's instances are.
pub(super) fn hash(service: &str) -> String {
    format!("{KEYS}{service}")
}

/// There for a while after an instance has been deregistered. An instance that is missing
/// without one has been lost.
pub(super) fn tombstone(service: &str, id: &str) -> String {
    format!("coney:left:{service}:{id}")
}
