//! Clocks that are off, by an hour or by seconds: no deadline and no heartbeat depends on them.

use std::thread;
use std::time::Duration;

use coney::transport::{ExchangeKind, Link, LinkSpec, Publication, Topology};
use coney::{Broker, CallOptions, Context, ServiceServer};

use crate::support::peer::recv;
use crate::support::process::Process;
use crate::support::{PATIENCE, amqp_url, client, on_both, rabbitmq, unique};
#[cfg(feature = "redis")]
use crate::support::{
    eventually,
    registry::{ids, registry},
    server::Server,
};

on_both!(
    time_in_the_queue_counts_against_the_deadline,
    a_deadline_is_counted_from_the_arrival,
);

const MS: Duration = Duration::from_millis(1);
const SKEWS: [&str; 4] = ["+3600s", "-3600s", "+8s", "-8s"];

#[test]
fn a_server_whose_clock_is_off_answers() {
    for skew in SKEWS {
        let service = unique("work");
        let _server = Process::start_at(skew, &["serve", &amqp_url(), &service]);
        let client = client(&rabbitmq());
        let options = CallOptions::new().timeout(Duration::from_secs(5));
        for n in 0..5u64 {
            let answer: u64 = client.call_with(&service, "work", &n, &options).unwrap();
            assert_eq!(answer, n, "{skew}");
        }
    }
}

#[cfg(feature = "redis")]
#[test]
fn an_instance_whose_clock_is_off_is_found_and_missed() {
    for skew in SKEWS {
        let redis = Server::redis();
        let here = registry(redis.url(), Duration::from_secs(2));
        let process = Process::start_at(skew, &["register", redis.url(), "1"]);
        eventually("it is found", || ids(&here.lookup("web").unwrap()) == ["1"]);
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            assert_eq!(ids(&here.lookup("web").unwrap()), ["1"], "{skew}");
            thread::sleep(10 * MS);
        }
        drop(process);
        eventually("it is missed", || here.lookup("web").unwrap().is_empty());
    }
}

/// A peer of another library writes its own clock.
#[cfg(feature = "redis")]
#[test]
fn a_peer_lives_while_its_heartbeat_changes() {
    let redis = Server::redis();
    let here = registry(redis.url(), Duration::from_secs(2));
    let beat = |n: u64| {
        let json = format!(
            r#"{{"instance_id":"php","last_heartbeat":{}}}"#,
            1_000_000 + n
        );
        redis.ctl(&["HSET", "service:registry:web", "php", &json]);
    };
    beat(0);
    assert!(
        here.lookup("web").unwrap().is_empty(),
        "by its age it is dead"
    );
    for n in 1..8 {
        beat(n);
        eventually("it beats", || ids(&here.refresh("web").unwrap()) == ["php"]);
        thread::sleep(500 * MS);
    }
    eventually("it does not", || here.lookup("web").unwrap().is_empty());
}

fn time_in_the_queue_counts_against_the_deadline(broker: &Broker) {
    let service = unique("work");
    // The queue is there, and no server.
    drop(left_server(broker, &service));
    let client = client(broker);
    let options = CallOptions::new().timeout(20_000 * MS);
    let pending = client
        .call_async_with::<u64>(&service, "left", &(), &options)
        .unwrap();
    thread::sleep(1_500 * MS); // it waits so long
    let _server = left_server(broker, &service);
    let left = pending.wait().unwrap();
    assert!(left <= 18_500, "{left} ms");
    let now: u64 = client.call_with(&service, "left", &(), &options).unwrap();
    assert!(now > 15_000, "{now} ms");
}

/// Answers how many milliseconds its caller still waits.
fn left_server(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .any_reply_queue(true)
        .respond_with_context("left", |context: &Context<'_>, (): ()| {
            let left = context
                .remaining()
                .map_or(u128::MAX, |left| left.as_millis());
            left as u64
        })
        .start()
        .unwrap()
}

fn a_deadline_is_counted_from_the_arrival(broker: &Broker) {
    let (service, replies) = (unique("work"), unique("replies"));
    let _server = left_server(broker, &service);
    let topology = Topology::new()
        .exchange("service.exchange", ExchangeKind::Direct)
        .queue(&replies);
    let peer = Link::open(broker, LinkSpec::new(topology).consume(&replies, 10)).unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    // Sent by a clock that is off by so much, with twenty seconds to go.
    let left = |off: i64| {
        let body = format!(
            r#"{{"message_id":"m","source_service":"p","target_service":"{service}","action":"left","timestamp":1,"correlation_id":"c","reply_to":"{replies}","headers":{{"timeout_ms":20000,"deadline_ms":{}}},"payload":null}}"#,
            now + off + 20_000
        );
        let key = format!("request.{service}");
        let message = Publication::new("service.exchange", key, body.into_bytes());
        peer.publish(message, PATIENCE).unwrap();
        let reply = recv(&peer);
        let read = coney::message::Reply::decode(&reply.message().body).unwrap();
        let left: u64 = read.data.decode().unwrap();
        reply.ack();
        left
    };
    for hour in [3_600_000, -3_600_000, 7_200_000] {
        assert!(left(hour) > 15_000, "{hour}");
    }
}
