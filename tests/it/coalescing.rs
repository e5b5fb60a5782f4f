//! Coalescing: calls that wait at the same moment are sent in one message.
//!
//! Most of these tests take the connection away, so that calls wait for it at the same moment.

use std::thread;
use std::time::Duration;

use coney::batch::BatchLimits;
use coney::{Broker, CallOptions, ErrorKind, HandlerError, Phase, ServiceServer};
use serde_json::{Value, json};

use crate::support::coalescing_client::{
    Held, call_all, coalescing, items, join_all, reply_to, sizes,
};
use crate::support::peer::{answer_one, recv, serve, text};
use crate::support::sleepy_service::GatedServer;
use crate::support::timing::in_time;
use crate::support::{PATIENCE, eventually, on_both, rabbitmq, unique};

on_both!(
    every_caller_gets_its_own_reply,
    a_single_call_is_not_coalesced,
    a_peer_may_answer_each_or_all,
);

fn every_caller_gets_its_own_reply(broker: &Broker) {
    let service = unique("math");
    let _server = ServiceServer::builder(broker, &service)
        .respond("double", |n: u64| n * 2)
        .handler("refuse", |n: u64| {
            Err::<(), _>(HandlerError::from(n).with_code("no"))
        })
        .start()
        .unwrap();
    let client = coalescing(broker, BatchLimits::new());
    thread::scope(|scope| {
        for caller in 0..50u64 {
            let (client, service) = (client.clone(), &service);
            scope.spawn(move || {
                for n in 0..50 {
                    let number = caller * 1_000 + n;
                    if n % 10 == 9 {
                        let error = client.call::<()>(service, "refuse", &number).unwrap_err();
                        assert_eq!(error.remote_message(), Some(&*number.to_string()));
                        assert_eq!(error.remote_code(), Some("no"));
                    } else {
                        let double: u64 = client.call(service, "double", &number).unwrap();
                        assert_eq!(double, number * 2);
                    }
                }
            });
        }
    });
    assert_eq!(client.in_flight(), 0);
    assert_eq!(client.unclaimed_replies(), 0);
}

fn a_single_call_is_not_coalesced(broker: &Broker) {
    let service = unique("php-service");
    let link = serve(broker, &service);
    let client = coalescing(broker, BatchLimits::new());
    for n in 0..3u64 {
        let pending = client.call_async::<u64>(&service, "double", &n).unwrap();
        answer_one(&link, |message| {
            assert_eq!(message.action, "double");
            r#"{"success":true,"data":1}"#.to_owned()
        });
        assert_eq!(pending.wait().unwrap(), 1);
    }
    let error = client.call::<()>(&unique("absent"), "x", &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
}

/// Answers in all ways that a peer may use. On RabbitMQ the calls come in few messages, in
/// memory one by one.
fn a_peer_may_answer_each_or_all(broker: &Broker) {
    let service = unique("peer");
    let link = serve(broker, &service);
    let client = coalescing(broker, BatchLimits::new());
    let calls = call_all(&client, &service, 30);
    let mut answered = 0;
    let mut way = 0;
    while answered < 30 {
        let delivery = recv(&link);
        let body = text(&delivery);
        let items = items(&body);
        let reply = |item: &Value| {
            let double = item["payload"].as_u64().unwrap() * 2;
            json!({"success": true, "data": double})
        };
        let own = |item: &Value| item["correlation_id"].as_str().unwrap().to_owned();
        let is_batch = body.contains("$batch");
        match (is_batch, way % 3) {
            // Each in a message of its own.
            (_, 0) | (false, _) => {
                for item in &items {
                    let one = reply_to(&body, &reply(item), Some(&own(item)));
                    link.publish(one, PATIENCE).unwrap();
                }
            }
            // All in one message.
            (true, 1) => {
                let replies = items.iter().map(
                    |item| json!({"correlation_id": own(item), "reply": reply(item), "more": 1}),
                );
                let bundle = json!({"success": true, "replies": replies.collect::<Vec<_>>()});
                link.publish(reply_to(&body, &bundle, None), PATIENCE)
                    .unwrap();
            }
            // In the batch's reply, as a peer that does not know the ids of the items.
            _ => {
                let replies: Vec<_> = items.iter().map(reply).collect();
                let all = json!({"success": true, "data": replies});
                let id = delivery.message().properties.correlation_id.clone();
                link.publish(reply_to(&body, &all, id.as_deref()), PATIENCE)
                    .unwrap();
            }
        }
        answered += items.len();
        way += 1;
        delivery.ack();
    }
    join_all(calls);
    assert_eq!(client.unclaimed_replies(), 0);
}

#[test]
fn calls_that_wait_at_the_same_time_are_coalesced() {
    for (limits, wanted) in [
        (BatchLimits::new(), vec![20]),
        (BatchLimits::new().calls(8), vec![8, 8, 4]),
        (BatchLimits::new().bytes(1), vec![1; 20]),
    ] {
        let held = Held::new(limits);
        let service = unique("peer");
        let link = serve(&rabbitmq(), &service);
        held.hold();
        let calls = call_all(&held.client, &service, 20);
        held.release(20);
        assert_eq!(sizes(&link, 20), wanted);
        join_all(calls);
        assert_eq!(held.client.in_flight(), 0);
    }
}

#[test]
fn calls_to_several_services_are_not_coalesced() {
    let held = Held::new(BatchLimits::new());
    let services = [unique("a"), unique("b")];
    let links = services
        .each_ref()
        .map(|service| serve(&rabbitmq(), service));
    held.hold();
    let calls = services
        .each_ref()
        .map(|service| call_all(&held.client, service, 10));
    let absent = call_all(&held.client, &unique("absent"), 10);
    held.release(30);
    for link in &links {
        assert_eq!(sizes(link, 10), [10]);
    }
    calls.into_iter().for_each(join_all);
    for call in absent {
        let error = call.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    }
}

#[test]
fn a_slow_call_holds_up_only_its_caller() {
    let held = Held::new(BatchLimits::new());
    let service = unique("slow");
    let mut server = GatedServer::start(&rabbitmq(), &service, 10);
    held.hold();
    let call = |action: &'static str, n: u64, options: CallOptions| {
        let (client, service) = (held.client.clone(), service.clone());
        thread::spawn(move || client.call_with::<u64>(&service, action, &n, &options))
    };
    let slow = call("wait", 1, CallOptions::new());
    let hurry = CallOptions::new().timeout(Duration::from_secs(3));
    let late = call("wait", 2, hurry);
    let quick: Vec<_> = (0..20)
        .map(|n| call("echo", n, CallOptions::new()))
        .collect();
    held.release(22);
    for (n, call) in quick.into_iter().enumerate() {
        assert_eq!(call.join().unwrap().unwrap(), n as u64);
    }
    let error = late.join().unwrap().unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Reply), "{error}");
    server.open();
    assert_eq!(slow.join().unwrap().unwrap(), 1);
}

#[test]
fn a_service_without_batches_gets_single_requests() {
    let held = Held::new(BatchLimits::new());
    let service = unique("php-service");
    let link = serve(&rabbitmq(), &service);
    held.hold();
    let calls = call_all(&held.client, &service, 10);
    held.release(10);
    answer_one(&link, |message| {
        assert_eq!(message.action, "$batch");
        r#"{"success":false,"error":"Unknown action: $batch"}"#.to_owned()
    });
    assert_eq!(sizes(&link, 10), [1; 10]);
    join_all(calls);
    // The client remembers that.
    held.hold();
    let calls = call_all(&held.client, &service, 10);
    held.release(10);
    assert_eq!(sizes(&link, 10), [1; 10]);
    join_all(calls);
    assert_eq!(held.client.in_flight(), 0);
    assert_eq!(held.client.unclaimed_replies(), 0);
}

#[test]
fn malformed_replies_to_a_batch_fail_its_calls() {
    let held = Held::new(BatchLimits::new());
    let service = unique("peer");
    let link = serve(&rabbitmq(), &service);
    for (answer, kind) in [
        (r#"{"success":true,"data":null}"#, ErrorKind::Decode),
        (r#"{"success":true,"data":[1,2]}"#, ErrorKind::Decode),
        (r#"{"success":false,"error":"no"}"#, ErrorKind::Remote),
        ("<html>", ErrorKind::Decode),
    ] {
        held.hold();
        let call = || {
            let (client, service) = (held.client.clone(), service.clone());
            thread::spawn(move || client.call::<Value>(&service, "double", &1))
        };
        let calls: Vec<_> = (0..3).map(|_| call()).collect();
        held.release(3);
        answer_one(&link, |message| {
            assert_eq!(message.action, "$batch");
            answer.to_owned()
        });
        for call in calls {
            assert_eq!(call.join().unwrap().unwrap_err().kind(), kind, "{answer}");
        }
    }
}

#[test]
fn a_lost_message_fails_each_of_its_calls() {
    let held = Held::new(BatchLimits::new());
    let service = unique("peer");
    let link = serve(&rabbitmq(), &service);
    held.hold();
    let call = |idempotent| {
        let (client, service) = (held.client.clone(), service.clone());
        let options = CallOptions::new().idempotent(idempotent);
        thread::spawn(move || client.call_with::<u64>(&service, "double", &4, &options))
    };
    let once: Vec<_> = (0..5).map(|_| call(false)).collect();
    let again: Vec<_> = (0..5).map(|_| call(true)).collect();
    held.release(10);
    let delivery = recv(&link);
    assert_eq!(items(&text(&delivery)).len(), 10);
    held.hold();
    delivery.ack();
    for call in once {
        let error = call.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    }
    held.release(5);
    assert_eq!(sizes(&link, 5).iter().sum::<usize>(), 5);
    for call in again {
        assert_eq!(call.join().unwrap().unwrap(), 8);
    }
    assert_eq!(held.client.in_flight(), 0);
}

#[test]
fn deadlines_and_the_bound_hold_while_nothing_can_be_sent() {
    let held = Held::new(BatchLimits::new());
    let service = unique("peer");
    let link = serve(&rabbitmq(), &service);
    held.hold();
    let timeout = Duration::from_millis(200);
    let options = CallOptions::new().timeout(timeout);
    let pending: Vec<_> = (0..8_192u64)
        .map(|n| {
            held.client
                .call_async_with::<u64>(&service, "double", &n, &options)
                .unwrap()
        })
        .collect();
    // One more than may wait.
    let error = in_time(timeout, "a call", || {
        held.client
            .call_with::<u64>(&service, "double", &1, &options)
    });
    let error = error.unwrap_err();
    assert_eq!(
        (error.kind(), error.phase()),
        (ErrorKind::TimedOut, Some(Phase::Send))
    );
    for call in pending {
        let error = call.wait().unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Send), "{error}");
        assert!(error.is_safe_to_retry());
    }
    // None of them is sent when there is a connection again.
    let calls = call_all(&held.client, &service, 3);
    held.release(3);
    assert_eq!(sizes(&link, 3).iter().sum::<usize>(), 3);
    join_all(calls);
}

#[test]
fn closing_ends_waiting_calls() {
    let held = Held::new(BatchLimits::new());
    held.hold();
    let calls = call_all(&held.client, "absent", 10);
    eventually("they wait", || held.client.in_flight() == 10);
    held.client.close();
    for call in calls {
        let error = call.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSent, "{error}");
    }
}
