//! `ServiceClient::call`, from both sides.

use std::thread;
use std::time::{Duration, Instant};

use coney::client::ServiceProxyFactory;
use coney::{Broker, CallOptions, ErrorKind, HandlerError, Phase, ServiceClient, ServiceServer};
use serde::{Deserialize, Serialize};

use crate::support::sleepy_service::GatedServer;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    typed_request_and_reply,
    many_threads_share_one_client,
    large_payloads_arrive_whole,
    handler_errors_reach_the_caller_with_text_and_code,
    unknown_action_is_an_error_of_its_own,
    undecodable_payload_never_reaches_the_handler,
    a_reply_of_another_type_keeps_its_raw_text,
    a_service_that_has_never_run_has_no_route,
    a_deadline_passes_while_the_handler_runs,
    expired_requests_are_not_handled,
    names_are_checked_before_anything_is_sent,
    payloads_over_the_limit_leave_the_connection_unharmed,
    calls_after_close_fail,
    a_closed_broker_fails_what_is_in_flight,
    proxies_turn_camel_case_into_actions,
    calls_in_flight_are_limited,
);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    user_id: u64,
    name: String,
}

fn typed_request_and_reply(broker: &Broker) {
    let service = unique("user-service");
    let _server = ServiceServer::builder(broker, &service)
        .respond("get_user", |user_id: u64| {
            let name = "张三 \"/\\ \u{1}".to_owned();
            User { user_id, name }
        })
        .start()
        .unwrap();
    let user: User = client(broker).call(&service, "get_user", &7).unwrap();
    assert_eq!(user.user_id, 7);
    assert_eq!(user.name, "张三 \"/\\ \u{1}");
}

fn many_threads_share_one_client(broker: &Broker) {
    let service = unique("math");
    let _server = ServiceServer::builder(broker, &service)
        .respond("double", |n: u64| n * 2)
        .start()
        .unwrap();
    let client = client(broker);
    thread::scope(|scope| {
        for thread in 0..16u64 {
            let (client, service) = (client.clone(), &service);
            scope.spawn(move || {
                for n in 0..50 {
                    let number = thread * 1_000 + n;
                    let answer: u64 = client.call(service, "double", &number).unwrap();
                    assert_eq!(answer, number * 2);
                }
            });
        }
    });
    assert_eq!(client.in_flight(), 0);
    assert_eq!(client.unclaimed_replies(), 0);
}

fn large_payloads_arrive_whole(broker: &Broker) {
    let service = unique("mirror");
    let _server = ServiceServer::builder(broker, &service)
        .respond("echo", |text: String| text)
        .start()
        .unwrap();
    let client = client(broker);
    // Around the size of a frame, where messages are cut.
    for size in [0, 1, 131_000, 131_064, 131_065, 300_000, 4 << 20] {
        let text = "x".repeat(size);
        let echo: String = client.call(&service, "echo", &text).unwrap();
        assert!(echo == text, "{size} bytes");
    }
}

fn handler_errors_reach_the_caller_with_text_and_code(broker: &Broker) {
    let service = unique("auth");
    let _server = ServiceServer::builder(broker, &service)
        .handler("validate", |token: String| {
            if token.len() < 10 {
                return Err(HandlerError::new("Invalid token").with_code("bad_token"));
            }
            Ok(true)
        })
        .handler("panic", |(): ()| -> Result<(), String> {
            panic!("a panic that the test wants")
        })
        .start()
        .unwrap();
    let client = client(broker);
    let error = client
        .call::<bool>(&service, "validate", "short")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_eq!(error.remote_message(), Some("Invalid token"));
    assert_eq!(error.remote_code(), Some("bad_token"));
    assert!(error.to_string().contains(&service), "{error}");
    for _ in 0..12 {
        // More often than there are workers: a panic kills none.
        let error = client.call::<()>(&service, "panic", &()).unwrap_err();
        assert_eq!(error.remote_code(), Some("panic"));
    }
    assert!(
        client
            .call::<bool>(&service, "validate", "long enough")
            .unwrap()
    );
}

fn unknown_action_is_an_error_of_its_own(broker: &Broker) {
    let service = unique("empty");
    let _server = ServiceServer::builder(broker, &service).start().unwrap();
    let error = client(broker)
        .call::<()>(&service, "get_user", &1)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAction);
    assert_eq!(error.remote_message(), Some("Unknown action: get_user"));
}

fn undecodable_payload_never_reaches_the_handler(broker: &Broker) {
    let service = unique("strict");
    let _server = ServiceServer::builder(broker, &service)
        .respond("get", |_: User| "reached")
        .start()
        .unwrap();
    let error = client(broker)
        .call::<String>(&service, "get", &serde_json::json!({"user_id": 1}))
        .unwrap_err();
    assert_eq!(error.remote_code(), Some("bad_request"));
    assert!(error.to_string().contains("`name`"), "{error}");
}

fn a_reply_of_another_type_keeps_its_raw_text(broker: &Broker) {
    let service = unique("typed");
    let _server = ServiceServer::builder(broker, &service)
        .respond("get", |(): ()| vec![1, 2])
        .start()
        .unwrap();
    let error = client(broker)
        .call::<User>(&service, "get", &())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert_eq!(error.raw_text(), Some("[1,2]"));
}

fn a_service_that_has_never_run_has_no_route(broker: &Broker) {
    let service = unique("absent");
    let start = Instant::now();
    let error = client(broker).call::<()>(&service, "get", &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(error.is_safe_to_retry());
    assert!(error.to_string().contains(&service), "{error}");
    assert!(start.elapsed() < PATIENCE, "it is known at once");
}

fn a_deadline_passes_while_the_handler_runs(broker: &Broker) {
    let service = unique("slow");
    let mut server = GatedServer::start(broker, &service, 1);
    let client = client(broker);
    let timeout = Duration::from_secs(1);
    let options = CallOptions::new().timeout(timeout);
    let start = Instant::now();
    let error = client
        .call_with::<u64>(&service, "wait", &600, &options)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(error.phase(), Some(Phase::Reply));
    assert!(!error.is_safe_to_retry());
    assert!(start.elapsed() >= timeout);
    assert_eq!(client.in_flight(), 0);
    // The late reply is counted and disturbs no call.
    server.open();
    eventually("the late reply", || client.unclaimed_replies() == 1);
    assert_eq!(client.call::<u64>(&service, "wait", &1).unwrap(), 1);
}

fn expired_requests_are_not_handled(broker: &Broker) {
    let service = unique("busy");
    let mut server = GatedServer::start(broker, &service, 1);
    let client = client(broker);
    let first = client.call_async::<u64>(&service, "wait", &0).unwrap();
    assert_eq!(server.starts.recv_timeout(PATIENCE), Ok(0));
    let timeout = Duration::from_secs(1);
    let hurry = CallOptions::new().timeout(timeout);
    let start = Instant::now();
    let error = client.call_with::<u64>(&service, "wait", &1, &hurry);
    assert_eq!(error.unwrap_err().phase(), Some(Phase::Reply));
    // The server counts from the arrival, which is later on a busy machine.
    eventually("it has expired there", || start.elapsed() > 4 * timeout);
    server.open();
    first.wait().unwrap();
    // The expired request was behind the first; a third one shows that the
    // worker has passed it over.
    client.call::<u64>(&service, "wait", &2).unwrap();
    assert_eq!(server.starts.recv_timeout(PATIENCE), Ok(2));
}

fn names_are_checked_before_anything_is_sent(broker: &Broker) {
    let client = client(broker);
    let long = "x".repeat(256);
    for (service, action) in [
        ("", "a"),
        ("a\0b", "a"),
        (long.as_str(), "a"),
        ("s", ""),
        ("s", "a\0"),
        ("s", long.as_str()),
    ] {
        let error = client.call::<()>(service, action, &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
    for name in ["", "a\0", long.as_str()] {
        assert!(ServiceClient::new(broker, name).is_err());
        assert!(ServiceServer::builder(broker, name).start().is_err());
        let server = ServiceServer::builder(broker, "s");
        let server = server.respond(name, |(): ()| ());
        assert_eq!(server.start().unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
}

fn payloads_over_the_limit_leave_the_connection_unharmed(broker: &Broker) {
    let service = unique("mirror");
    let _server = ServiceServer::builder(broker, &service)
        .respond("echo", |text: String| text)
        .respond("repeat", |n: usize| "x".repeat(n))
        .start()
        .unwrap();
    let client = client(broker);
    let too_large = "x".repeat(broker.max_body());
    let error = client
        .call::<String>(&service, "echo", &too_large)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
    // So close to the limit that the name of the reply queue exceeds it.
    let nearly = "x".repeat(broker.max_body() - 400);
    let error = client
        .call::<String>(&service, "echo", &nearly)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
    // A map with keys that are not strings has no JSON.
    let no_json = std::collections::HashMap::from([((1, 2), 3)]);
    let error = client
        .call::<String>(&service, "echo", &no_json)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    let error = client
        .call::<String>(&service, "repeat", &broker.max_body())
        .unwrap_err();
    assert_eq!(error.remote_code(), Some("reply_too_large"));
    let echo: String = client.call(&service, "echo", "still here").unwrap();
    assert_eq!(echo, "still here");
}

fn calls_after_close_fail(broker: &Broker) {
    let client = client(broker);
    client.close();
    let error = client.call::<()>("s", "a", &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    broker.close(PATIENCE).unwrap();
    assert_eq!(
        ServiceClient::new(broker, "late").unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        ServiceServer::builder(broker, "late")
            .start()
            .unwrap_err()
            .kind(),
        ErrorKind::Closed
    );
}

fn a_closed_broker_fails_what_is_in_flight(broker: &Broker) {
    let service = unique("slow");
    let mut server = GatedServer::start(broker, &service, 1);
    let client = client(broker);
    let pending = client.call_async::<u64>(&service, "wait", &1).unwrap();
    server.starts.recv_timeout(PATIENCE).unwrap();
    broker.close(PATIENCE).unwrap();
    assert_eq!(pending.wait().unwrap_err().kind(), ErrorKind::Closed);
    server.open();
}

fn proxies_turn_camel_case_into_actions(broker: &Broker) {
    let service = unique("user-service");
    let _server = ServiceServer::builder(broker, &service)
        .respond("get_user", |id: u64| id)
        .start()
        .unwrap();
    let users = ServiceProxyFactory::new(client(broker)).create(&service);
    assert_eq!(users.call::<u64>("getUser", &3).unwrap(), 3);
    assert_eq!(users.call::<u64>("GetUser", &4).unwrap(), 4);
    let pending = users.call_async::<u64>("getUser", &5).unwrap();
    assert_eq!(pending.wait().unwrap(), 5);
}

fn calls_in_flight_are_limited(broker: &Broker) {
    let service = unique("slow");
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let _server = ServiceServer::builder(broker, &service)
        .respond("wait", move |(): ()| {
            let _ = gate.recv();
        })
        .start()
        .unwrap();
    let client = ServiceClient::builder(broker, "order-service")
        .timeout(PATIENCE)
        .max_in_flight(2)
        .build()
        .unwrap();
    let first = client.call_async::<()>(&service, "wait", &()).unwrap();
    let second = client.call_async::<()>(&service, "wait", &()).unwrap();
    let error = client.call::<()>(&service, "wait", &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.is_safe_to_retry());
    drop(release);
    first.wait().unwrap();
    second.wait().unwrap();
    client.call::<()>(&service, "wait", &()).unwrap();
}
