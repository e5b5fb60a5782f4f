//! `ServiceClient::batch`, and what a server does with a `$batch`, from both sides.

use std::collections::HashMap;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use coney::message::{Reply, ServiceMessage};
use coney::{
    BatchLimits, Broker, CallOptions, DeadLetters, ErrorKind, HandlerError, MemoryReplyStore,
    Phase, ServiceServer,
};
use serde_json::{Value, json};

use crate::support::peer::{answer_one, peer, recv, request, serve, text};
use crate::support::timing::in_time;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    a_payload_that_panics_is_its_own_error,
    each_call_has_a_type_and_an_error_of_its_own,
    replies_come_in_the_order_asked_over_many_messages,
    the_workers_share_a_message,
    one_deadline_for_all_and_what_was_answered_stays,
    large_requests_go_in_messages_of_their_own,
    replies_that_do_not_fit_are_errors_of_their_own,
    many_replies_that_do_not_fit_leave_those_that_do,
    what_a_batch_sends,
    a_peer_that_does_not_know_batches_is_called_one_by_one,
    a_peer_answers_what_is_not_a_batch,
    nobody_there_is_each_calls_error,
    a_forgotten_batch_is_no_more_in_flight,
    a_peers_batch_is_answered,
    what_is_no_batch_is_refused,
    repeated_requests_run_once,
    shutting_down_ends_a_batch_that_has_begun,
    commands_in_batches,
);

fn math(broker: &Broker, service: &str) -> ServiceServer {
    ServiceServer::builder(broker, service)
        .any_reply_queue(true)
        .handler("double", |n: u64| Ok::<_, HandlerError>(n * 2))
        .handler("name", |n: u64| {
            Ok::<_, HandlerError>(format!("number {n}"))
        })
        .handler("refuse", |_: u64| {
            Err::<(), _>(HandlerError::new("not today").with_code("closed"))
        })
        .handler("panic", |_: u64| -> Result<(), HandlerError> {
            panic!("on purpose")
        })
        .handler("nap", |millis: u64| {
            thread::sleep(Duration::from_millis(millis));
            Ok::<_, HandlerError>(millis)
        })
        .handler("echo", |text: String| Ok::<_, HandlerError>(text))
        .start()
        .unwrap()
}

fn each_call_has_a_type_and_an_error_of_its_own(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let mut batch = client(broker).batch(&service);
    let double = batch.add::<_, u64>("double", &21);
    let refused = batch.add::<_, ()>("refuse", &1);
    let unknown = batch.add::<_, ()>("fly", &1);
    let unreadable = batch.add::<_, ()>("double", "x");
    let panics = batch.add::<_, ()>("panic", &1);
    let unfit = HashMap::from([((1, 2), 3)]);
    let unencodable = batch.add::<_, ()>("double", &unfit);
    let nameless = batch.add::<_, ()>("", &1);
    let other_type = batch.add::<_, u64>("name", &1);
    let name = batch.add::<_, String>("name", &7);
    assert_eq!(batch.len(), 9);
    let mut replies = batch.call();
    assert_eq!(replies.take(double).unwrap(), 42);
    assert_eq!(replies.take(name).unwrap(), "number 7");
    let error = replies.take(refused).unwrap_err();
    assert_eq!(error.remote_message(), Some("not today"));
    assert_eq!(error.remote_code(), Some("closed"));
    assert!(error.to_string().contains("refuse"), "{error}");
    assert_eq!(
        replies.take(unknown).unwrap_err().kind(),
        ErrorKind::UnknownAction
    );
    let error = replies.take(unreadable).unwrap_err();
    assert_eq!(error.remote_code(), Some("bad_request"));
    assert_eq!(
        replies.take(panics).unwrap_err().remote_code(),
        Some("panic")
    );
    assert_eq!(
        replies.take(unencodable).unwrap_err().kind(),
        ErrorKind::Encode
    );
    assert_eq!(
        replies.take(nameless).unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    assert_eq!(
        replies.take(other_type).unwrap_err().kind(),
        ErrorKind::Decode
    );
    let elsewhere = client(broker).batch(&service).add::<_, u64>("double", &1);
    assert_eq!(
        replies.take(elsewhere).unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
}

fn replies_come_in_the_order_asked_over_many_messages(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let client = client(broker);
    let limits = BatchLimits::new().calls(7);
    let mut batch = client.batch(&service).limits(limits);
    for n in 0..1_000 {
        batch.add::<_, u64>("double", &n);
    }
    let pending = batch.call_async();
    let doubles = pending.wait().into_results::<u64>();
    let doubles: Vec<u64> = doubles.into_iter().map(Result::unwrap).collect();
    assert_eq!(doubles, (0..1_000).map(|n| n * 2).collect::<Vec<_>>());
    assert_eq!(client.in_flight(), 0);
    assert!(client.batch(&service).call().is_empty());
}

/// Only if five handlers run at the same time can any of them end.
fn the_workers_share_a_message(broker: &Broker) {
    let service = unique("meeting");
    let barrier = Arc::new(Barrier::new(5));
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("meet", move |n: u64| {
            barrier.wait();
            Ok::<_, HandlerError>(n)
        })
        .workers(5)
        .start()
        .unwrap();
    let mut batch = client(broker).batch(&service);
    for n in 0..20 {
        batch.add::<_, u64>("meet", &n);
    }
    let met = batch.call().into_results::<u64>();
    assert!(met.iter().all(Result::is_ok), "{met:?}");
}

fn one_deadline_for_all_and_what_was_answered_stays(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let timeout = Duration::from_millis(400);
    let mut batch = client(broker)
        .batch(&service)
        .limits(BatchLimits::new().calls(2))
        .options(&CallOptions::new().timeout(timeout));
    for millis in [1, 1, 1, 3_000] {
        batch.add::<_, u64>("nap", &millis);
    }
    let naps = in_time(timeout, "a batch", || batch.call()).into_results::<u64>();
    let ended: Vec<_> = naps.iter().map(Result::is_ok).collect();
    assert_eq!(ended, [true, true, false, false]);
    let error = naps[3].as_ref().unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Reply), "{error}");
    assert!(error.to_string().contains("nap"), "{error}");
}

fn large_requests_go_in_messages_of_their_own(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let sizes = [10, 300_000, 300_000, 700_000, 10, 10];
    let mut batch = client(broker).batch(&service);
    for size in sizes {
        batch.add::<_, String>("echo", &"x".repeat(size));
    }
    let echoes = batch.call().into_results::<String>();
    let echoed: Vec<_> = echoes.into_iter().map(|text| text.unwrap().len()).collect();
    assert_eq!(echoed, sizes);
}

fn replies_that_do_not_fit_are_errors_of_their_own(broker: &Broker) {
    let service = unique("inflate");
    let most = broker.max_body();
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("inflate", move |parts: usize| {
            Ok::<_, HandlerError>("x".repeat(parts * most / 32))
        })
        .workers(1)
        .start()
        .unwrap();
    let mut batch = client(broker).batch(&service);
    for parts in [8, 0, 16, 24, 32, 1, 1] {
        batch.add::<_, String>("inflate", &parts);
    }
    let texts = batch.call().into_results::<String>();
    // Which go first is up to the workers: none is lost to one that does not fit.
    assert!(texts[4].is_err() && texts[1].is_ok() && texts[5].is_ok() && texts[6].is_ok());
    let error = texts[4].as_ref().unwrap_err();
    assert_eq!(error.remote_code(), Some("reply_too_large"), "{error}");
}

fn many_replies_that_do_not_fit_leave_those_that_do(broker: &Broker) {
    let service = unique("inflate");
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("inflate", |bytes: usize| {
            Ok::<_, HandlerError>("x".repeat(bytes))
        })
        .start()
        .unwrap();
    for bytes in [40_000, 41_000, 45_000] {
        let mut batch = client(broker).batch(&service);
        for _ in 0..500 {
            batch.add::<_, String>("inflate", &bytes);
        }
        let texts = batch.call().into_results::<String>();
        let most = broker.max_body() / (bytes + 100);
        let fit = texts.iter().filter(|text| text.is_ok()).count();
        assert!(fit <= most && fit > most * 9 / 10, "{fit} of {most}");
        let errors = texts.iter().filter_map(|text| text.as_ref().err());
        for error in errors {
            assert_eq!(error.remote_code(), Some("reply_too_large"), "{error}");
        }
    }
}

fn what_a_batch_sends(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let mut batch = client(broker)
        .batch(&service)
        .options(&CallOptions::new().header("trace-id", "t1"));
    batch.add::<_, u64>("double", &[7]);
    batch.add::<_, u64>("find", &());
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

/// Answers like a peer that knows the contract only, and doubles; returns the actions.
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
                batch.add::<_, u64>("double", &n);
            }
            batch.add::<_, u64>("fly", &3);
            let results = batch.call().into_results::<u64>();
            assert_eq!(*results[0].as_ref().unwrap(), 2);
            assert_eq!(*results[1].as_ref().unwrap(), 4);
            let error = results[2].as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownAction, "{error}");
        }
        let actions = peer.join().unwrap();
        // Asked once, and remembered.
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
            batch.add::<_, u64>("double", &n);
        }
        let pending = batch.call_async();
        answer_one(&link, |_| answer.to_owned());
        for result in pending.wait().into_results::<u64>() {
            assert_eq!(result.unwrap_err().kind(), kind, "{answer}");
        }
    }
}

fn nobody_there_is_each_calls_error(broker: &Broker) {
    let mut batch = client(broker).batch(&unique("nobody"));
    for n in 0..3 {
        batch.add::<_, u64>("double", &n);
    }
    for result in batch.call().into_results::<u64>() {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRoute);
        assert!(error.is_safe_to_retry());
    }
    let client = client(broker);
    let mut batch = client.batch("math");
    batch.add::<_, u64>("double", &1);
    batch.add::<_, u64>("double", &2);
    client.close();
    for result in batch.call().into_results::<u64>() {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Closed);
    }
}

fn a_forgotten_batch_is_no_more_in_flight(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let client = client(broker);
    let mut batch = client.batch(&service).limits(BatchLimits::new().calls(2));
    for _ in 0..5 {
        batch.add::<_, u64>("nap", &50);
    }
    let pending = batch.call_async();
    assert_eq!(client.in_flight(), 3, "messages");
    drop(pending);
    assert_eq!(client.in_flight(), 0);
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
    // Answered on its own, and first: the batch is acknowledged with its own reply.
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

fn what_is_no_batch_is_refused(broker: &Broker) {
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
    // Without anybody to tell what became of it, it is kept.
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
                    .is_some_and(|error| error.contains("nobody waits"))
        })
    });
}

fn repeated_requests_run_once(broker: &Broker) {
    let (service, replies) = (unique("counter"), unique("replies"));
    let runs = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("count", {
            let runs = Arc::clone(&runs);
            move |()| {
                thread::sleep(Duration::from_millis(50));
                Ok::<_, HandlerError>(1 + runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
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

fn shutting_down_ends_a_batch_that_has_begun(broker: &Broker) {
    let service = unique("math");
    let server = math(broker, &service);
    let mut batch = client(broker).batch(&service);
    for _ in 0..30 {
        batch.add::<_, u64>("nap", &20);
    }
    let pending = batch.call_async();
    thread::sleep(Duration::from_millis(30));
    let begin = Instant::now();
    server.shutdown(PATIENCE).unwrap();
    assert!(begin.elapsed() < PATIENCE / 2);
    // What had not begun went back into the queue, for the next.
    let _next = math(broker, &service);
    let naps = pending.wait().into_results::<u64>();
    assert!(naps.iter().all(Result::is_ok), "{naps:?}");
}

fn commands_in_batches(broker: &Broker) {
    let service = unique("orders");
    let (done, orders) = crossbeam_channel::unbounded();
    let _server = ServiceServer::builder(broker, &service)
        .any_reply_queue(true)
        .handler("create", move |order: u64| done.send(order))
        .start()
        .unwrap();
    let client = client(broker);
    let sent = client.send_batch(&service, "create", &Vec::from_iter(0..100u64));
    assert_eq!(sent.len(), 100);
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    let mut carried_out: Vec<u64> = (0..100)
        .map(|_| orders.recv_timeout(PATIENCE).unwrap())
        .collect();
    carried_out.sort_unstable();
    assert_eq!(carried_out, Vec::from_iter(0..100));
    let sent = client.send_batch(&unique("nobody"), "create", &[1, 2]);
    let kinds = sent.into_iter().map(|sent| sent.unwrap_err().kind());
    assert_eq!(kinds.collect::<Vec<_>>(), [ErrorKind::NoRoute; 2]);
}

struct Panics;

impl serde::Serialize for Panics {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("no payload")
    }
}

fn a_payload_that_panics_is_its_own_error(broker: &Broker) {
    let service = unique("math");
    let _server = math(broker, &service);
    let client = client(broker);
    let mut batch = client.batch(&service);
    let first = batch.add::<_, u64>("double", &1);
    let second = batch.add::<_, u64>("double", &Panics);
    let third = batch.add::<_, u64>("double", &3);
    let mut replies = batch.call();
    assert_eq!(replies.take(first).unwrap(), 2);
    let error = replies.take(second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
    assert_eq!(replies.take(third).unwrap(), 6);
}
