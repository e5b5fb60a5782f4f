//! Outages of Redis, and the look-ups of a registry meanwhile. Each test has a private Redis:
//! starting one takes a tenth of a second.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use coney::balance::Random;
use coney::redis::Redis;
use coney::registry::RegistrationState;
use coney::{Broker, ErrorKind, Instance, Registry, ServiceClient, ServiceServer};

use crate::support::process::Process;
use crate::support::registry::{LOOKUP_TIMEOUT, ids, registry, unix_seconds};
use crate::support::server::Server;
use crate::support::timing::in_time;
use crate::support::{eventually, unique};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Asserts that look-ups end in time and find the same instance all the time; if the registry is
/// in trouble, one of them must be stale.
fn finds_the_same_for(time: Duration, registry: &Registry, service: &str, in_trouble: bool) {
    let end = Instant::now() + time;
    let mut was_stale = false;
    while Instant::now() < end {
        let found = in_time(LOOKUP_TIMEOUT, "a look-up", || registry.lookup(service)).unwrap();
        assert_eq!(ids(&found), ["1"]);
        was_stale |= found.is_stale();
        thread::sleep(5 * MS);
    }
    assert!(was_stale || !in_trouble);
}

#[test]
fn killed_and_started_empty() {
    let mut redis = Server::redis();
    let (here, there) = (
        registry(redis.url(), 2 * SECOND),
        registry(redis.url(), 2 * SECOND),
    );
    let one = here.register("web", Instance::new().with_id("1")).unwrap();
    finds_the_same_for(SECOND, &there, "web", false);
    redis.kill();
    // This is longer than an instance without heartbeats would live.
    finds_the_same_for(3 * SECOND, &there, "web", true);
    let found = there.lookup("web").unwrap();
    assert!(
        found.stale_reason().unwrap().contains("connection refused"),
        "{found:?}"
    );
    assert!(matches!(
        one.state(),
        RegistrationState::Registered | RegistrationState::Pending(_)
    ));
    let error = in_time(LOOKUP_TIMEOUT, "a refresh", || there.refresh("web")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry, "{error}");
    let error = in_time(LOOKUP_TIMEOUT, "a first look-up", || there.lookup("other"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Registry);
    redis.start_again();
    // It has lost everything, and all come back by themselves.
    finds_the_same_for(2 * SECOND, &there, "web", true);
    eventually("it is known for sure again", || {
        !there.lookup("web").unwrap().is_stale()
    });
    assert_eq!(redis.ctl(&["HEXISTS", "service:registry:web", "1"]), "1");
}

#[test]
fn emptied() {
    // A lost instance is kept for half of this time: five seconds longer than the slow heartbeat
    // below, as a busy machine may delay it.
    const HEARTBEAT_TTL: Duration = Duration::from_secs(12);
    let redis = Server::redis();
    let (here, there) = (
        registry(redis.url(), HEARTBEAT_TTL),
        registry(redis.url(), HEARTBEAT_TTL),
    );
    let _one = here.register("web", Instance::new().with_id("1")).unwrap();
    let slow = Registry::builder(Redis::new(redis.url()).unwrap().registry_store());
    let slow = slow.heartbeat_interval(SECOND).build().unwrap();
    let _two = slow.register("web", Instance::new().with_id("2")).unwrap();
    assert_eq!(ids(&there.lookup("web").unwrap()), ["1", "2"]);
    for _ in 0..20 {
        redis.ctl(&["FLUSHALL"]);
        // A refresh at this moment finds none or one of them, and the instances stay.
        assert_eq!(ids(&there.refresh("web").unwrap()), ["1", "2"]);
    }
    eventually("both are there again", || {
        redis.ctl(&["HLEN", "service:registry:web"]) == "2"
    });
    eventually("and known for sure", || {
        !there.lookup("web").unwrap().is_stale()
    });
    // A deregistered instance is gone at once, although Redis is empty then.
    drop(here.register("mail", Instance::new().with_id("2")).unwrap());
    assert!(there.lookup("mail").unwrap().is_empty());
    // A deregistered peer, which leaves no mark, is gone too; one that does not come back after a
    // loss is given up.
    let php = format!(r#"{{"last_heartbeat":{}}}"#, unix_seconds() + 1);
    for (service, is_deregistered) in [("php-1", true), ("php-2", false)] {
        let key = format!("service:registry:{service}");
        redis.ctl(&["HSET", &key, "3", &php]);
        assert_eq!(ids(&there.lookup(service).unwrap()), ["3"]);
        redis.ctl(
            &[if is_deregistered { "DEL" } else { "FLUSHALL" }, &key]
                [..1 + usize::from(is_deregistered)],
        );
        let found = there.refresh(service).unwrap();
        assert_eq!(found.is_empty(), is_deregistered, "{found:?}");
        eventually("it is given up", || {
            there.lookup(service).unwrap().is_empty()
        });
    }
}

#[test]
fn frozen() {
    let redis = Server::redis();
    let (here, there) = (
        registry(redis.url(), 2 * SECOND),
        registry(redis.url(), 2 * SECOND),
    );
    let one = here.register("web", Instance::new().with_id("1")).unwrap();
    finds_the_same_for(100 * MS, &there, "web", false);
    redis.pause();
    finds_the_same_for(3 * SECOND, &there, "web", true);
    let error = in_time(LOOKUP_TIMEOUT, "a first look-up", || there.lookup("other"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Registry);
    let error = in_time(500 * MS, "deregistering", || one.deregister(500 * MS)).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Registry),
        "{error}"
    );
    redis.resume();
    // The answer to an earlier question must not be taken for the answer to this.
    for n in 0..50 {
        let service = format!("s{n}");
        assert!(there.refresh(&service).unwrap().is_empty());
    }
    // It could not deregister, but has no heartbeat any more.
    eventually("it has died", || there.refresh("web").unwrap().is_empty());
}

#[test]
fn full_and_wrong_and_unreadable() {
    let redis = Server::redis();
    let (here, there) = (
        registry(redis.url(), 2 * SECOND),
        registry(redis.url(), 2 * SECOND),
    );
    let one = here.register("web", Instance::new().with_id("1")).unwrap();
    redis.ctl(&["CONFIG", "SET", "maxmemory", "1"]);
    let two = here.register("web", Instance::new().with_id("2")).unwrap();
    let RegistrationState::Pending(because) = two.state() else {
        panic!("{:?}", two.state());
    };
    assert!(because.contains("OOM"), "{because}");
    // No heartbeat arrives, which makes no instance dead.
    finds_the_same_for(3 * SECOND, &there, "web", true);
    let found = there.lookup("web").unwrap();
    assert!(found.stale_reason().unwrap().contains("OOM"), "{found:?}");
    redis.ctl(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("both are there", || {
        there.refresh("web").unwrap().iter().len() == 2
    });
    assert_eq!(one.state(), RegistrationState::Registered);

    // A key of another type: only that service is affected.
    redis.ctl(&["SET", "service:registry:odd", "x"]);
    let error = there.lookup("odd").unwrap_err();
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
    let odd = here.register("odd", Instance::new().with_id("3")).unwrap();
    eventually("it cannot be registered", || {
        matches!(odd.state(), RegistrationState::Pending(_))
    });
    assert_eq!(there.refresh("web").unwrap().iter().len(), 2);
    let three = here.register("web", Instance::new().with_id("3")).unwrap();
    assert_eq!(
        three.state(),
        RegistrationState::Registered,
        "behind one that cannot be"
    );
    redis.ctl(&["DEL", "service:registry:odd"]);
    eventually("it is registered at last", || {
        odd.state() == RegistrationState::Registered
    });
    assert_eq!(ids(&there.refresh("odd").unwrap()), ["3"]);

    // Values that cannot be read.
    for (id, value) in [
        ("a", "not json"),
        ("b", "[1]"),
        ("c", "{}"),
        ("d", "\"\\ud83d\""),
        ("e", ""),
    ] {
        redis.ctl(&["HSET", "service:registry:odd", id, value]);
    }
    assert_eq!(ids(&there.refresh("odd").unwrap()), ["3"]);
    // Such a value in place of our own is overwritten.
    let not_utf8 = "redis.call('HSET', 'service:registry:odd', '3', '\\255')";
    for change in [
        &["HSET", "service:registry:odd", "3", "not json"][..],
        &["EVAL", not_utf8, "0"],
    ] {
        redis.ctl(change);
        eventually("it is readable again", || {
            ids(&there.refresh("odd").unwrap()) == ["3"]
        });
    }
}

#[test]
fn a_server_that_never_answers_holds_nothing_up() {
    for greeting in ["", "HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://:pw@{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let mut kept = Vec::new();
            for mut socket in listener.incoming().map_while(Result::ok) {
                let _ = socket.read(&mut [0; 64]);
                let _ = socket.write_all(greeting.as_bytes());
                kept.push(socket);
            }
        });
        let registry = registry(&url, 2 * SECOND);
        let lookup = in_time(LOOKUP_TIMEOUT, "a look-up", || registry.lookup("web"));
        assert_eq!(lookup.unwrap_err().kind(), ErrorKind::Registry);
        let one = in_time(4 * SECOND, "registering", || {
            registry.register("web", Instance::new())
        });
        let one = one.unwrap();
        assert!(matches!(one.state(), RegistrationState::Pending(_)));
        in_time(4 * SECOND, "dropping", || drop(one));
        in_time(4 * SECOND, "dropping", || drop(registry));
    }
}

#[test]
fn calls_go_on_without_a_registry() {
    let mut redis = Server::redis();
    let broker = Broker::memory();
    let registry = registry(redis.url(), 2 * SECOND);
    redis.kill();
    let service = unique("echo");
    let server = in_time(4 * SECOND, "starting", || {
        ServiceServer::builder(&broker, &service)
            .respond("echo", |n: u64| n)
            .registry(&registry)
            .start()
    });
    let server = server.unwrap();
    let client = ServiceClient::builder(&broker, "tests")
        .registry(&registry)
        .balancer(Random)
        .build()
        .unwrap();
    for n in 0..20u64 {
        assert_eq!(client.call::<u64>(&service, "echo", &n).unwrap(), n);
    }
    redis.start_again();
    eventually("it is registered", || {
        registry
            .refresh(&service)
            .is_ok_and(|found| found.iter().len() == 1)
    });
    redis.kill();
    in_time(SECOND, "shutdown", || server.shutdown(SECOND)).unwrap();
}

#[test]
fn a_process_that_is_killed_is_out_of_every_look_up_in_time() {
    let redis = Server::redis();
    let [first, _second] = ["1", "2"].map(|id| Process::start(&["register", redis.url(), id]));
    let registry = registry(redis.url(), 2 * SECOND);
    assert_eq!(ids(&registry.lookup("web").unwrap()), ["1", "2"]);
    drop(first); // SIGKILL
    in_time(2 * SECOND, "noticing", || {
        while ids(&registry.lookup("web").unwrap()) != ["2"] {
            thread::sleep(2 * MS);
        }
    });
    let end = Instant::now() + 3 * SECOND;
    while Instant::now() < end {
        assert_eq!(
            ids(&registry.lookup("web").unwrap()),
            ["2"],
            "the other lives on"
        );
        thread::sleep(5 * MS);
    }
    assert_eq!(
        redis.ctl(&["HKEYS", "service:registry:web"]),
        "2",
        "and the dead is removed"
    );
}
