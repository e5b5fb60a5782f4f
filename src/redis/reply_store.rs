//! The reply store in Redis.

use std::time::Duration;

use r2d2_redis::redis;

use super::Redis;
use crate::consumer::{ClaimOutcome, ReplyStore, StoreError};

/// A [`ReplyStore`] in Redis, shared by all servers of a service.
///
/// Made by [`Redis::reply_store`]. Its keys are `coney:reply:SERVICE/ACTION/SOURCE/MESSAGE_ID`.
///
/// A worker blocks until Redis has answered, at most the
/// [timeout](super::RedisBuilder::timeout). While Redis does not answer, requests are
/// postponed, as they may be repeated ones.
///
/// ```
/// use std::time::Duration;
/// use coney::redis::Redis;
/// use coney::{Broker, ServiceServer};
///
/// let redis = Redis::builder("redis://localhost").connections(10).build()?;
/// let server = ServiceServer::builder(&Broker::memory(), "payments")
///     .respond("charge", |cents: u64| cents)
///     .deduplicate(redis.reply_store(), Duration::from_secs(600))
///     .start()?;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RedisReplyStore {
    redis: Redis,
}

/// The first character of a value that is a claim; the owner follows.
const CLAIM: char = 'c';

/// The first character of a value that is a reply; its body follows.
const REPLY: char = 'r';

/// A script that extends a claim. KEYS: the request. ARGV: claim, lease in ms.
const RENEW: &str = "
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then
        return 0
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return 1";

/// A script that stores a reply, unless another owner has the claim. KEYS: the request. ARGV:
/// claim, reply, its time to live in ms.
const COMPLETE: &str = "
    local there = redis.call('GET', KEYS[1])
    if there and there ~= ARGV[1] then
        return 0
    end
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1";

/// A script that takes the claim if there is neither claim nor reply. KEYS: the request.
/// ARGV: claim, lease in ms.
const TAKE: &str = "
    local there = redis.call('GET', KEYS[1])
    if not there then
        redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    end
    return there";

/// A script that removes a claim. KEYS: the request. ARGV: claim.
const RELEASE: &str = "
    if redis.call('GET', KEYS[1]) == ARGV[1] then
        redis.call('DEL', KEYS[1])
    end";

impl Redis {
    /// Returns a reply store for servers and subscribers that deduplicate requests.
    pub fn reply_store(&self) -> RedisReplyStore {
        RedisReplyStore {
            redis: self.clone(),
        }
    }
}

impl ReplyStore for RedisReplyStore {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        let mut script = redis::cmd("EVAL");
        script.arg(TAKE).arg(1).arg(redis_key(key));
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
        script.arg(RENEW).arg(1).arg(redis_key(key));
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
        script.arg(COMPLETE).arg(1).arg(redis_key(key));
        script
            .arg(format!("{CLAIM}{owner}"))
            .arg(value)
            .arg(millis(ttl));
        Ok(self.redis.ask("store a reply", &script)?)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        let mut script = redis::cmd("EVAL");
        script.arg(RELEASE).arg(1).arg(redis_key(key));
        script.arg(format!("{CLAIM}{owner}"));
        Ok(self.redis.ask("release a request", &script)?)
    }

    fn ping(&self) -> Result<(), StoreError> {
        Ok(self.redis.ping()?)
    }
}

fn redis_key(key: &str) -> String {
    format!("coney:reply:{key}")
}

/// Returns a time in milliseconds, at least the 1 ms that Redis accepts.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, 1 << 52)
}
