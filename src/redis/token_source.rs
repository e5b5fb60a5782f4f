//! The tokens of rate limits that several processes share, in Redis.

use std::sync::Arc;
use std::time::Duration;

use r2d2_redis::redis::{self, Cmd, FromRedisValue};

use super::Redis;
use crate::error::Result;
use crate::resilience::{Lease, LeaseRequest, LeaseTerms, RateLimit, TokenSource};

/// A script that leases tokens by the generic cell rate algorithm, with Redis's own clock. KEYS: the
/// limit. ARGV: tokens wanted, calls in a period, the period in µs, the most tokens after a pause.
/// Returns the tokens granted, and the time in µs until another one is free.
///
/// The value is the moment, in Unix µs, from which the limit is idle. It has 16 digits, of which
/// Lua's own conversion would keep 14. One beyond what the burst allows comes from a clock that was
/// set back, or from other settings.
const LEASE: &str = "
    local wanted, calls = tonumber(ARGV[1]), tonumber(ARGV[2])
    local interval = tonumber(ARGV[3]) / calls
    local ahead = tonumber(ARGV[4]) * interval
    local time = redis.call('TIME')
    local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
    local idle_at = tonumber(redis.call('GET', KEYS[1]) or now) or now
    idle_at = math.min(math.max(idle_at, now), now + math.ceil(ahead))
    local free = math.floor((now + ahead - idle_at) / interval + 0.000001)
    local granted = math.max(math.min(wanted, free), 0)
    if granted > 0 then
        idle_at = idle_at + math.ceil(granted * interval)
        local ttl = math.ceil((idle_at - now) / 1000)
        redis.call('SET', KEYS[1], string.format('%.0f', idle_at),
            'PX', string.format('%.0f', math.max(ttl, 1)))
    end
    local next_in = math.max(math.ceil(idle_at + interval - ahead - now), 0)
    return {granted, next_in}";

/// The prefix of the keys of limits; the name follows, and the key of a limit with keys.
const KEYS: &str = "coney:limit:";

/// The source of shared limits' tokens in one Redis.
struct RedisTokens(Redis);

impl RateLimit {
    /// Shares the limit with all processes that give a limit the same name in the same Redis: their
    /// calls count together, and so do those of clients and servers. All must have the same
    /// settings.
    ///
    /// Each process leases tokens for 50 ms ahead, so that Redis is asked about 20 times a second
    /// (and per key), however many calls there are. The first calls after a pause wait until Redis has answered; no
    /// call waits longer than a tenth of a second for that. A lease that is not used lapses after
    /// 100 ms. In any time *t*, all processes together admit at most
    /// *rate × (t + 150 ms) + burst* calls, and nearly all of the rate if there are enough calls.
    ///
    /// While Redis does not answer, each process admits its part of the rate: that of one of the
    /// instances last seen in the server's registry, or of
    /// [`shared_by`](RateLimit::shared_by). So the limit is neither lifted nor shut meanwhile. The log has a
    /// line when this begins, and one when it ends.
    ///
    /// Redis needs memory for the keys of the last moments only: one of 40 bytes, for each limit and
    /// key, which expires when the limit is idle.
    ///
    /// ```
    /// use coney::redis::Redis;
    /// use coney::resilience::RateLimit;
    /// use coney::{Broker, ServiceServer};
    ///
    /// let redis = Redis::new("redis://localhost")?;
    /// let server = ServiceServer::builder(&Broker::memory(), "search-service")
    ///     .respond("search", |query: String| vec![query])
    ///     .limit("search", RateLimit::per_second(2_000).shared(&redis, "search"))
    ///     .registry(&redis.registry())
    ///     .start();
    /// # let _ = server;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn shared(self, redis: &Redis, name: impl Into<String>) -> Self {
        self.with_source(Arc::new(RedisTokens(redis.clone())), name.into())
    }
}

impl TokenSource for RedisTokens {
    fn lease(
        &self,
        name: &str,
        terms: &LeaseTerms,
        requests: &[LeaseRequest<'_>],
    ) -> Result<Vec<Lease>> {
        const WHAT: &str = "lease tokens of a rate limit";
        let scripts: Vec<Cmd> = requests
            .iter()
            .map(|request| {
                let mut script = redis::cmd("EVAL");
                script.arg(LEASE).arg(1).arg(redis_key(name, request.key));
                script.arg(request.wanted).arg(terms.rate.calls);
                script.arg(micros(terms.rate.period)).arg(terms.most_free);
                script
            })
            .collect();
        let replies = self.0.ask_all(WHAT, &scripts)?;
        let lease = |reply| {
            let parsed = <(u32, u64)>::from_redis_value(reply);
            let (granted, next_in) =
                parsed.map_err(|error| self.0.failed(WHAT, &error.to_string()))?;
            Ok(Lease {
                granted,
                next_in: Duration::from_micros(next_in),
            })
        };
        replies.iter().map(lease).collect()
    }

    fn describe(&self) -> String {
        format!("Redis at {}", self.0.address())
    }
}

/// Returns the key of a limit. A colon in its name is escaped, so that it is not the start of a key.
fn redis_key(name: &str, key: Option<&str>) -> String {
    let name = name.replace('%', "%25").replace(':', "%3A");
    match key {
        None => format!("{KEYS}{name}"),
        Some(key) => format!("{KEYS}{name}:{key}"),
    }
}

/// Returns a period in microseconds, which is at least one.
fn micros(period: Duration) -> u64 {
    u64::try_from(period.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_limits_have_one_key() {
        assert_eq!(redis_key("search", None), "coney:limit:search");
        assert_eq!(redis_key("a", Some("b:c")), "coney:limit:a:b:c");
        let all = [
            ("a:b", None),
            ("a", Some("b")),
            ("a%3Ab", None),
            ("a", Some("")),
        ];
        let keys: std::collections::HashSet<_> = all
            .into_iter()
            .map(|(name, key)| redis_key(name, key))
            .collect();
        assert_eq!(keys.len(), all.len());
    }
}
