//! Instances whose entries vanish from Redis: they are found all the time, and come back.

use std::time::{Duration, Instant};

use coney::Instance;
use coney::registry::RegistrationState;

use crate::support::eventually;
use crate::support::process::Process;
use crate::support::registry::{ids, registry};
use crate::support::server::Server;

const SECOND: Duration = Duration::from_secs(1);
const KEY: &str = "service:registry:web";

/// Asserts that a reader finds the instances of two other processes all the time, while
/// `happens` takes them from Redis.
fn comes_back_after(what: &str, happens: impl Fn(&Server)) {
    let redis = Server::redis();
    let here = registry(redis.url(), 3 * SECOND);
    let one = here.register("web", Instance::new().with_id("1")).unwrap();
    let _two = Process::start(&["register", redis.url(), "2"]);
    let reader = registry(redis.url(), 3 * SECOND);
    eventually("both are found", || {
        ids(&reader.lookup("web").unwrap()) == ["1", "2"]
    });
    for _ in 0..3 {
        happens(&redis);
        let found = reader.refresh("web").unwrap();
        assert_eq!(ids(&found), ["1", "2"], "{what}");
        eventually("both are written again", || {
            redis.ctl(&["HLEN", KEY]) == "2"
        });
        let end = Instant::now() + SECOND;
        while Instant::now() < end {
            assert_eq!(ids(&reader.lookup("web").unwrap()), ["1", "2"], "{what}");
        }
    }
    assert_eq!(one.state(), RegistrationState::Registered);
    eventually("that is certain", || {
        !reader.lookup("web").unwrap().is_stale()
    });
    one.deregister(SECOND).unwrap();
    assert_eq!(
        ids(&reader.refresh("web").unwrap()),
        ["2"],
        "one that leaves is gone"
    );
    assert_eq!(redis.ctl(&["HLEN", KEY]), "1");
}

#[test]
fn deleting_the_key() {
    comes_back_after("DEL", |redis| drop(redis.ctl(&["DEL", KEY])));
}

#[test]
fn a_peer_that_deletes_the_field() {
    comes_back_after("HDEL", |redis| drop(redis.ctl(&["HDEL", KEY, "1"])));
    comes_back_after("HDEL of both", |redis| {
        drop(redis.ctl(&["HDEL", KEY, "1", "2"]))
    });
}

#[test]
fn emptying_all() {
    comes_back_after("FLUSHALL", |redis| drop(redis.ctl(&["FLUSHALL"])));
}

#[test]
fn eviction() {
    comes_back_after("eviction", |redis| {
        redis.ctl(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
        redis.ctl(&["CONFIG", "SET", "maxmemory", "1"]);
        // Anything that is written has everything else evicted.
        let _ = redis.try_ctl(&["SET", "x", "y"]);
        redis.ctl(&["CONFIG", "SET", "maxmemory", "0"]);
    });
}

#[test]
fn a_deregistration_that_failed_is_tried_again() {
    let redis = Server::redis();
    let here = registry(redis.url(), 60 * SECOND);
    let one = here.register("web", Instance::new().with_id("1")).unwrap();
    redis.pause();
    one.deregister(SECOND / 2).unwrap_err();
    redis.resume();
    eventually("it is gone", || redis.ctl(&["HEXISTS", KEY, "1"]) == "0");
    assert_eq!(redis.ctl(&["EXISTS", "coney:left:web:1"]), "1");
}
