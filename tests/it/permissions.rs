//! The permissions that ARCHITECTURE.md lists are enough: each part runs as a user who has
//! these and no others.

use std::time::Duration;

use coney::redis::Redis;
use coney::resilience::RateLimit;
use coney::{
    Broker, Context, DeadLetters, EventPublisher, EventSubscriber, HandlerError, Instance,
    SendOptions, ServiceClient, ServiceServer, Subscription,
};
use crossbeam_channel::unbounded;

use crate::support::registry::{ids, registry};
use crate::support::server::Server;
use crate::support::{PATIENCE, eventually, unique};

#[test]
fn each_part_needs_no_more_in_rabbitmq() {
    let rabbit = Server::rabbitmq();
    let service = unique("work");
    let own = format!("service\\.{service}\\..*");
    let event = format!("event\\.{service}\\..*");
    let login = |part: &str, configure: &str, write: &str, read: &str| {
        let url = rabbit.add_user(part);
        let [configure, write, read] = [configure, write, read].map(|names| format!("^({names})$"));
        rabbit.ctl(&["set_permissions", part, &configure, &write, &read]);
        Broker::connect(&url).unwrap()
    };

    let broker = login(
        "server",
        &format!(r"service\.exchange|dead\.exchange|dead\.letter|coney\.delay\..*|{own}"),
        &format!(r"amq\.default|dead\.exchange|dead\.letter|coney\.delay\..*|{own}"),
        &format!(r"service\.exchange|dead\.exchange|coney\.delay\..*|{own}"),
    );
    let server = ServiceServer::builder(&broker, &service)
        .retry_delays([10, 20].map(Duration::from_millis))
        .respond("double", |n: u64| 2 * n)
        .handler_with_context("fail", |context: &Context<'_>, _: u64| {
            let error = HandlerError::new("no luck");
            Err::<(), _>(match context.attempt() {
                1 => error.retry_after(Duration::from_millis(150)),
                _ => error,
            })
        })
        .start()
        .unwrap();

    let broker = login(
        "client",
        r"service\.exchange|amq\.gen-.*",
        r"service\.exchange",
        r"amq\.gen-.*",
    );
    let client = ServiceClient::builder(&broker, "client").max_backlog(&service, 9);
    let client = client.build().unwrap();
    assert_eq!(client.call::<u64>(&service, "double", &2).unwrap(), 4);
    client.send(&service, "fail", &1).unwrap();
    // Counting any queue needs no permission.
    assert!(broker.queue_depth("dead.letter").is_ok());

    let broker = login(
        "looker",
        r"dead\.exchange|dead\.letter|coney\.dead-letters\.turn",
        r"amq\.default|dead\.letter",
        r"dead\.exchange|dead\.letter",
    );
    let dead = DeadLetters::open(&broker).unwrap();
    eventually("it is a dead letter", || dead.list(10).unwrap().len() == 1);
    assert_eq!(dead.replay(|_| true, 100).unwrap().sent, 1);
    eventually("it is one again", || dead.list(10).unwrap().len() == 1);
    assert_eq!(dead.purge(|_| true).unwrap(), 1);

    let broker = login(
        "delayer",
        r"service\.exchange|amq\.gen-.*|dead\.exchange|dead\.letter|coney\.delay\..*",
        &format!(r"dead\.exchange|dead\.letter|coney\.delay\..*|service\.{service}\.request"),
        r"amq\.gen-.*|dead\.exchange|coney\.delay\..*",
    );
    let later = ServiceClient::new(&broker, "delayer").unwrap();
    let options = SendOptions::new().after(Duration::from_millis(300));
    later.send_with(&service, "fail", &1, &options).unwrap();
    eventually("it is a dead letter", || dead.list(10).unwrap().len() == 1);
    let failure = dead.list(10).unwrap().remove(0);
    assert_eq!(
        (failure.reason(), failure.attempts()),
        ("retries_exhausted", 3)
    );
    assert_eq!(dead.purge(|_| true).unwrap(), 1);

    let broker = login(
        "subscriber",
        &format!(r"event\.exchange|dead\.exchange|dead\.letter|coney\.delay\..*|{event}"),
        &format!(r"amq\.default|dead\.exchange|dead\.letter|coney\.delay\..*|{event}"),
        &format!(r"event\.exchange|dead\.exchange|coney\.delay\..*|{event}"),
    );
    let (handled, events) = unbounded();
    let failing = handled.clone();
    let subscriber = EventSubscriber::builder(&broker, &service)
        .retry_delays([Duration::from_millis(10)])
        .subscribe(Subscription::to("permitted.*", move |n: u64| {
            failing.send(n).unwrap();
            Err::<(), _>("no luck")
        }))
        .subscribe(
            Subscription::listen("permitted.*", move |n: u64| {
                handled.send(n).unwrap();
            })
            .named("ordered")
            .ordered_by(|n: &u64| *n),
        )
        .start()
        .unwrap();
    let broker = login("publisher", r"event\.exchange", r"event\.exchange", "");
    let publisher = EventPublisher::new(&broker, "publisher").unwrap();
    publisher.publish("permitted.once", &1).unwrap();
    for _ in 0..3 {
        events.recv_timeout(PATIENCE).unwrap();
    }
    eventually("the event is a dead letter", || {
        dead.list(10).unwrap().len() == 1
    });
    subscriber.drain(PATIENCE).unwrap();
    server.drain(PATIENCE).unwrap();
}

#[test]
fn each_part_needs_no_more_in_redis() {
    let redis = Server::redis();
    let login = |part: &str, rules: &str| {
        let mut command = vec!["ACL", "SETUSER", part, "on", ">pw", "resetkeys", "-@all"];
        command.extend(rules.split(' '));
        redis.ctl(&command);
        redis
            .url()
            .replace("redis://", &format!("redis://{part}:pw@"))
    };
    let url = login(
        "registry",
        "~service:registry:* ~coney:* +ping +eval +time +get +mget +set +setnx +del +exists \
         +pexpire +hget +hset +hdel +hgetall +scan",
    );
    let here = registry(&url, Duration::from_secs(2));
    let one = here.register("web", Instance::new().with_id("1")).unwrap();
    eventually("it is found", || {
        ids(&here.refresh("web").unwrap()) == ["1"]
    });
    assert_eq!(here.services().unwrap(), ["web"]);
    one.deregister(PATIENCE).unwrap();
    eventually("it has left", || here.refresh("web").unwrap().is_empty());

    let url = login(
        "replies",
        "~coney:reply:* +ping +eval +get +set +del +pexpire",
    );
    let store = Redis::new(&url).unwrap().reply_store();
    let broker = Broker::memory();
    let _server = ServiceServer::builder(&broker, "work")
        .deduplicate(store, PATIENCE)
        .respond("double", |n: u64| 2 * n)
        .start()
        .unwrap();
    let client = ServiceClient::new(&broker, "client").unwrap();
    assert_eq!(client.call::<u64>("work", "double", &2).unwrap(), 4);

    let url = login("limits", "~coney:limit:* +ping +eval +time +get +set");
    let limit = RateLimit::every(PATIENCE).burst(1_000);
    let limit = limit.shared(&Redis::new(&url).unwrap(), "permitted");
    let _limited = ServiceServer::builder(&broker, "limited")
        .respond("double", |n: u64| 2 * n)
        .limit("double", limit.shared_by(1))
        .start()
        .unwrap();
    eventually("Redis counts the calls", || {
        let _ = client.call::<u64>("limited", "double", &2);
        redis.ctl(&["EXISTS", "coney:limit:permitted"]) == "1"
    });
}
