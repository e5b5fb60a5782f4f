//! The data in Redis that coney and peers in other languages share.

use std::time::Duration;

use coney::Instance;
use coney::deduplication::{ClaimOutcome, ReplyStore};
use coney::redis::Redis;
use coney::registry::{RegistrationState, RegistryStore};

use crate::support::registry::{LOOKUP_TIMEOUT, ids, registry, unix_seconds};
use crate::support::server::Server;
use crate::support::timing::in_time;
use crate::support::{eventually, redis_url, unique};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_password_is_wanted_and_never_shown() {
    let redis = Server::redis();
    redis.ctl(&["CONFIG", "SET", "requirepass", "hunter2"]);
    let address = redis.url().trim_start_matches("redis://").to_owned();
    for (login, wanted) in [
        (String::new(), "NOAUTH"),
        (":wrong-hunter3@".to_owned(), "WRONGPASS"),
        ("unknown:hunter2@".to_owned(), "WRONGPASS"),
    ] {
        let registry = registry(&format!("redis://{login}{address}"), SECOND * 2);
        let error = in_time(LOOKUP_TIMEOUT, "a look-up", || registry.lookup("web")).unwrap_err();
        let builder = Redis::builder(&format!("redis://{login}{address}"));
        let text = format!("{error} {error:?} {registry:?} {builder:?}");
        assert!(!text.contains("hunter"), "{text}");
        // Either of the two errors may come first.
        let is_reported = || {
            registry
                .refresh("web")
                .unwrap_err()
                .to_string()
                .contains(wanted)
        };
        eventually(wanted, is_reported);
    }
    let registry = registry(&format!("redis://:hunter2@{address}/3"), SECOND * 2);
    let _one = registry
        .register("web", Instance::new().with_id("1"))
        .unwrap();
    assert_eq!(ids(&registry.lookup("web").unwrap()), ["1"]);
}

#[test]
fn peers_of_other_languages_share_the_hashes() {
    let redis = Server::redis();
    let registry = registry(redis.url(), 60 * SECOND);
    let now = unix_seconds();
    // Word for word as the PHP peer writes it.
    let php = format!(
        r#"{{"instance_id":"php-1","registered_at":{now},"last_heartbeat":{now},"host":"10.0.0.5","port":9501,"tags":[]}}"#
    );
    redis.ctl(&["HSET", "service:registry:user-service", "php-1", &php]);
    redis.ctl(&["EXPIRE", "service:registry:user-service", "300"]);
    let ours = registry
        .register(
            "user-service",
            Instance::new()
                .with_id("coney-1")
                .with_host("h")
                .with_port(1),
        )
        .unwrap();
    let found = registry.refresh("user-service").unwrap();
    assert_eq!(ids(&found), ["coney-1", "php-1"]);
    assert_eq!(found.iter().nth(1).unwrap().port(), Some(9501));
    // The peer finds the contract's fields in ours, flat.
    let json = redis.ctl(&["HGET", "service:registry:user-service", "coney-1"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["instance_id"], "coney-1");
    assert_eq!(json["host"], "h");
    assert!(json["registered_at"].is_u64() && json["last_heartbeat"].is_u64());
    assert!(json.get("service").is_none());
    let ttl: u64 = redis
        .ctl(&["TTL", "service:registry:user-service"])
        .parse()
        .unwrap();
    assert!((295..=300).contains(&ttl), "{ttl}");
    // The peer's own value stays, to the letter.
    assert_eq!(
        redis.ctl(&["HGET", "service:registry:user-service", "php-1"]),
        php
    );
    // No other keys where peers look.
    assert_eq!(
        redis.ctl(&["KEYS", "service:registry:*"]),
        "service:registry:user-service"
    );
    // One that another program deletes is lost, and comes back with its next beat.
    redis.ctl(&["HDEL", "service:registry:user-service", "coney-1"]);
    assert_eq!(
        ids(&registry.refresh("user-service").unwrap()),
        ["coney-1", "php-1"]
    );
    eventually("it is registered again", || {
        redis.ctl(&["HEXISTS", "service:registry:user-service", "coney-1"]) == "1"
    });
    assert_eq!(ours.state(), RegistrationState::Registered);
    // A deregistered one stays away, also for a reader that had found it.
    ours.deregister(SECOND).unwrap();
    assert_eq!(ids(&registry.refresh("user-service").unwrap()), ["php-1"]);
    assert_eq!(
        redis.ctl(&["EXISTS", "coney:left:user-service:coney-1"]),
        "1"
    );
}

#[test]
fn the_last_registration_may_outlive_the_registry() {
    let redis = Server::redis();
    let one = {
        let registry = registry(redis.url(), 2 * SECOND);
        registry.register("web", Instance::new()).unwrap()
    };
    in_time(SECOND, "dropping", || drop(one));
    assert_eq!(redis.ctl(&["EXISTS", "service:registry:web"]), "0");
}

#[test]
fn one_beat_is_one_round_trip_and_renews_the_expiry() {
    let redis = Server::redis();
    let handle = Redis::new(redis.url()).unwrap();
    let store = handle.registry_store().with_key_ttl(100 * SECOND);
    let instances: Vec<Instance> = (0..250)
        .map(|n| {
            let json = format!(r#"{{"last_heartbeat":{}}}"#, unix_seconds() - 5);
            Instance::from_json(&format!("s{}", n % 3), &format!("i{n}"), &json).unwrap()
        })
        .collect();
    for instance in &instances {
        store.register(instance).unwrap();
    }
    redis.ctl(&["PEXPIRE", "service:registry:s1", "5000"]);
    let net_writes = || {
        let stats = redis.ctl(&["INFO", "stats"]);
        let line = stats
            .lines()
            .find(|line| line.starts_with("total_writes_processed:"));
        line.unwrap()
            .trim()
            .rsplit_once(':')
            .unwrap()
            .1
            .parse::<u64>()
            .unwrap()
    };
    let before = net_writes();
    store.heartbeat(&instances).unwrap();
    // One answer to us, at most split by the socket's buffer, and one to redis-cli.
    let writes = net_writes() - before;
    assert!(writes <= 4, "{writes} answers for one beat");
    let ttl: u64 = redis.ctl(&["TTL", "service:registry:s1"]).parse().unwrap();
    assert!(ttl > 90, "{ttl}");
}

#[test]
fn replies_are_kept_in_redis() {
    let (url, key) = (redis_url(), unique("key"));
    let [here, there] = [(); 2].map(|()| Redis::new(&url).unwrap().reply_store());
    let minute = 60 * SECOND;
    assert_eq!(here.claim(&key, 1, minute).unwrap(), ClaimOutcome::Granted);
    assert_eq!(
        there.claim(&key, 2, minute).unwrap(),
        ClaimOutcome::InProgress
    );
    there.release(&key, 2).unwrap();
    assert_eq!(
        there.claim(&key, 2, minute).unwrap(),
        ClaimOutcome::InProgress,
        "not its own"
    );
    here.release(&key, 1).unwrap();
    assert_eq!(there.claim(&key, 2, minute).unwrap(), ClaimOutcome::Granted);
    assert!(there.renew(&key, 2, minute).unwrap());
    assert!(!here.renew(&key, 1, minute).unwrap());
    assert!(
        !here.complete(&key, 1, b"late", minute).unwrap(),
        "not its own"
    );
    assert!(
        there
            .complete(&key, 2, b"{\"a\":\"\xff\"}", minute)
            .unwrap()
    );
    assert!(
        !here.complete(&key, 1, b"late", minute).unwrap(),
        "it is done"
    );
    assert_eq!(
        here.claim(&key, 1, minute).unwrap(),
        ClaimOutcome::Done(b"{\"a\":\"\xff\"}".to_vec())
    );
    here.release(&key, 2).unwrap();
    assert!(matches!(
        here.claim(&key, 1, minute).unwrap(),
        ClaimOutcome::Done(_)
    ));
    let short = unique("key");
    assert_eq!(
        here.claim(&short, 1, 50 * MS).unwrap(),
        ClaimOutcome::Granted
    );
    eventually("the lease is over", || {
        there.claim(&short, 2, minute).unwrap() == ClaimOutcome::Granted
    });
    assert!(
        !here.renew(&short, 1, minute).unwrap(),
        "it has passed to another"
    );
    assert!(there.complete(&short, 2, b"", 50 * MS).unwrap());
    eventually("the reply is forgotten", || {
        here.claim(&short, 1, minute).unwrap() == ClaimOutcome::Granted
    });
    let down = Redis::builder("redis://127.0.0.1:1")
        .timeout(1_000 * MS) // enough for one attempt on a busy machine
        .build()
        .unwrap()
        .reply_store();
    let error = down.claim(&key, 1, minute).unwrap_err();
    assert!(error.to_string().contains("connection refused"), "{error}");
}
