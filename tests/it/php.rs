//! Peers in PHP, on php-amqplib and php-redis: they implement the wire contract without coney.

use std::path::PathBuf;
use std::process::{Command, Output};

use coney::{EventPublisher, EventSubscriber, ServiceServer};
use crossbeam_channel::unbounded;
use serde_json::{Value, json};

use crate::support::process::Process;
use crate::support::{PATIENCE, amqp_url, client, rabbitmq, unique};

fn script(name: &str) -> String {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/php"));
    dir.join(name).to_str().unwrap().to_owned()
}

/// Runs a script to its end; returns its line of output.
fn php(name: &str, arguments: &[&str]) -> String {
    let output: Output = Command::new("php")
        .arg(script(name))
        .args(arguments)
        .output()
        .expect("tests/run installs PHP");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn php_client(arguments: &[&str]) -> Value {
    let url = amqp_url();
    let line = php("client.php", &[&[&*url], arguments].concat());
    serde_json::from_str(&line).expect(&line)
}

#[test]
fn a_php_client_calls_us() {
    let service = unique("user-service");
    let broker = rabbitmq();
    let (ran, runs) = unbounded();
    let server = ServiceServer::builder(&broker, &service)
        .respond("echo", |value: Value| value)
        .handler("fail", |_: Value| Err::<(), _>("no luck"))
        .respond("note", move |n: u64| {
            ran.send(n).unwrap();
        })
        .start()
        .unwrap();
    let call = |action: &str, payload: &str, option: &[&str]| {
        php_client(&[&["php", &*service, action, payload], option].concat())
    };
    let text = r#"{"name":"张三 😀","path":"a/b","empty":[]}"#;
    let sent: Value = serde_json::from_str(text).unwrap();
    for option in [&[][..], &["--async"], &["--direct"]] {
        let reply = call("echo", text, option);
        assert_eq!(
            (&reply["success"], &reply["data"]),
            (&json!(true), &sent),
            "{option:?}"
        );
        assert!(reply["message_id"].as_str().unwrap().starts_with("msg_"));
    }
    let reply = call("fail", "null", &[]);
    assert_eq!(
        (&reply["success"], &reply["error"]),
        (&json!(false), &json!("no luck"))
    );
    let reply = call("get_user", "1", &[]);
    assert_eq!(reply["error"], "Unknown action: get_user");
    let sent = php(
        "client.php",
        &[&amqp_url(), "php", &service, "note", "7", "--send"],
    );
    assert_eq!(sent, "sent");
    assert_eq!(runs.recv_timeout(PATIENCE), Ok(7));
    server.drain(PATIENCE).unwrap();
}

#[test]
fn we_call_a_php_server() {
    let service = unique("php-service");
    let url = amqp_url();
    let server = Process::run("php", &[&script("server.php"), &url, &service]);
    let client = client(&rabbitmq());
    assert_eq!(client.call::<i64>(&service, "double", &21).unwrap(), 42);
    let text: String = client.call(&service, "echo", "张三 a/b").unwrap();
    assert_eq!(text, "张三 a/b");
    let error = client.call::<()>(&service, "fail", &()).unwrap_err();
    assert_eq!(error.remote_message(), Some("no luck"));
    let error = client.call::<()>(&service, "nope", &()).unwrap_err();
    assert_eq!(error.kind(), coney::ErrorKind::UnknownAction);
    client.send(&service, "echo", &1).unwrap();
    server.wait_for("handled nope");
    server.wait_for("handled echo");
    // The items of a batch are sent one by one to a peer that does not know it.
    let mut batch = client.batch(&service);
    for n in 0..20i64 {
        batch.add::<i64>("double", &n);
    }
    let replies = batch.call().into_results::<i64>();
    let doubled: Vec<i64> = replies.into_iter().map(Result::unwrap).collect();
    assert_eq!(doubled, (0..20).map(|n| 2 * n).collect::<Vec<_>>());
}

#[test]
fn events_go_both_ways() {
    let name = unique("order").replace('-', ".");
    let url = amqp_url();
    let service = unique("php-service");
    let php_server = Process::run(
        "php",
        &[&script("server.php"), &url, &service, "--events", &name],
    );
    let (ran, events) = unbounded();
    let broker = rabbitmq();
    let _subscriber = EventSubscriber::builder(&broker, &unique("ours"))
        .listen(&name, move |event: Value| {
            ran.send(event).unwrap();
        })
        .start()
        .unwrap();
    let published = php(
        "client.php",
        &[&url, "php", "--event", &name, r#"{"id":7}"#],
    );
    assert_eq!(published, "published");
    assert_eq!(events.recv_timeout(PATIENCE), Ok(json!({"id": 7})));
    php_server.wait_for(&format!(r#"event {name} {{"id":7}}"#));
    let publisher = EventPublisher::new(&broker, "ours").unwrap();
    publisher.publish(&name, &json!({"id": 8})).unwrap();
    php_server.wait_for(&format!(r#"event {name} {{"id":8}}"#));
}

#[cfg(feature = "redis")]
#[test]
fn the_registry_is_shared() {
    use crate::support::registry::{ids, registry};

    let redis = crate::support::server::Server::redis();
    let url = redis.url();
    let here = registry(url, std::time::Duration::from_secs(60));
    assert_eq!(
        php(
            "registry.php",
            &[url, "register", "web", "php-1", "10.0.0.5", "80"]
        ),
        "registered"
    );
    let ours = here
        .register("web", coney::Instance::new().with_id("ours"))
        .unwrap();
    assert_eq!(
        php("registry.php", &[url, "list", "web"]),
        r#"["ours","php-1"]"#
    );
    assert_eq!(ids(&here.refresh("web").unwrap()), ["ours", "php-1"]);
    assert_eq!(
        php("registry.php", &[url, "heartbeat", "web", "php-1"]),
        "heartbeat"
    );
    assert_eq!(
        php("registry.php", &[url, "deregister", "web", "php-1"]),
        "deregistered"
    );
    assert_eq!(
        ids(&here.refresh("web").unwrap()),
        ["ours"],
        "what a peer takes out is out"
    );
    // After a peer has removed ours as dead, it is registered again.
    assert_eq!(
        php("registry.php", &[url, "deregister", "web", "ours"]),
        "deregistered"
    );
    crate::support::eventually("it is registered again", || {
        php("registry.php", &[url, "list", "web"]) == r#"["ours"]"#
    });
    drop(ours);
    assert_eq!(php("registry.php", &[url, "list", "web"]), "[]");
}
