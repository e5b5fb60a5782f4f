//! The wire contract, byte for byte, with the test as the peer: the messages of a PHP client,
//! of a PHP server and of ours.

use std::thread;

use coney::message::{Reply, ServiceMessage};
use coney::transport::Publication;
use coney::{Broker, CallOptions, ErrorKind, ServiceServer};
use serde::Deserialize;

use crate::support::peer::{answer_one, peer, recv, request, serve, text};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    a_php_client_is_served,
    a_php_server_is_called,
    a_php_servers_unknown_action_is_recognised,
    the_wire_format_of_our_requests,
    the_wire_format_of_our_replies,
    bodies_that_are_not_envelopes_are_answered,
    one_way_requests_are_handled_without_a_reply,
    replies_of_others_are_counted_and_dropped,
);

#[derive(Deserialize)]
struct Filter {
    #[serde(default)]
    name: Option<String>,
}

fn a_php_client_is_served(broker: &Broker) {
    let (service, replies) = (unique("user-service"), unique("replies"));
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("find", |filter: Filter| filter.name)
        .start()
        .unwrap();
    let peer = peer(broker, &replies);
    for (payload, wanted) in [
        (
            r#"{"name":"\u5f20\u4e09 \ud83d\ude00 a\/b"}"#,
            r#""张三 😀 a/b""#,
        ),
        ("[]", "null"),
        ("{}", "null"),
    ] {
        let body = format!(
            r#"{{"message_id":"msg_20261123083012_862ad1d69070c888","source_service":"php","target_service":"{service}","action":"find","timestamp":1795422612,"correlation_id":"0123456789abcdef0123456789abcdef","reply_to":"{replies}","headers":[],"payload":{payload},"new_field":1}}"#
        );
        peer.publish(request(&service, &body, &replies), PATIENCE)
            .unwrap();
        let reply = recv(&peer);
        assert_eq!(
            text(&reply),
            format!(
                r#"{{"success":true,"data":{wanted},"message_id":"msg_20261123083012_862ad1d69070c888"}}"#
            )
        );
        reply.ack();
    }
}

fn a_php_server_is_called(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let client = client(broker);
    thread::scope(|scope| {
        scope.spawn(|| {
            answer_one(&link, |message| {
                format!(
                    r#"{{"success":true,"data":{{"name":"\u5f20\u4e09","tags":[]}},"message_id":"{}"}}"#,
                    message.message_id
                )
            });
            answer_one(&link, |message| {
                let id = &message.message_id;
                format!(r#"{{"success":false,"error":"Invalid token","message_id":"{id}"}}"#)
            });
            answer_one(&link, |_| "<html>".to_owned());
        });
        let user: serde_json::Value = client.call(&service, "get_user", &7).unwrap();
        assert_eq!(user["name"], "张三");
        let error = client.call::<()>(&service, "get_user", &7).unwrap_err();
        assert_eq!(error.remote_message(), Some("Invalid token"));
        assert_eq!(error.remote_code(), None);
        let error = client.call::<()>(&service, "get_user", &7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert_eq!(error.raw_text(), Some("<html>"));
    });
}

fn a_php_servers_unknown_action_is_recognised(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let client = client(broker);
    thread::scope(|scope| {
        scope.spawn(|| {
            answer_one(&link, |message| {
                format!(
                    r#"{{"success":false,"error":"Unknown action: {}"}}"#,
                    message.action
                )
            });
        });
        let error = client.call::<()>(&service, "fly", &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownAction);
    });
}

fn the_wire_format_of_our_requests(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let client = client(broker);
    let options = CallOptions::new().header("trace-id", "t1");
    let blocking = thread::spawn({
        let (client, service) = (client.clone(), service.clone());
        move || client.call_with::<u64>(&service, "get_user", &[7], &options)
    });
    let delivery = recv(&link);
    let body = text(&delivery);
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    let names = [
        "message_id",
        "source_service",
        "target_service",
        "action",
        "timestamp",
        "correlation_id",
        "reply_to",
        "headers",
        "payload",
    ];
    assert_eq!(value.as_object().unwrap().len(), names.len());
    assert!(names.iter().all(|name| value.get(name).is_some()), "{body}");
    assert_eq!(value["source_service"], "order-service");
    assert_eq!(value["target_service"], service.as_str());
    assert_eq!(value["payload"], serde_json::json!([7]));
    assert_eq!(value["headers"]["trace-id"], "t1");
    assert!(value["timestamp"].as_i64().unwrap() > 1_700_000_000);

    let properties = &delivery.message().properties;
    assert_eq!(delivery.message().routing_key, format!("request.{service}"));
    assert_eq!(delivery.message().exchange, "service.exchange");
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert!(properties.persistent, "a blocking call is persistent");
    let expiration = properties.expiration.expect("what is left of the time");
    assert!(
        expiration <= PATIENCE && expiration > PATIENCE / 2,
        "{expiration:?}"
    );
    let deadline = value["headers"]["deadline_ms"].as_u64().unwrap();
    assert!(deadline > 1_700_000_000_000, "{deadline}");
    assert_eq!(
        properties.message_id.as_deref(),
        value["message_id"].as_str()
    );
    assert_eq!(
        properties.correlation_id.as_deref(),
        value["correlation_id"].as_str()
    );
    assert_eq!(properties.reply_to.as_deref(), value["reply_to"].as_str());
    assert!(
        properties
            .reply_to
            .as_deref()
            .unwrap()
            .starts_with("amq.gen-")
    );

    let mut reply = Publication::new(
        "",
        properties.reply_to.clone().unwrap(),
        Reply::success(&3, "m").unwrap(),
    );
    reply.properties.correlation_id = properties.correlation_id.clone();
    delivery.ack_with(reply);
    assert_eq!(blocking.join().unwrap().unwrap(), 3);

    let _pending = client.call_async::<()>(&service, "later", &()).unwrap();
    let delivery = recv(&link);
    let value: serde_json::Value = serde_json::from_str(&text(&delivery)).unwrap();
    assert_eq!(value["headers"]["async_callback"], true);
    assert!(
        !delivery.message().properties.persistent,
        "an asynchronous one is not"
    );
    delivery.ack();
}

fn the_wire_format_of_our_replies(broker: &Broker) {
    let (service, replies) = (unique("user-service"), unique("replies"));
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("fail", |(): ()| Err::<(), _>("no \"luck\""))
        .start()
        .unwrap();
    let peer = peer(broker, &replies);
    for (action, wanted) in [
        (
            "fail",
            r#"{"success":false,"error":"no \"luck\"","message_id":"m1"}"#,
        ),
        (
            "fly",
            r#"{"success":false,"error":"Unknown action: fly","error_code":"unknown_action","message_id":"m1"}"#,
        ),
    ] {
        let body = format!(
            r#"{{"message_id":"m1","source_service":"php","target_service":"{service}","action":"{action}","timestamp":1,"correlation_id":"c1","reply_to":"{replies}","headers":{{}},"payload":null}}"#
        );
        peer.publish(request(&service, &body, &replies), PATIENCE)
            .unwrap();
        let reply = recv(&peer);
        assert_eq!(text(&reply), wanted);
        let properties = &reply.message().properties;
        assert_eq!(properties.content_type.as_deref(), Some("application/json"));
        assert_eq!(
            properties.correlation_id.as_deref(),
            Some("0123456789abcdef0123456789abcdef"),
            "copied from the request's property"
        );
        assert!(!properties.persistent);
        assert_eq!(reply.message().exchange, "");
        reply.ack();
    }
}

fn bodies_that_are_not_envelopes_are_answered(broker: &Broker) {
    let (service, replies) = (unique("user-service"), unique("replies"));
    let server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("get", |(): ()| 1)
        .start()
        .unwrap();
    let peer = peer(broker, &replies);
    let deep = "[".repeat(100_000);
    for (body, wanted) in [
        ("", "EOF"),
        ("\u{0}\u{1}", "expected value"),
        ("{}", "field `message_id` is missing"),
        (
            r#"{"message_id":"m","source_service":"s","target_service":"t","action":7,"timestamp":1,"correlation_id":"c","payload":1}"#,
            "field `action` is not a string",
        ),
        (deep.as_str(), "not a service envelope"),
    ] {
        peer.publish(request(&service, body, &replies), PATIENCE)
            .unwrap();
        let delivery = recv(&peer);
        let reply = Reply::decode(&delivery.message().body).unwrap();
        assert!(!reply.success);
        assert!(reply.error.contains(wanted), "{}", reply.error);
        assert_eq!(reply.message_id, "msg_20261123083012_862ad1d69070c888");
        drop(reply);
        delivery.ack();
        // A request without a reply queue gets no answer.
        let mut silent = request(&service, body, "");
        silent.properties.reply_to = None;
        peer.publish(silent, PATIENCE).unwrap();
    }
    assert_eq!(client(broker).call::<u64>(&service, "get", &()).unwrap(), 1);
    // This one is behind all the others in the queue.
    peer.publish(request(&service, "", &replies), PATIENCE)
        .unwrap();
    recv(&peer).ack();
    server.drain(PATIENCE).unwrap();
    let link = serve(broker, &service);
    peer.publish(request(&service, "mark", &replies), PATIENCE)
        .unwrap();
    assert_eq!(text(&recv(&link)), "mark", "nothing else is in the queue");
}

fn one_way_requests_are_handled_without_a_reply(broker: &Broker) {
    let (service, replies) = (unique("user-service"), unique("replies"));
    let (ran, runs) = crossbeam_channel::unbounded();
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("note", move |n: u64| {
            ran.send(n).unwrap();
        })
        .start()
        .unwrap();
    let peer = peer(broker, &replies);
    let message = ServiceMessage::new("php", service.as_str(), "note", 5u64);
    let mut publication = request(&service, "", &replies);
    publication.body = message.encode().unwrap().into();
    publication.properties.reply_to = None;
    peer.publish(publication, PATIENCE).unwrap();
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(5));
}

fn replies_of_others_are_counted_and_dropped(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let client = client(broker);
    thread::scope(|scope| {
        scope.spawn(|| {
            let delivery = recv(&link);
            let properties = delivery.message().properties.clone();
            let queue = properties.reply_to.unwrap();
            for foreign in [
                None,
                Some(""),
                Some("x"),
                Some("00000000000000000000000000000000"),
            ] {
                let body = Reply::success(&"forged", "m").unwrap();
                let mut reply = Publication::new("", queue.clone(), body);
                reply.properties.correlation_id = foreign.map(str::to_owned);
                link.publish(reply, PATIENCE).unwrap();
            }
            let mut reply = Publication::new("", queue, Reply::success(&"real", "m").unwrap());
            reply.properties.correlation_id = properties.correlation_id;
            link.publish(reply.clone(), PATIENCE).unwrap();
            link.publish(reply, PATIENCE).unwrap();
            delivery.ack();
        });
        let answer: String = client.call(&service, "get", &()).unwrap();
        assert_eq!(answer, "real");
    });
    crate::support::eventually("all foreign replies", || client.unclaimed_replies() == 5);
}
