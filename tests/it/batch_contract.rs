//! The wire format of batches, ours and a peer's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::balance::Choice;
use coney::batch::BatchReplies;
use coney::deduplication::MemoryReplyStore;
use coney::message::{Reply, ServiceMessage};
use coney::{Broker, DeadLetters, ErrorKind, Instance, Registry, ServiceClient, ServiceServer};
use serde_json::{Value, json};

use crate::support::math::math;
use crate::support::peer::{answer_one, peer, recv, request, serve, text};
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    the_wire_format_of_a_batch,
    a_peer_that_does_not_know_batches_is_called_one_by_one,
    a_peer_answers_what_is_not_a_batch,
    a_peers_batch_is_answered,
    malformed_batches_are_refused,
    repeated_requests_run_once,
    a_balancer_that_panics_ends_no_callback_thread,
);

fn the_wire_format_of_a_batch(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let mut batch = client(broker).batch(&service).header("trace-id", "t1");
    batch.add::<u64>("double", &[7]);
    batch.add::<u64>("find", &());
    let pending = batch.call_async();
    let delivery = recv(&link);
    let body: Value = serde_json::from_str(&text(&delivery)).unwrap();
    let properties = &delivery.message().properties;
    assert_eq!(body.as_object().unwrap().len(), 9);
    assert_eq!(body["action"], "$batch");
    assert_eq!(body["headers"]["trace-id"], "t1");
    assert_eq!(properties.reply_to.as_deref(), body["reply_to"].as_str());
    let items = body["payload"].as_array().unwrap();
    let ids: Vec<_> = items
        .iter()
        .map(|item| item["message_id"].clone())
        .collect();
    assert!(
        ids.iter()
            .all(|id| id.as_str().unwrap().starts_with("msg_"))
    );
    assert_ne!(ids[0], ids[1]);
    let wanted = json!([
        {"action": "double", "payload": [7], "message_id": ids[0]},
        {"action": "find", "payload": null, "message_id": ids[1]},
    ]);
    assert_eq!(body["payload"], wanted);
    drop(delivery); // back into the queue
    answer_one(&link, |_| {
        r#"{"success":true,"data":[{"success":true,"data":14},{"success":false,"error":"e"}]}"#
            .to_owned()
    });
    let results = pending.wait().into_results::<u64>();
    assert_eq!(*results[0].as_ref().unwrap(), 14);
    assert_eq!(results[1].as_ref().unwrap_err().remote_message(), Some("e"));
}

/// Answers as a peer that knows the contract only, whose service doubles; returns the actions.
fn double_as_php(link: &coney::transport::Link, requests: usize) -> Vec<String> {
    let mut actions = Vec::new();
    for _ in 0..requests {
        answer_one(link, |message| {
            actions.push(message.action.clone().into_owned());
            match &*message.action {
                "double" => {
                    let n: u64 = message.payload.decode().unwrap();
                    format!(r#"{{"success":true,"data":{}}}"#, n * 2)
                }
                other => format!(r#"{{"success":false,"error":"Unknown action: {other}"}}"#),
            }
        });
    }
    actions
}

fn a_peer_that_does_not_know_batches_is_called_one_by_one(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let client = client(broker);
    thread::scope(|scope| {
        let peer = scope.spawn(|| double_as_php(&link, 1 + 3 + 3));
        for _ in 0..2 {
            let mut batch = client.batch(&service);
            for n in 1..=2 {
                batch.add::<u64>("double", &n);
            }
            batch.add::<u64>("fly", &3);
            let results = batch.call().into_results::<u64>();
            assert_eq!(*results[0].as_ref().unwrap(), 2);
            assert_eq!(*results[1].as_ref().unwrap(), 4);
            let error = results[2].as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownAction, "{error}");
        }
        let actions = peer.join().unwrap();
        // The client asks once, and remembers the answer.
        let wanted = [
            "$batch", "double", "double", "fly", "double", "double", "fly",
        ];
        assert_eq!(actions, wanted);
    });
}

fn a_peer_answers_what_is_not_a_batch(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let answers = [
        (
            r#"{"success":false,"error":"overloaded"}"#,
            ErrorKind::Remote,
        ),
        (r#"{"success":true,"data":[1]}"#, ErrorKind::Decode),
        ("<html>", ErrorKind::Decode),
    ];
    for (answer, kind) in answers {
        let mut batch = client(broker).batch(&service);
        for n in 1..=2 {
            batch.add::<u64>("double", &n);
        }
        let pending = batch.call_async();
        answer_one(&link, |_| answer.to_owned());
        for result in pending.wait().into_results::<u64>() {
            assert_eq!(result.unwrap_err().kind(), kind, "{answer}");
        }
    }
}

fn envelope(service: &str, reply_to: &str, payload: &Value) -> String {
    json!({
        "message_id": "m", "source_service": "php", "target_service": service,
        "action": "$batch", "timestamp": 1, "correlation_id": "c", "reply_to": reply_to,
        "headers": [], "payload": payload,
    })
    .to_string()
}

fn a_peers_batch_is_answered(broker: &Broker) {
    let (service, replies) = (unique("math"), unique("replies"));
    let _server = math(broker, &service);
    let peer = peer(broker, &replies);
    let own = "0123456789abcdef0123456789abcdef";
    let items = json!([
        {"action": "double", "payload": 1, "message_id": "m\"1", "more": {}},
        {"action": "double", "payload": 2, "message_id": "m2", "correlation_id": own},
        {"action": "$batch", "payload": [], "message_id": "m3"},
        {"action": "double", "payload": 4, "message_id": "m4", "headers": {"deadline_ms": 1}},
        {"action": "x".repeat(300), "payload": 4},
    ]);
    let body = envelope(&service, &replies, &items);
    peer.publish(request(&service, &body, &replies), PATIENCE)
        .unwrap();
    let delivery = recv(&peer);
    // This error is answered first and by itself: the batch is acknowledged with its own reply.
    assert_eq!(
        delivery.message().properties.correlation_id.as_deref(),
        Some(own)
    );
    assert_eq!(
        text(&delivery),
        r#"{"success":true,"data":4,"message_id":"m2"}"#
    );
    delivery.ack();
    let delivery = recv(&peer);
    let reply: Value = serde_json::from_str(&text(&delivery)).unwrap();
    assert_eq!(reply["success"], true);
    assert_eq!(reply["message_id"], "m");
    let data = &reply["data"];
    assert_eq!(
        data[0],
        json!({"success": true, "data": 2, "message_id": "m\"1"})
    );
    assert_eq!(data[1], Value::Null);
    assert_eq!(data[2]["error"], "Unknown action: $batch");
    assert_eq!(data[3]["error_code"], "expired");
    assert_eq!(data[4]["error_code"], "bad_envelope");
    delivery.ack();
    let body = envelope(&service, &replies, &json!([]));
    peer.publish(request(&service, &body, &replies), PATIENCE)
        .unwrap();
    let delivery = recv(&peer);
    let reply = text(&delivery);
    assert_eq!(Reply::decode(reply.as_bytes()).unwrap().data.as_str(), "[]");
    delivery.ack();
}

fn malformed_batches_are_refused(broker: &Broker) {
    let (service, replies) = (unique("math"), unique("replies"));
    let _server = math(broker, &service);
    let peer = peer(broker, &replies);
    let too_many = vec![json!({"action": "double", "payload": 1}); 10_001];
    for payload in [
        json!(7),
        json!([1]),
        json!([{"action": "double"}]),
        too_many.into(),
    ] {
        let body = envelope(&service, &replies, &payload);
        peer.publish(request(&service, &body, &replies), PATIENCE)
            .unwrap();
        let delivery = recv(&peer);
        let reply = text(&delivery);
        let reply = Reply::decode(reply.as_bytes()).unwrap();
        assert_eq!(reply.error_code.as_deref(), Some("bad_envelope"));
        assert!(reply.error.contains("batch"), "{}", reply.error);
        delivery.ack();
    }
    // A batch without a reply queue is dead-lettered.
    let mut message = ServiceMessage::new("php", &*service, "$batch", [1]);
    message.message_id = unique("m").into();
    let mut publication = request(&service, "", "");
    publication.body = message.encode().unwrap().into();
    publication.properties.reply_to = None;
    publication.properties.message_id = Some(message.message_id.clone().into_owned());
    peer.publish(publication, PATIENCE).unwrap();
    let dead = DeadLetters::open(broker).unwrap();
    eventually("it is kept", || {
        let letters = dead.list(usize::MAX).unwrap();
        letters.iter().any(|letter| {
            letter.message_id() == Some(&message.message_id)
                && letter
                    .last_error()
                    .is_some_and(|error| error.contains("names no reply queue"))
        })
    });
}

fn repeated_requests_run_once(broker: &Broker) {
    let (service, replies) = (unique("counter"), unique("replies"));
    let runs = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .respond("count", {
            let runs = Arc::clone(&runs);
            move |()| {
                thread::sleep(Duration::from_millis(50));
                1 + runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst)
            }
        })
        .deduplicate(Arc::new(MemoryReplyStore::new(10)), PATIENCE)
        .start()
        .unwrap();
    let peer = peer(broker, &replies);
    // Three at the same time, of which two wait for the first.
    let items = json!(vec![
        json!({"action": "count", "payload": null, "message_id": "once"});
        3
    ]);
    let body = envelope(&service, &replies, &items);
    peer.publish(request(&service, &body, &replies), PATIENCE)
        .unwrap();
    let delivery = recv(&peer);
    let reply: Value = serde_json::from_str(&text(&delivery)).unwrap();
    for at in 0..3 {
        assert_eq!(reply["data"][at]["data"], 1, "{reply}");
    }
    assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), 1);
    delivery.ack();
}

/// The calls are sent again, one by one, on the callback thread: the balancer runs there.
fn a_balancer_that_panics_ends_no_callback_thread(broker: &Broker) {
    let (registry, service) = (Registry::memory(), unique("php-service"));
    let link = serve(broker, &service);
    let _instance = registry.register(&service, Instance::new()).unwrap();
    let picks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&picks);
    let client = ServiceClient::builder(broker, "gateway")
        .timeout(PATIENCE)
        .registry(&registry)
        .balancer(move |_: &Choice<'_>| {
            let before = counted.fetch_add(1, Ordering::SeqCst);
            assert!(!(1..3).contains(&before), "a panic that the test wants");
            0
        })
        .build()
        .unwrap();
    let (sent, replies) = crossbeam_channel::unbounded();
    let call = |calls: u64| {
        let (mut batch, sent) = (client.batch(&service), sent.clone());
        for n in 1..=calls {
            batch.add::<u64>("double", &n);
        }
        let pending = batch.call_async();
        let send = move |replies: BatchReplies| sent.send(replies.into_results::<u64>()).unwrap();
        pending.then(send).unwrap();
    };
    call(3);
    assert_eq!(double_as_php(&link, 2), ["$batch", "double"]);
    let results = replies.recv_timeout(PATIENCE).unwrap();
    assert_eq!(*results[2].as_ref().unwrap(), 6);
    for result in &results[..2] {
        let error = result.as_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
        assert!(error.is_safe_to_retry(), "{error}");
    }
    eventually("no call in flight", || client.in_flight() == 0);
    call(1);
    assert_eq!(double_as_php(&link, 1), ["double"]);
    let results = replies.recv_timeout(PATIENCE).unwrap();
    assert_eq!(*results[0].as_ref().unwrap(), 2);
}
