//! Redelivered messages: only deliveries that had begun count, finished ones do not run again,
//! and copies do not multiply.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coney::message::ServiceMessage;
use coney::transport::{Link, LinkSpec, Publication, Topology};
use coney::{
    Broker, Context, EventPublisher, EventSubscriber, HandlerError, ServiceServer, Subscription,
};
use crossbeam_channel::unbounded;
use parking_lot::Mutex;

use crate::support::dead_letters::{dead_letter, letters_of, no_dead_letter};
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::{
    PATIENCE, amqp_url, client, eventually, on_both, own_amqp_url, rabbitmq, steady, unique,
};

on_both!(
    work_handed_back_gracefully_is_new,
    ordered_events_survive_restarts
);

const MS: Duration = Duration::from_millis(1);

/// Restarts a busy worker nine times, with more messages fetched than it can begin.
fn work_handed_back_gracefully_is_new(broker: &Broker) {
    let service = unique("work");
    let (ran, runs) = unbounded();
    let start = |nap: Duration| {
        let ran = ran.clone();
        ServiceServer::builder(broker, &service)
            .workers(1)
            .respond_with_context("work", move |context: &Context<'_>, n: u64| {
                ran.send((n, context.is_redelivered())).unwrap();
                thread::sleep(nap);
            })
            .start()
            .unwrap()
    };
    let client = client(broker);
    let first = start(50 * MS);
    for n in 0..12u64 {
        client.send(&service, "work", &n).unwrap();
    }
    first.shutdown(PATIENCE).unwrap();
    for _ in 0..8 {
        let (server, before) = (start(20 * MS), runs.len());
        eventually("it has begun", || runs.len() > before || before >= 12);
        server.shutdown(PATIENCE).unwrap();
    }
    let last = start(Duration::ZERO);
    last.drain(PATIENCE).unwrap();
    let mut all: Vec<(u64, bool)> = runs.try_iter().collect();
    all.sort_unstable();
    let once: Vec<_> = (0..12).map(|n| (n, false)).collect();
    assert_eq!(all, once, "each once, and new");
    no_dead_letter(broker, &service);
}

fn ordered_events_survive_restarts(broker: &Broker) {
    let (name, service) = (unique("kept").replace('-', "."), unique("one"));
    let (ran, runs) = unbounded();
    let start = || {
        let ran = ran.clone();
        let handler = move |n: u64| {
            ran.send(n).unwrap();
            thread::sleep(10 * MS);
            Ok::<_, HandlerError>(())
        };
        EventSubscriber::builder(broker, &service)
            .redelivery_limit(2)
            .subscribe(Subscription::to(&name, handler).ordered_by(|_: &u64| "one"))
            .start()
            .unwrap()
    };
    let publisher = EventPublisher::new(broker, "tests").unwrap();
    let first = start();
    for n in 0..40u64 {
        publisher.publish(&name, &n).unwrap();
    }
    first.shutdown(PATIENCE).unwrap();
    for _ in 0..7 {
        let (subscriber, before) = (start(), runs.len());
        eventually("it has begun", || runs.len() > before || before >= 40);
        subscriber.shutdown(PATIENCE).unwrap();
    }
    let last = start();
    let mut all = Vec::new();
    while all.iter().max() != Some(&39) {
        all.push(runs.recv_timeout(PATIENCE).expect("the rest comes"));
    }
    last.shutdown(PATIENCE).unwrap();
    assert!(all.is_sorted(), "{all:?}");
    all.dedup();
    assert_eq!(all, (0..40).collect::<Vec<_>>());
    assert!(letters_of(broker, &service).is_empty());
}

/// Other messages are fetched again and again beside one that kills its workers.
#[test]
fn the_neighbours_of_poison_live() {
    let service = unique("work");
    let url = own_amqp_url();
    let broker = Broker::connect(&url).unwrap();
    let client = client(&broker);
    let first = Process::start(&["serve", &url, &service]);
    // Of the two running requests and those that wait, one kills its workers.
    for n in 0..8u64 {
        client.send(&service, "work", &n).unwrap();
    }
    client.send(&service, "abort", &()).unwrap();
    for n in 8..12u64 {
        client.send(&service, "work", &n).unwrap();
    }
    eventually("the first has died", || {
        let mut first = vec![&first];
        first.retain(|it| it.has_ended());
        !first.is_empty()
    });
    let mut workers: Vec<Process> = Vec::new();
    let mut letters = Vec::new();
    eventually("the poison is found", || {
        workers.retain_mut(Process::is_alive);
        if workers.is_empty() {
            workers.push(Process::start(&["serve", &url, &service]));
        }
        letters = letters_of(&broker, &service);
        !letters.is_empty()
    });
    let worker = &workers[0];
    client.send(&service, "work", &99).unwrap();
    worker.wait_for("work 99");
    let letters = letters_of(&broker, &service);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0].action(), Some("abort"));
    assert_eq!(letters[0].reason(), "delivery_limit");
    dead_letter(&broker, &service);
}

/// The connection is cut again and again, for 6 s or for `CUT_SECONDS`.
#[test]
fn copies_do_not_multiply() {
    let url = own_amqp_url();
    let proxy = Proxy::start(&url);
    let (broker, direct) = (steady(&proxy.url), Broker::connect(&url).unwrap());
    let service = unique("work");
    let ran: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let count = Arc::clone(&ran);
    let server = ServiceServer::builder(&broker, &service)
        .workers(2)
        .retry_delays([50 * MS; 5])
        .handler_with_context("work", move |context: &Context<'_>, n: u64| {
            *count.lock().entry(n).or_default() += 1;
            thread::sleep(100 * MS);
            match n.is_multiple_of(4) && context.attempt() < 3 {
                true => Err(HandlerError::new("not yet")),
                false => Ok(()),
            }
        })
        .start()
        .unwrap();
    let sender = client(&direct);
    let seconds = std::env::var("CUT_SECONDS").map_or(6, |text| text.parse().unwrap());
    let start = Instant::now();
    let (mut cuts, mut sent) = (0, 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        sender.send(&service, "work", &sent).unwrap();
        sent += 1;
        thread::sleep(250 * MS);
        proxy.cut();
        cuts += 1;
    }
    // The rest is handled without cuts.
    server.drain(4 * PATIENCE).unwrap();
    assert_eq!(ran.lock().len() as u64, sent);
    // A quarter of them run three times.
    let needed = sent as u32 + 2 * sent.div_ceil(4) as u32;
    let extra = ran.lock().values().sum::<u32>() - needed;
    println!("{sent} commands, {cuts} cuts, {extra} executions more than needed");
    assert!(extra <= cuts, "{extra} for {cuts} cuts");
    no_dead_letter(&direct, &service);
}

/// The broker requeues a message whose handler runs for too long, and delivers it again.
#[test]
fn a_handler_longer_than_the_brokers_timeout_runs_once() {
    let rabbit = Server::rabbitmq();
    rabbit.ctl(&[
        "eval",
        "application:set_env(rabbit, consumer_timeout, 1000), \
         application:set_env(rabbit, channel_tick_interval, 200).",
    ]);
    let broker = steady(rabbit.url());
    let service = unique("work");
    let (ran, runs) = unbounded();
    let server = ServiceServer::builder(&broker, &service)
        .consumer_timeout(Duration::from_secs(1))
        .respond("work", move |n: u64| {
            ran.send(n).unwrap();
            thread::sleep(4_000 * MS);
            n
        })
        .start()
        .unwrap();
    let other = Broker::connect(rabbit.url()).unwrap();
    let answer: u64 = client(&other).call(&service, "work", &7).unwrap();
    assert_eq!(answer, 7);
    server.drain(PATIENCE).unwrap();
    assert_eq!(runs.try_iter().collect::<Vec<_>>(), [7]);
    no_dead_letter(&other, &service);
}

/// The copies have none of the message's headers.
#[test]
fn a_message_with_too_many_headers_comes_back_and_runs() {
    let proxy = Proxy::start(&amqp_url());
    let broker = steady(&proxy.url);
    let service = unique("work");
    let (began, runs) = unbounded();
    let (release, released) = unbounded::<()>();
    let _server = ServiceServer::builder(&broker, &service)
        .workers(1)
        .respond("work", move |n: u64| {
            began.send(n).unwrap();
            if n == 0 {
                let _ = released.recv_timeout(PATIENCE);
            }
        })
        .start()
        .unwrap();
    let link = Link::open(&rabbitmq(), LinkSpec::new(Topology::new())).unwrap();
    for n in 0..3u64 {
        let message = ServiceMessage::new("peer", service.as_str(), "work", n);
        let key = format!("request.{service}");
        let mut publication = Publication::new("service.exchange", key, message.encode().unwrap());
        let properties = &mut publication.properties;
        properties.message_id = Some(message.message_id.to_string());
        properties.persistent = true;
        for header in 0..250i64 {
            let headers = &mut publication.properties.headers;
            headers.insert(format!("h{header}"), header);
        }
        link.publish(publication, PATIENCE).unwrap();
    }
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(0));
    proxy.cut();
    drop(release);
    let mut left: Vec<u64> = (0..2)
        .map(|_| runs.recv_timeout(PATIENCE).unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left, [1, 2]);
}
