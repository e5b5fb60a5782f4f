//! Settings, limits and permissions of a broker: an operation that they refuse fails with the
//! broker's reason, and nothing else fails.

use std::time::{Duration, Instant};

use coney::transport::{ExchangeKind, Link, LinkSpec, Publication, Topology};
use coney::{
    Broker, CallOptions, ConnectionState, Context, ErrorKind, EventSubscriber, ServiceServer,
};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::dead_letters::{dead_letter, letters_of};
use crate::support::server::Server;
use crate::support::{PATIENCE, client, eventually, unique};

const MS: Duration = Duration::from_millis(1);

fn watched(url: &str) -> (Broker, Receiver<ConnectionState>) {
    let (sent, states) = unbounded();
    let broker = Broker::builder(url)
        .reconnect_delays(20 * MS, 100 * MS)
        .on_state_change(move |state| drop(sent.send(state.clone())))
        .connect()
        .unwrap();
    (broker, states)
}

fn losses(states: &Receiver<ConnectionState>) -> Vec<String> {
    let lost = states.try_iter().filter_map(|state| match state {
        ConnectionState::Lost(cause) => Some(cause),
        _ => None,
    });
    lost.collect()
}

#[test]
fn headers_of_retries_fit_small_frames() {
    let rabbit = Server::rabbitmq_with(&["frame_max = 8192"]);
    let (broker, states) = watched(rabbit.url());
    let service = unique("work");
    let _server = ServiceServer::builder(&broker, &service)
        .handler("work", |(): ()| Err::<(), _>("no luck ".repeat(1_000)))
        .retry_delays([20 * MS; 3])
        .start()
        .unwrap();
    let spec = Topology::new().exchange("service.exchange", ExchangeKind::Direct);
    let link = Link::open(&broker, LinkSpec::new(spec)).unwrap();
    let command = coney::message::ServiceMessage::new("peer", service.as_str(), "work", ());
    let publish = |bytes: usize| {
        let key = format!("request.{service}");
        let mut message = Publication::new("service.exchange", key, command.encode().unwrap());
        let header = "h".repeat(bytes);
        message.properties.headers.insert("big", header.as_str());
        link.publish(message, PATIENCE)
    };
    publish(1_000).unwrap();
    publish(5_000).unwrap();
    let error = publish(9_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error}");
    let broker = Broker::connect(rabbit.url()).unwrap();
    eventually("both have failed for good", || {
        letters_of(&broker, &service).len() == 2
    });
    for letter in letters_of(&broker, &service) {
        assert_eq!(
            (letter.reason(), letter.attempts()),
            ("retries_exhausted", 4)
        );
        assert!(letter.last_error().unwrap().starts_with("no luck"));
        let has_header = letter.properties().headers.get("big").is_some();
        assert_eq!(
            has_header,
            letter.left_out().is_none(),
            "what is left out is said"
        );
    }
    assert_eq!(losses(&states), [] as [String; 0]);
}

#[test]
fn a_channel_limit_stops_only_dead_letters() {
    let rabbit = Server::rabbitmq();
    let service = unique("work");
    // The service has its channels before the user is limited.
    let all = Broker::connect(rabbit.url()).unwrap();
    let serve = |broker: &Broker| {
        ServiceServer::builder(broker, &service)
            .respond("work", |n: u64| n)
            .start()
            .unwrap()
    };
    drop(serve(&all));
    let url = rabbit.add_user("narrow");
    rabbit.ctl(&["set_user_limits", "narrow", r#"{"max-channels": 1}"#]);
    let (broker, states) = watched(&url);
    let _server = serve(&broker);
    let caller = client(&all);
    assert_eq!(caller.call::<u64>(&service, "work", &1).unwrap(), 1);
    let begin = losses(&states).len();
    assert!(begin <= 2, "the limit is learnt once");
    // A dead letter needs another channel, and does not get it: nothing else is affected.
    let unknown = CallOptions::new().timeout(300 * MS);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let _ = caller.call_with::<u64>(&service, "unknown", &1, &unknown);
        assert_eq!(caller.call::<u64>(&service, "work", &1).unwrap(), 1);
    }
    let lost = losses(&states);
    assert!(lost.len() <= 1, "{lost:?}");
    let error = client_error(&broker);
    assert!(error.contains("maximum allowed user limit"), "{error}");
}

/// Returns the error of a client for which there is no channel.
fn client_error(broker: &Broker) -> String {
    let error = coney::ServiceClient::new(broker, "narrow").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker, "{error}");
    error.to_string()
}

#[test]
fn a_refused_permission_is_the_operations_error() {
    let rabbit = Server::rabbitmq();
    let service = unique("work");
    let all = Broker::connect(rabbit.url()).unwrap();
    let server = ServiceServer::builder(&all, &service)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    let url = rabbit.add_user("clerk");
    // It may not write to the dead letters' exchange, nor to events.
    let writes = format!("^(amq\\.default|service\\.exchange|amq\\.gen.*|{service}.*)$");
    rabbit.ctl(&["set_permissions", "clerk", ".*", &writes, ".*"]);
    let (broker, states) = watched(&url);
    let caller = client(&broker);
    let publisher = coney::EventPublisher::new(&broker, "clerk").unwrap();
    for _ in 0..3 {
        let error = publisher.publish("order.created", &1).unwrap_err();
        assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Broker, "{error}");
        assert_eq!(caller.call::<u64>(&service, "work", &1).unwrap(), 1);
    }
    assert_eq!(losses(&states), [] as [String; 0]);
    drop(server);
}

/// Calls leave over the channel that consumes the replies: the broker's refusal closes it, and the
/// connection is made anew.
#[test]
fn a_client_that_may_not_call_gets_the_reason() {
    let rabbit = Server::rabbitmq();
    let url = rabbit.add_user("clerk");
    rabbit.ctl(&["set_permissions", "clerk", ".*", "^amq\\..*$", ".*"]);
    let (broker, states) = watched(&url);
    let error = client(&broker).call::<u64>("work", "work", &1).unwrap_err();
    assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    let mut lost = 0;
    eventually("it is connected again", || {
        lost += losses(&states).len();
        lost == 1 && broker.is_connected()
    });
}

#[test]
fn a_limit_on_queues_is_named_in_the_error() {
    let rabbit = Server::rabbitmq();
    rabbit.ctl(&["set_vhost_limits", "-p", "/", r#"{"max-queues": 0}"#]);
    let broker = Broker::connect(rabbit.url()).unwrap();
    let spec = LinkSpec::new(Topology::new().queue("one"));
    let error = Link::open(&broker, spec).unwrap_err();
    assert!(error.to_string().contains("queue limit"), "{error}");
    assert!(!error.to_string().contains("delete it first"), "{error}");
    let url = rabbit.add_user("once");
    rabbit.ctl(&["set_user_limits", "once", r#"{"max-connections": 0}"#]);
    let error = Broker::connect(&url).unwrap_err();
    assert!(error.to_string().contains("connection limit"), "{error}");
}

#[test]
fn full_dead_letters_hold_nothing_up() {
    let rabbit = Server::rabbitmq();
    let (broker, states) = watched(rabbit.url());
    let service = unique("work");
    let server = ServiceServer::builder(&broker, &service)
        .respond_with_context("work", |_: &Context<'_>, n: u64| n)
        .prefetch(3)
        .retry_delays([300 * MS])
        .start()
        .unwrap();
    let caller = client(&Broker::connect(rabbit.url()).unwrap());
    let limit = r#"{"max-length": 0, "overflow": "reject-publish"}"#;
    rabbit.ctl(&["set_policy", "full", "^dead\\.letter$", limit]);
    eventually("the policy holds", || {
        // More than it fetches ahead, none of which can be handled.
        for n in 0..5 {
            let _ = caller.call::<u64>(&service, "unknown", &n);
        }
        server.state().dead_letters_refused.is_some()
    });
    for n in 0..20 {
        let error = caller.call::<u64>(&service, "unknown", &n).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownAction, "{error}");
        assert_eq!(caller.call::<u64>(&service, "work", &n).unwrap(), n);
    }
    let state = server.state();
    assert!(
        !state.is_healthy() && state.unhealthy.is_none(),
        "{state:?}"
    );
    rabbit.ctl(&["clear_policy", "full"]);
    let letter = dead_letter(&broker, &service);
    assert_eq!(
        (letter.reason(), letter.action()),
        ("no_handler", Some("unknown"))
    );
    eventually("all of them come", || {
        letters_of(&broker, &service).len() >= 19
    });
    eventually("and that shows", || server.state().is_healthy());
    assert_eq!(losses(&states), [] as [String; 0]);
}

/// A consumer that the broker refuses after a reconnect is a fault until it is there again, and
/// so is the reply queue of a client.
#[test]
fn a_refused_reopening_shows() {
    let rabbit = Server::rabbitmq();
    let url = rabbit.add_user("clerk");
    let (broker, _states) = watched(&url);
    let service = unique("work");
    let server = ServiceServer::builder(&broker, &service)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    let subscriber = EventSubscriber::builder(&broker, &service)
        .listen("work.*", |_: u64| ())
        .start()
        .unwrap();
    let caller = client(&broker);
    assert_eq!(caller.call::<u64>(&service, "work", &1).unwrap(), 1);
    assert!(server.state().is_healthy() && subscriber.state().is_healthy());
    rabbit.ctl(&["set_permissions", "clerk", ".*", ".*", "^nothing$"]);
    rabbit.ctl(&["close_all_connections", "for the tests"]);
    let is_refused =
        |reason: Option<String>| reason.is_some_and(|it| it.contains("ACCESS_REFUSED"));
    eventually("the server shows it", || is_refused(server.state().refused));
    eventually("the subscriber shows it", || {
        is_refused(subscriber.state().refused)
    });
    assert!(!server.state().is_healthy() && !subscriber.state().is_healthy());
    let error = caller.call::<u64>(&service, "work", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker, "{error}");
    assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");
    rabbit.ctl(&["set_permissions", "clerk", ".*", ".*", ".*"]);
    eventually("both consume again", || {
        server.state().is_healthy() && subscriber.state().is_healthy()
    });
    eventually("calls are answered again", || {
        caller.call::<u64>(&service, "work", &1).is_ok()
    });
}
