//! The administration connection: queues are counted and read beside the program's connection,
//! which does not notice.

use std::thread;
use std::time::Duration;

use coney::transport::{Link, LinkSpec, Publication, Topology};
use coney::{Broker, ConnectionState, DeadLetters, ErrorKind, ServiceServer};
use crossbeam_channel::unbounded;

use crate::support::outage::{rabbit, watched};
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::Server;
use crate::support::{PATIENCE, amqp_url, client, eventually, on_both, own_amqp_url, unique};

on_both!(
    messages_and_consumers_are_counted,
    queries_of_missing_queues_cost_only_themselves,
    messages_that_are_got_can_be_settled_and_go_back_with_the_link,
    a_closed_broker_answers_no_query,
);

const MS: Duration = Duration::from_millis(1);

fn messages_and_consumers_are_counted(broker: &Broker) {
    let queue = unique("q");
    let depth = || {
        let depth = broker.queue_depth(&queue).unwrap();
        (depth.messages, depth.consumers)
    };
    let missing = broker.queue_depth(&queue).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NoRoute, "{missing}");
    assert!(missing.to_string().contains(&queue), "{missing}");
    let link = LinkSpec::new(Topology::new().queue(&queue));
    let link = Link::open(broker, link).unwrap();
    assert_eq!(depth(), (0, 0));
    for n in 0..3 {
        let message = Publication::new("", queue.as_str(), vec![n]);
        link.publish(message, PATIENCE).unwrap();
    }
    eventually("all are counted", || depth() == (3, 0));
    let consuming = LinkSpec::default().consume(&queue, 2);
    let consuming = Link::open(broker, consuming).unwrap();
    let first = consuming.recv_timeout(PATIENCE).unwrap();
    eventually("fetched ones are not counted", || depth() == (1, 1));
    drop((first, consuming));
    eventually("all are back", || depth() == (3, 0));
}

fn queries_of_missing_queues_cost_only_themselves(broker: &Broker) {
    let (service, queue) = (unique("math"), unique("q"));
    let server = ServiceServer::builder(broker, &service)
        .respond("double", |n: u64| 2 * n)
        .start()
        .unwrap();
    let client = client(broker);
    let topology = LinkSpec::new(Topology::new().queue(&queue));
    let link = Link::open(broker, topology).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let error = broker.queue_depth(&unique("missing")).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
                    let error = link.get(&unique("missing"), PATIENCE).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Broker, "{error}");
                    assert!(broker.queue_depth(&queue).is_ok());
                }
            });
        }
        for n in 0..100 {
            assert_eq!(client.call::<u64>(&service, "double", &n).unwrap(), 2 * n);
        }
    });
    assert!(server.state().is_healthy());
}

fn messages_that_are_got_can_be_settled_and_go_back_with_the_link(broker: &Broker) {
    let queue = unique("q");
    let spec = LinkSpec::new(Topology::new().queue(&queue));
    let link = Link::open(broker, spec).unwrap();
    for n in 0..4 {
        let message = Publication::new("", queue.as_str(), vec![n]);
        link.publish(message, PATIENCE).unwrap();
    }
    let get = |link: &Link| {
        let mut got = None;
        eventually("it is there", || {
            got = link.get(&queue, PATIENCE).unwrap();
            got.is_some()
        });
        let delivery = got.unwrap();
        (delivery.message().body[0], delivery)
    };
    let other = Link::open(broker, LinkSpec::default()).unwrap();
    let (first, (second, held)) = (get(&link), get(&other));
    assert_eq!((first.0, second), (0, 1));
    first.1.ack();
    // A refusal requeues what this link holds, and settling that has no effect any more.
    let refused = other.get(&unique("missing"), PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Broker);
    let depth = || broker.queue_depth(&queue).unwrap().messages;
    if broker.address() == "memory" {
        held.reject(true);
    } else {
        eventually("it is back", || depth() == 3);
        held.ack();
    }
    let (number, delivery) = get(&other);
    assert_eq!((number, delivery.is_redelivered()), (1, true));
    delivery.ack();
    let kept = get(&other);
    drop(other);
    eventually("the link's messages are back", || depth() == 2);
    drop(kept);
    let (number, delivery) = get(&link);
    assert_eq!((number, delivery.is_redelivered()), (2, true));
    delivery.ack();
}

fn a_closed_broker_answers_no_query(broker: &Broker) {
    let queue = unique("q");
    let spec = LinkSpec::new(Topology::new().queue(&queue));
    let link = Link::open(broker, spec).unwrap();
    assert!(broker.queue_depth(&queue).is_ok());
    let _dead = DeadLetters::open(broker).unwrap();
    broker.close(PATIENCE).unwrap();
    let error = broker.queue_depth(&queue).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    let error = link.get(&queue, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
}

/// Returns the properties of those of RabbitMQ's connections whose names contain `name`.
fn connections(rabbit: &Server, name: &str) -> Vec<String> {
    let listed = rabbit.ctl(&["-q", "list_connections", "client_properties"]);
    let listed = listed.lines().map(str::to_owned);
    listed.filter(|it| it.contains(name)).collect()
}

#[test]
fn the_connection_opens_with_the_first_query_and_ends_when_it_is_idle() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (name, queue) = (unique("lazy"), unique("q"));
    let broker = Broker::builder(rabbit.url())
        .connection_name(&name)
        .admin_idle_timeout(500 * MS)
        .connect()
        .unwrap();
    let spec = LinkSpec::new(Topology::new().queue(&queue));
    let link = Link::open(&broker, spec).unwrap();
    link.publish(Publication::new("", queue.as_str(), vec![1]), PATIENCE)
        .unwrap();
    assert_eq!(connections(rabbit, &name).len(), 1, "no query yet");

    // A message that is not settled keeps the connection open, for twice the idle time: no event
    // says that nothing happens.
    let mut held = None;
    eventually("it is there", || {
        held = link.get(&queue, PATIENCE).unwrap();
        held.is_some()
    });
    thread::sleep(1_000 * MS);
    let open = connections(rabbit, &name);
    assert_eq!(open.len(), 2, "{open:?}");
    assert!(open.iter().any(|it| it.contains("(administration)")));
    held.unwrap().reject(true);
    let ended = || connections(rabbit, &name).len() == 1;
    eventually("it ends when idle", ended);

    // The next query opens another; links from before the end go on.
    let got = link.get(&queue, PATIENCE).unwrap().unwrap();
    assert!(got.is_redelivered());
    got.ack();
    eventually("it ends again", ended);
    assert_eq!(broker.queue_depth(&queue).unwrap().messages, 0);
    DeadLetters::open(&broker).unwrap().list(1).unwrap();
    drop((link, broker));
    eventually("all end with the broker", || {
        connections(rabbit, &name).is_empty()
    });
}

#[test]
fn the_programs_connection_does_not_notice_queries() {
    let url = own_amqp_url();
    let (broker, states) = watched(&url);
    let queue = unique("q");
    let _link = Link::open(&broker, LinkSpec::new(Topology::new().queue(&queue))).unwrap();
    let exclusive = Link::open(&broker, LinkSpec::default().reply_queue()).unwrap();
    let seen: Vec<ConnectionState> = states.try_iter().collect();
    assert!(!seen.iter().any(|it| matches!(it, ConnectionState::Lost(_))));
    for _ in 0..20 {
        broker.queue_depth(&unique("missing")).unwrap_err();
        assert!(broker.queue_depth(&queue).is_ok());
        let error = exclusive.get(&unique("missing"), PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Broker);
    }
    let changes: Vec<ConnectionState> = states.try_iter().collect();
    let calm = |it: &ConnectionState| *it == ConnectionState::Connected;
    assert!(changes.iter().all(calm), "{changes:?}");
}

/// A query ends at its own deadline, whatever the others wait for, and is repeated on another
/// connection if its own has been lost.
#[test]
fn a_lost_or_silent_connection_holds_no_query_beyond_its_deadline() {
    let proxy = Proxy::start(&amqp_url());
    let broker = Broker::builder(&proxy.url)
        .operation_timeout(PATIENCE)
        .heartbeat(PATIENCE)
        .connect()
        .unwrap();
    let queue = unique("q");
    let link = Link::open(&broker, LinkSpec::new(Topology::new().queue(&queue))).unwrap();
    assert!(link.get(&queue, PATIENCE).unwrap().is_none());
    proxy.back(Mode::Swallow);
    let (ended, ends) = unbounded();
    thread::scope(|scope| {
        for timeout in [300 * MS, 100 * MS, 200 * MS] {
            let (link, queue, ended) = (&link, &queue, ended.clone());
            scope.spawn(move || {
                let error = link.get(queue, timeout).unwrap_err();
                ended.send(error.kind()).unwrap();
            });
        }
        for _ in 0..3 {
            assert_eq!(ends.recv_timeout(PATIENCE), Ok(ErrorKind::TimedOut));
        }
    });
    proxy.back(Mode::Pass);
    proxy.cut();
    eventually("queries go over another connection", || {
        broker.queue_depth(&queue).is_ok()
    });
    assert!(link.get(&queue, PATIENCE).unwrap().is_none());
}

#[test]
fn a_connection_that_cannot_be_made_is_an_error_with_its_cause() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let user = unique("once");
    let url = rabbit.add_user(&user);
    rabbit.ctl(&["set_user_limits", &user, r#"{"max-connections": 1}"#]);
    let broker = Broker::connect(&url).unwrap();
    let error = broker.queue_depth("any").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(error.to_string().contains("administration"), "{error}");
    assert!(broker.is_connected());
    rabbit.ctl(&["clear_user_limits", &user, "all"]);
    let error = broker.queue_depth("any").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
}
