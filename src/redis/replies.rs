use std::time::Duration;

use r2d2_redis::redis;

use super::Redis;
use crate::consumer::{ClaimOutcome, ReplyStore, StoreError};

/// A [`ReplyStore`] in Redis, shared by all servers of a service: keys
/// `coney:reply:SERVICE/ACTION/SOURCE/MESSAGE_ID`.
///
/// A worker that asks blocks until Redis has answered, at most the
/// [timeout](crate::RedisBuilder::timeout); a request about which Redis does not
/// answer is put off, as it may be a repeated one.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use coney::{Broker, Redis, RedisReplyStore, ServiceServer};
///
/// let redis = Redis::builder("redis://localhost").connections(10).build()?;
/// let server = ServiceServer::builder(&Broker::memory(), "payments")
///     .handler("charge", |cents: u64| Ok::<_, String>(cents))
///     .deduplicate(Arc::new(RedisReplyStore::new(&redis)), Duration::from_secs(600))
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RedisReplyStore {
    redis: Redis,
}

/// What a value begins with: a claim with its owner, or a reply.
const CLAIM: char = 'c';
const REPLY: char = 'r';

/// Extends a claim. KEYS: the request. ARGV: claim, lease in ms.
const RENEW: &str = "
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then
        return 0
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return 1";

/// Keeps a reply, unless the claim has passed to another. KEYS: the request. ARGV: claim,
/// reply, its time in ms.
const COMPLETE: &str = "
    local there = redis.call('GET', KEYS[1])
    if there and there ~= ARGV[1] then
        return 0
    end
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1";

/// Takes the claim if there is nothing. KEYS: the request. ARGV: claim, lease in ms.
const TAKE: &str = "
    local there = redis.call('GET', KEYS[1])
    if not there then
        redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    end
    return there";

/// KEYS: the request. ARGV: claim.
const RELEASE: &str = "
    if redis.call('GET', KEYS[1]) == ARGV[1] then
        redis.call('DEL', KEYS[1])
    end";

impl RedisReplyStore {
    /// Over a Redis.
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
        }
    }
}

impl ReplyStore for RedisReplyStore {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        let mut script = redis::cmd("EVAL");
        script.arg(TAKE).arg(1).arg(at(key));
        script.arg(format!("{CLAIM}{owner}")).arg(millis(lease));
        let there: Option<Vec<u8>> = self.redis.ask("claim a request", &script)?;
        Ok(match there.as_deref().map(<[u8]>::split_first) {
            None => ClaimOutcome::Granted,
            Some(Some((&kind, reply))) if char::from(kind) == REPLY => {
                ClaimOutcome::Done(reply.to_vec())
            }
            Some(_) => ClaimOutcome::InProgress,
        })
    }

    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError> {
        let mut script = redis::cmd("EVAL");
        script.arg(RENEW).arg(1).arg(at(key));
        script.arg(format!("{CLAIM}{owner}")).arg(millis(lease));
        Ok(self.redis.ask("renew a claim", &script)?)
    }

    fn complete(
        &self,
        key: &str,
        owner: u64,
        reply: &[u8],
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let mut value = vec![REPLY as u8];
        value.extend_from_slice(reply);
        let mut script = redis::cmd("EVAL");
        script.arg(COMPLETE).arg(1).arg(at(key));
        script
            .arg(format!("{CLAIM}{owner}"))
            .arg(value)
            .arg(millis(ttl));
        Ok(self.redis.ask("keep a reply", &script)?)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        let mut script = redis::cmd("EVAL");
        script.arg(RELEASE).arg(1).arg(at(key));
        script.arg(format!("{CLAIM}{owner}"));
        Ok(self.redis.ask("release a request", &script)?)
    }

    fn ping(&self) -> Result<(), StoreError> {
        Ok(self.redis.ping()?)
    }
}

fn at(key: &str) -> String {
    format!("coney:reply:{key}")
}

/// Redis takes no less than one.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, 1 << 52)
}
