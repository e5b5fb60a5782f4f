//! Rate limits that several processes share in Redis: together they admit no more than the rate,
//! and Redis may be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::redis::Redis;
use coney::resilience::{RateLimit, Refusal, Resilience};
use coney::{Broker, ErrorKind, Instance, ServiceClient, ServiceServer, Subscription};

use crate::support::registry::registry;
use crate::support::server::Server;
use crate::support::{PATIENCE, client, eventually, redis_url, unique};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Starts a service in a broker of its own, as in a process of its own.
fn serve(service: &str, limit: RateLimit) -> (ServiceServer, ServiceClient) {
    let broker = Broker::memory();
    let server = ServiceServer::builder(&broker, service)
        .respond("work", |n: u64| n)
        .limit("work", limit)
        .start()
        .unwrap();
    (server, client(&broker))
}

fn redis(url: &str) -> Redis {
    Redis::builder(url).timeout(500 * MS).build().unwrap()
}

/// Calls until the end, as fast as the service allows; returns the number of calls that ran.
fn flood(client: &ServiceClient, service: &str, end: Instant) -> u32 {
    let mut admitted = 0;
    while Instant::now() < end {
        match client.call::<u64>(service, "work", &1) {
            Ok(_) => admitted += 1,
            Err(error) => {
                assert_eq!(error.remote_code(), Some("rate_limited"), "{error}");
                thread::sleep(MS);
            }
        }
    }
    admitted
}

#[test]
fn servers_admit_no_more_than_the_rate_together() {
    const RATE: u32 = 400;
    const PROCESSES: u32 = 8;
    let (service, name) = (unique("work"), unique("limit"));
    let servers = (0..PROCESSES).map(|_| {
        // A share that is nearly nothing: a slow answer on a busy machine admits no more.
        let limit = RateLimit::per_second(RATE).shared(&redis(&redis_url()), &*name);
        serve(&service, limit.shared_by(100_000))
    });
    let servers: Vec<_> = servers.collect();
    let begin = Instant::now();
    let end = begin + 2 * SECOND;
    let admitted: u32 = thread::scope(|scope| {
        let floods = servers.iter().map(|(_, client)| {
            let service = &service;
            scope.spawn(move || flood(client, service, end))
        });
        let floods: Vec<_> = floods.collect();
        floods.into_iter().map(|it| it.join().unwrap()).sum()
    });
    // Leases may be used up to 100 ms later, and are given out 50 ms ahead.
    let time = begin.elapsed() + 150 * MS;
    let most = f64::from(RATE) * time.as_secs_f64() + f64::from(RATE / 10);
    assert!(
        f64::from(admitted) <= 1.02 * most,
        "{admitted} of at most {most}"
    );
    assert!(admitted > 0);
}

#[test]
fn clients_and_servers_of_one_name_count_together() {
    let (service, name) = (unique("work"), unique("limit"));
    let redis = redis(&redis_url());
    let limit = || {
        RateLimit::every(3_600 * SECOND)
            .burst(3)
            .shared(&redis, &*name)
    };
    let limit = || limit().shared_by(1);
    let (_server, first) = serve(&service, limit());
    let calls = |client: &ServiceClient| client.call::<u64>(&service, "work", &1);
    // A call that gave up waiting for Redis has no token, but one may have been leased for it.
    let mut admitted = (0..6).filter(|_| calls(&first).is_ok()).count();
    assert!((1..=4).contains(&admitted), "{admitted}");
    let broker = Broker::memory();
    let _other = ServiceServer::builder(&broker, &service)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    let limited = ServiceClient::builder(&broker, "caller")
        .timeout(PATIENCE)
        .resilience(Resilience::none().rate(limit()))
        .build()
        .unwrap();
    let mut refused = None;
    for _ in 0..6 {
        match calls(&limited) {
            Ok(_) => admitted += 1,
            Err(error) => refused = Some(error),
        }
    }
    assert!(admitted <= 4, "{admitted}");
    let error = refused.expect("the limit is used up");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert_eq!(error.refused_by(), Some(Refusal::RateLimit));
    assert!(error.retry_after().is_some_and(|after| after > PATIENCE));
}

#[test]
fn a_client_waits_for_its_turn_in_a_shared_limit() {
    let (service, name) = (unique("work"), unique("limit"));
    let broker = Broker::memory();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let _server = ServiceServer::builder(&broker, &service)
        .respond("work", move |n: u64| {
            counted.fetch_add(1, Ordering::SeqCst);
            n
        })
        .start()
        .unwrap();
    let limit = RateLimit::per_second(40).burst(1);
    let limit = limit.shared(&redis(&redis_url()), name).shared_by(1);
    let client = ServiceClient::builder(&broker, "caller")
        .timeout(PATIENCE)
        .resilience(Resilience::none().rate(limit))
        .build()
        .unwrap();
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..10 {
                    assert_eq!(client.call::<u64>(&service, "work", &n).unwrap(), n);
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 40);
    // All but the burst, what is leased ahead, and what one late answer would admit.
    assert!(begin.elapsed() >= 25 * MS * 25, "{:?}", begin.elapsed());
}

#[test]
fn each_key_is_shared_for_itself() {
    let (service, name) = (unique("work"), unique("limit"));
    let redis = redis(&redis_url());
    let serve = || {
        let broker = Broker::memory();
        let limit = RateLimit::every(3_600 * SECOND).burst(2);
        let server = ServiceServer::builder(&broker, &service)
            .respond("work", |n: u64| n)
            .limit_by(
                "work",
                limit.shared(&redis, &*name).shared_by(2),
                |context| context.source_service().to_owned(),
            )
            .start()
            .unwrap();
        (server, broker)
    };
    let servers = [serve(), serve()];
    for caller in ["a", "b"] {
        let clients = servers.iter().map(|(_, broker)| {
            let client = ServiceClient::builder(broker, caller).timeout(PATIENCE);
            client.build().unwrap()
        });
        let clients: Vec<ServiceClient> = clients.collect();
        let calls = clients.iter().cycle().take(10);
        let admitted = calls.filter(|it| it.call::<u64>(&service, "work", &1).is_ok());
        let admitted = admitted.count();
        assert!((1..=3).contains(&admitted), "{caller}: {admitted}");
    }
}

#[test]
fn while_redis_is_down_each_process_admits_its_share() {
    let mut server = Server::redis();
    let (service, name) = (unique("work"), unique("limit"));
    let limit = RateLimit::per_second(200).shared(&redis(server.url()), &*name);
    let (_server, client) = serve(&service, limit.shared_by(4));
    let call = || client.call::<u64>(&service, "work", &1);
    eventually("a call is admitted", || call().is_ok());
    let is_asked = |server: &Server| {
        let _ = call();
        server
            .ctl(&["INFO", "commandstats"])
            .contains("cmdstat_eval:")
    };
    eventually("Redis counts", || is_asked(&server));
    server.kill();
    // Neither shut …
    for _ in 0..20 {
        eventually("a call is admitted", || call().is_ok());
    }
    // … nor open: calls as fast as can be are refused at some time.
    eventually("a call is refused", || (0..20).any(|_| call().is_err()));
    server.start_again();
    eventually("Redis counts again", || is_asked(&server));
    // A Redis that is frozen is as good as none, and no call waits long for it.
    server.pause();
    for _ in 0..20 {
        eventually("a call is admitted", || call().is_ok());
    }
    server.resume();
    server.ctl(&["CONFIG", "RESETSTAT"]);
    eventually("Redis counts once more", || is_asked(&server));
}

#[test]
fn the_share_is_that_of_one_instance_in_the_registry() {
    let mut server = Server::redis();
    let (service, name) = (unique("work"), unique("limit"));
    let registry = registry(server.url(), 60 * SECOND);
    // What one of eleven admits is far from what one alone would.
    let others = (0..10).map(|n| {
        let instance = Instance::new().with_id(format!("other-{n}"));
        registry.register(&service, instance).unwrap()
    });
    let _others: Vec<_> = others.collect();
    let broker = Broker::memory();
    let limit = RateLimit::per_minute(60).burst(1_000);
    let _server = ServiceServer::builder(&broker, &service)
        .respond("work", |n: u64| n)
        .registry(&registry)
        .limit("work", limit.shared(&redis(server.url()), name))
        .start()
        .unwrap();
    let client = client(&broker);
    let call = || client.call::<u64>(&service, "work", &1);
    // The instances are counted after the first answer.
    for _ in 0..30 {
        eventually("a call is admitted", || call().is_ok());
        thread::sleep(MS);
    }
    server.kill();
    // The next one would come after 11 s, and in a process alone after a second.
    let refused = || {
        let error = call().err()?;
        error.retry_after()
    };
    eventually("the share is known", || {
        refused().is_some_and(|after| after > 5 * SECOND)
    });
    // So that the instances can leave.
    server.start_again();
}

#[test]
fn a_limit_shared_by_an_unknown_number_is_refused() {
    let broker = Broker::memory();
    let limit = || RateLimit::per_second(10).shared(&redis(&redis_url()), "name");
    let server = ServiceServer::builder(&broker, "work").respond("work", |n: u64| n);
    let client = ServiceClient::builder(&broker, "caller");
    let subscription = Subscription::listen("a.b", |_: u64| {}).limit(limit());
    let subscriber = coney::EventSubscriber::builder(&broker, "s").subscribe(subscription);
    for error in [
        server.limit("work", limit()).start().unwrap_err(),
        client
            .resilience(Resilience::none().rate(limit()))
            .build()
            .unwrap_err(),
        subscriber.start().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains("shared_by"), "{error}");
    }
}

#[test]
fn the_value_in_redis_has_all_its_digits_and_expires() {
    let redis_server = Server::redis();
    let (service, name) = (unique("work"), unique("limit"));
    let limit = RateLimit::every(60 * SECOND).shared(&redis(redis_server.url()), &*name);
    let (_server, client) = serve(&service, limit.shared_by(1));
    eventually("a call is admitted", || {
        client.call::<u64>(&service, "work", &1).is_ok()
    });
    let key = format!("coney:limit:{name}");
    eventually("Redis counts", || {
        let _ = client.call::<u64>(&service, "work", &1);
        redis_server.ctl(&["EXISTS", &key]) == "1"
    });
    let value = redis_server.ctl(&["GET", &key]);
    assert_eq!(value.len(), 16, "{value}");
    assert!(value.bytes().all(|digit| digit.is_ascii_digit()), "{value}");
    let ttl: i64 = redis_server.ctl(&["PTTL", &key]).parse().unwrap();
    assert!((1..=120_000).contains(&ttl), "{ttl}");
    // A moment far beyond the burst, as after a clock was set back, shuts the limit for the time of
    // its burst only.
    redis_server.ctl(&["SET", &key, "9999999999999999"]);
    eventually("the moment is corrected", || {
        let error = client.call::<u64>(&service, "work", &1).unwrap_err();
        error
            .retry_after()
            .is_some_and(|after| after <= 121 * SECOND)
    });
}
