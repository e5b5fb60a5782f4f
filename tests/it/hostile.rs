//! Hostile messages from peers: none of them may have an effect.

use std::thread;

use coney::message::{Reply, ServiceMessage};
use coney::transport::{ExchangeKind, HeaderValue, Link, LinkSpec, Publication, Topology};
use coney::{Broker, ServiceServer};

use crate::support::dead_letters::dead_letter;
use crate::support::raw_amqp::{RawPublisher, long, short};
use crate::support::{self, PATIENCE, client, eventually, on_both, unique};

on_both!(
    undecodable_requests_are_kept_and_answered,
    an_unknown_action_is_kept_and_answered,
    replies_never_go_into_a_services_queue,
    ids_that_fit_no_frame_are_refused,
    payloads_of_any_depth_are_answered,
    a_flood_of_replies_holds_nothing_up,
);

fn echo_server(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .any_reply_queue(true)
        .respond("echo", |value: serde_json::Value| value)
        .start()
        .unwrap()
}

/// Asserts that the service is still alive and serves.
fn serves(broker: &Broker, service: &str) {
    let reply: u64 = client(broker).call(service, "echo", &5).unwrap();
    assert_eq!(reply, 5);
}

struct Peer {
    link: Link,
    replies: String,
}

impl Peer {
    fn new(broker: &Broker) -> Self {
        let replies = unique("replies");
        let topology = Topology::new()
            .exchange("service.exchange", ExchangeKind::Direct)
            .queue(&replies);
        let spec = LinkSpec::new(topology).consume(&replies, 100);
        let link = Link::open(broker, spec).unwrap();
        Self { link, replies }
    }

    fn send(&self, service: &str, body: Vec<u8>, reply_to: &str) {
        let key = format!("request.{service}");
        let mut publication = Publication::new("service.exchange", key, body);
        let properties = &mut publication.properties;
        properties.message_id = Some("m-1".to_owned());
        properties.correlation_id = Some("c-1".to_owned());
        properties.reply_to = Some(reply_to.to_owned());
        self.link.publish(publication, PATIENCE).unwrap();
    }

    /// Returns the error and its code.
    fn refusal(&self) -> (String, String) {
        let delivery = self.link.recv_timeout(PATIENCE).expect("an answer");
        let message = delivery.message();
        assert_eq!(message.properties.correlation_id.as_deref(), Some("c-1"));
        let reply = Reply::decode(&message.body).unwrap();
        assert!(!reply.success);
        let code = reply.error_code.as_deref().unwrap_or_default().to_owned();
        let error = reply.error.clone().into_owned();
        drop(reply);
        delivery.ack();
        (error, code)
    }
}

fn undecodable_requests_are_kept_and_answered(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let peer = Peer::new(broker);
    peer.send(&service, b"{\"message_id\":".to_vec(), &peer.replies);
    assert_eq!(peer.refusal().1, "bad_envelope");
    let letter = dead_letter(broker, &service);
    assert_eq!(letter.reason(), "undecodable");
    assert_eq!(letter.body(), b"{\"message_id\":");
    assert_eq!(letter.message_id(), Some("m-1"));
    assert_eq!(letter.properties().reply_to.as_ref(), Some(&peer.replies));
    serves(broker, &service);
}

fn an_unknown_action_is_kept_and_answered(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let peer = Peer::new(broker);
    let message = ServiceMessage::new("peer", service.as_str(), "no\nsuch", ());
    peer.send(&service, message.encode().unwrap(), &peer.replies);
    assert_eq!(peer.refusal().0, "Unknown action: no\nsuch");
    assert_eq!(dead_letter(broker, &service).reason(), "no_handler");
}

fn replies_never_go_into_a_services_queue(broker: &Broker) {
    let (service, victim) = (unique("echo"), unique("victim"));
    let _server = echo_server(broker, &service);
    drop(echo_server(broker, &victim));
    let target = format!("service.{victim}.request");
    let peer = Peer::new(broker);
    let mut message = ServiceMessage::new("peer", service.as_str(), "echo", ());
    message.reply_to = Some(target.as_str().into());
    // Named in the body, in the property, and in the property of a message without an envelope.
    peer.send(&service, message.encode().unwrap(), &peer.replies);
    message.reply_to = None;
    peer.send(&service, message.encode().unwrap(), &target);
    peer.send(&service, b"?".to_vec(), &target);
    for _ in 0..3 {
        assert_eq!(dead_letter(broker, &service).reason(), "undecodable");
    }
    assert!(peer.link.get(&target, PATIENCE).unwrap().is_none());
    serves(broker, &service);
}

fn ids_that_fit_no_frame_are_refused(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let peer = Peer::new(broker);
    let long = "x".repeat(300);
    for field in 0..4 {
        let mut message = ServiceMessage::new("peer", service.as_str(), "echo", ());
        match field {
            0 => message.message_id = long.as_str().into(),
            1 => message.correlation_id = long.as_str().into(),
            2 => message.action = long.as_str().into(),
            _ => message.reply_to = Some(long.as_str().into()),
        }
        peer.send(&service, message.encode().unwrap(), &peer.replies);
        let (error, code) = peer.refusal();
        assert_eq!(code, "bad_envelope");
        assert!(error.contains("300 bytes"), "{error}");
        dead_letter(broker, &service);
    }
}

fn payloads_of_any_depth_are_answered(broker: &Broker) {
    let service = unique("echo");
    let _server = echo_server(broker, &service);
    let peer = Peer::new(broker);
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let message = ServiceMessage::new("peer", service.as_str(), "echo", "PAYLOAD");
    let body = String::from_utf8(message.encode().unwrap()).unwrap();
    let body = body.replace("\"PAYLOAD\"", &deep);
    peer.send(&service, body.into_bytes(), &peer.replies);
    assert_eq!(peer.refusal().1, "bad_request");
    serves(broker, &service);
}

fn a_flood_of_replies_holds_nothing_up(broker: &Broker) {
    const FLOOD: u64 = 20_000;
    let (service, silent) = (unique("echo"), unique("silent"));
    let _server = echo_server(broker, &service);
    let queue = format!("service.{silent}.request");
    let topology = Topology::new()
        .exchange("service.exchange", ExchangeKind::Direct)
        .queue(&queue)
        .bind(&queue, "service.exchange", format!("request.{silent}"));
    let link = Link::open(broker, LinkSpec::new(topology).consume(&queue, 1)).unwrap();
    let client = client(broker);
    let _pending = client.call_async::<()>(&silent, "any", &()).unwrap();
    let request = link.recv_timeout(PATIENCE).unwrap();
    let victim = request.message().properties.reply_to.clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..FLOOD {
                let mut junk = Publication::new("", victim.clone(), vec![b'x'; 500]);
                junk.properties.correlation_id = Some(format!("{n:032x}"));
                link.publish(junk, PATIENCE).unwrap();
            }
        });
        for n in 0..50 {
            let reply: u64 = client.call(&service, "echo", &n).unwrap();
            assert_eq!(reply, n);
        }
    });
    eventually("the flood is over", || client.unclaimed_replies() == FLOOD);
}

/// Property flags.
const HEADERS: u16 = 1 << 13;
const CORRELATION_ID: u16 = 1 << 10;

/// Encodes one header field of nested arrays.
fn abyss(depth: usize) -> Vec<u8> {
    let mut value = vec![b'V'];
    for _ in 0..depth {
        value = [b"A", &long(&value)[..]].concat();
    }
    [&short(b"deep"), &value[..]].concat()
}

/// The stack of amiquip's thread would overflow without the mitigation, and end the test
/// process.
#[test]
fn headers_of_any_depth_do_not_end_the_process() {
    let broker = support::rabbitmq();
    let queue = unique("abyss");
    let spec = LinkSpec::new(Topology::new().queue(&queue)).consume(&queue, 10);
    let link = Link::open(&broker, spec).unwrap();
    let mut raw = RawPublisher::connect();
    // A frame has room for this: 131,072 bytes.
    for depth in [99, 100, 20_000, 26_000] {
        raw.publish(b"", queue.as_bytes(), HEADERS, &long(&abyss(depth)), b"x");
        let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
        let headers = &delivery.message().properties.headers;
        let mut value = headers.get("deep").expect("the header is there");
        let mut levels = 0;
        while let HeaderValue::List(inner) = value {
            levels += 1;
            value = &inner[0];
        }
        assert_eq!(levels, depth.min(99));
        assert_eq!(depth > 99, matches!(value, HeaderValue::Bytes(_)));
        delivery.ack();
    }
}

#[test]
fn texts_that_are_not_utf8_lose_nothing_else() {
    let broker = support::rabbitmq();
    let (exchange, queue) = (unique("topic"), unique("bad-text"));
    let topology = Topology::new()
        .exchange(&exchange, ExchangeKind::Topic)
        .queue(&queue)
        .bind(&queue, &exchange, "#");
    let link = Link::open(&broker, LinkSpec::new(topology).consume(&queue, 10)).unwrap();
    let mut raw = RawPublisher::connect();
    let fields = [
        &short(b"a")[..],
        b"S",
        &long(b"bad \xff"),
        &short(b"b\xff"),
        b"S",
        &long(b"good"),
    ]
    .concat();
    let values = [long(&fields), short(b"id\xff")].concat();
    let flags = HEADERS | CORRELATION_ID;
    raw.publish(exchange.as_bytes(), b"key.\xff", flags, &values, b"body");
    let delivery = link.recv_timeout(PATIENCE).expect("a delivery");
    let message = delivery.message();
    assert_eq!(message.routing_key, "key.?");
    assert_eq!(message.properties.correlation_id.as_deref(), Some("id?"));
    let headers = &message.properties.headers;
    assert_eq!(
        headers.get("a"),
        Some(&HeaderValue::Bytes(b"bad \xff".to_vec()))
    );
    assert_eq!(headers.text("b?"), Some("good"));
    delivery.ack();
    raw.publish(exchange.as_bytes(), b"key", 0, &[], b"mark");
    let next = link.recv_timeout(PATIENCE).expect("the mark");
    assert_eq!(next.message().body, b"mark", "it is not delivered again");
}

/// RabbitMQ looks into the name of a direct reply queue when a reply goes there.
#[test]
fn forged_direct_reply_names_have_no_effect() {
    let (sent, states) = crossbeam_channel::unbounded();
    let broker = Broker::builder(&support::amqp_url())
        .on_state_change(move |state| drop(sent.send(state.clone())))
        .connect()
        .unwrap();
    let service = unique("echo");
    let _server = echo_server(&broker, &service);
    let peer = Peer::new(&support::rabbitmq());
    for token in [
        "AA.B",
        "AAAA.BBBB",
        "g1h2AA==.g1h2AA==",
        "g2gCYQFhAg==.x",
        ".",
        "a",
    ] {
        let forged = format!("amq.rabbitmq.reply-to.{token}");
        let mut message = ServiceMessage::new("peer", service.as_str(), "echo", ());
        message.reply_to = Some(forged.as_str().into());
        peer.send(&service, message.encode().unwrap(), "");
        peer.send(&service, message.encode().unwrap(), &forged);
        peer.send(&service, b"?".to_vec(), &forged);
        serves(&broker, &service);
    }
    let lost = states
        .try_iter()
        .filter(|state| matches!(state, coney::ConnectionState::Lost(_)));
    assert_eq!(lost.collect::<Vec<_>>(), []);
}
