//! The examples, run as a user would.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use coney::{Broker, EventSubscriber};
use crossbeam_channel::unbounded;

use crate::support::events::recv_n;
use crate::support::outage::create_last_queue;
use crate::support::server::Server;
use crate::support::{amqp_url, client, eventually, own_amqp_url, process, redis_url, unique};

pub fn example(name: &str) -> Command {
    let mut command = Command::new(process::example(name));
    for variable in ["AMQP_URL", "REDIS_URL", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command
}

pub fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn check_quickstart(text: &str) {
    for wanted in [
        "getUser(1001) = User { user_id: 1001, name: \"张三\"",
        "TokenState { valid: true }",
        "callback: 张三",
        "Remote, not safe",
        "Invalid token",
        "UnknownAction",
        "TimedOut",
        "NoRoute, safe to retry",
        "found: ",
        "asked it alone: 张三",
        "NoInstance, safe to retry",
        "done",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
}

#[test]
fn quickstart_in_memory() {
    check_quickstart(&stdout(&example("quickstart").output().unwrap()));
}

#[test]
fn quickstart_over_rabbitmq_and_redis() {
    let mut command = example("quickstart");
    command
        .env("AMQP_URL", amqp_url())
        .env("REDIS_URL", redis_url());
    check_quickstart(&stdout(&command.output().unwrap()));
}

/// A `user_service` that has printed `ready`.
struct Service {
    process: Child,
    url: String,
    name: String,
}

impl Service {
    fn start() -> Self {
        let (url, name) = (own_amqp_url(), unique("user-service"));
        let mut process = example("user_service")
            .args(["--amqp-url", &url, "--service", &name])
            .args(["--workers", "3", "--prefetch", "5"])
            .args(["--redis-url", &redis_url()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self { process, url, name }
    }

    fn call(&self, arguments: &[&str]) -> Command {
        let mut command = example("call");
        command.args(["--amqp-url", &self.url, &self.name]);
        command.args(arguments);
        command
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_shop_balances_in_memory() {
    let shop = stdout(
        &example("ecommerce")
            .args(["--orders", "100"])
            .output()
            .unwrap(),
    );
    assert!(shop.contains("the books balance"), "{shop}");
    assert!(shop.contains("100 orders: "), "{shop}");
    assert!(shop.contains("5 dead letters"), "{shop}");
}

#[test]
fn the_shop_balances_over_a_broker_that_restarts() {
    let mut rabbit = Server::rabbitmq();
    let redis = Server::redis();
    let (sent, created) = unbounded();
    let broker = Broker::connect(rabbit.url()).unwrap();
    let observer = EventSubscriber::builder(&broker, "observer")
        .on("order.created", move |order: serde_json::Value| {
            sent.send(order)
        })
        .start()
        .unwrap();
    let mut shop = example("ecommerce")
        .args(["--orders", "400", "--customers", "8"])
        .args(["--amqp-url", rabbit.url(), "--redis-url", redis.url()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(shop.stdout.take().unwrap()).lines();
    let mut line = || lines.next().and_then(Result::ok);
    while !line().expect("it begins").contains("orders by") {}
    recv_n(&created, 20);
    drop(observer);
    create_last_queue(&broker);
    assert!(shop.try_wait().unwrap().is_none(), "in the middle of it");
    rabbit.kill();
    rabbit.start_again();
    let text: Vec<String> = std::iter::from_fn(line).collect();
    let text = text.join("\n");
    assert!(shop.wait().unwrap().success(), "{text}");
    assert!(text.contains("the books balance"), "{text}");
}

#[test]
fn user_service_and_call() {
    let service = Service::start();
    let reply = |arguments: &[&str]| stdout(&service.call(arguments).output().unwrap());
    let user = reply(&["get_user", r#"{"user_id":1001}"#]);
    let user: serde_json::Value = serde_json::from_str(&user).unwrap();
    assert_eq!(user["user_id"], 1001);
    assert_eq!(user["name"], "张三");
    assert_eq!(
        reply(&["echo", r#"[1,{"a":"张"}]"#]),
        "[1,{\"a\":\"张\"}]\n"
    );
    assert_eq!(reply(&["sleep", r#"{"ms":1}"#]), "null\n");
    let summary = reply(&["echo", "1", "--repeat", "50", "--callers", "4"]);
    assert!(summary.starts_with("50 calls in "), "{summary}");

    for (arguments, code, kind) in [
        (vec!["fail", r#"{"error":"boom"}"#], 14, "Remote: "),
        (
            vec!["validate_token", r#"{"token":"short"}"#],
            14,
            "Invalid token",
        ),
        (vec!["fly", "1"], 15, "UnknownAction: "),
        (
            vec!["sleep", r#"{"ms":500}"#, "--timeout-ms", "50"],
            12,
            "TimedOut: ",
        ),
        (
            vec!["sleep", "1", "--amqp-url", "amqp://127.0.0.1:1"],
            20,
            "Connect: ",
        ),
        (
            vec!["sleep", "1", "--amqp-url", "nonsense"],
            19,
            "InvalidConfig: ",
        ),
        (vec!["sleep", "no json"], 2, "error: "),
    ] {
        let mut command = example("call");
        if !arguments.contains(&"--amqp-url") {
            command.args(["--amqp-url", &service.url]);
        }
        let output = command
            .arg(&service.name)
            .args(&arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {stderr}");
        assert!(stderr.contains(kind), "{arguments:?} {stderr}");
    }
    let absent = example("call")
        .args(["--amqp-url", &service.url, &unique("absent"), "a", "1"])
        .output()
        .unwrap();
    assert_eq!(absent.status.code(), Some(10));
}

#[test]
fn services_shows_what_is_registered() {
    let service = Service::start();
    let services = |arguments: &[&str]| {
        let mut command = example("services");
        command.env("REDIS_URL", redis_url()).args(arguments);
        stdout(&command.output().unwrap())
    };
    let table = services(&[]);
    let row = table.lines().find(|line| line.contains(&service.name));
    let row = row.unwrap_or_else(|| panic!("it is not in {table}"));
    assert!(table.starts_with("SERVICE"), "{table}");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[3..7], ["s", "ago", "well", "0.1.0"], "{row}");
    let lines = services(&["--json", "--service", &service.name]);
    let instance: serde_json::Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(instance["service"], service.name.as_str());
    assert_eq!(instance["healthy"], true);
    assert_eq!(instance["actions"][0], "echo");
    assert_eq!(instance["pid"], service.process.id());
    service.signal("TERM");
    eventually("it is deregistered", || {
        !services(&[]).contains(&service.name)
    });
}

#[test]
fn user_service_drains_on_sigterm_and_sigint() {
    for signal in ["TERM", "INT"] {
        let mut service = Service::start();
        let client = client(&Broker::connect(&service.url).unwrap());
        let nap = serde_json::json!({"ms": 1_000});
        let running = client
            .call_async::<()>(&service.name, "sleep", &nap)
            .unwrap();
        // Behind it in the queue: when this is answered, the other has been fetched.
        let echo: u64 = client.call(&service.name, "echo", &1).unwrap();
        assert_eq!(echo, 1);
        service.signal(signal);
        assert!(service.process.wait().unwrap().success(), "it exits with 0");
        running.wait().expect("the running call is answered");
    }
}

#[test]
fn a_request_id_is_in_the_log_lines_of_both_services() {
    let text = stdout(&example("request_id").output().unwrap());
    let lines: Vec<&str> = text.lines().collect();
    let wanted = [
        "[r-1] order-service: the total of [7, 8]",
        "[r-1] price-service: the price of 7",
        "[r-1] price-service: the price of 8",
        "r-1: 1500",
        "[r-2] order-service: the total of [9]",
        "[r-2] price-service: the price of 9",
        "r-2: 900",
    ];
    assert_eq!(lines, wanted);
}

/// Runs the example, and compares the rows of the table at its end.
fn check_resilience(command: &mut Command) {
    let text = stdout(&command.args(["--seconds", "4"]).output().unwrap());
    let lines = |condition: &str| {
        let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(condition);
        text.lines().filter(is_it).collect::<Vec<_>>()
    };
    // Both runs go through the whole schedule.
    for (condition, ticks) in [
        ("well", 3),
        ("flaky", 1),
        ("slow", 2),
        ("overloaded", 3),
        ("gone", 3),
        ("back", 2),
    ] {
        assert_eq!(lines(condition).len(), 2 * ticks, "{condition}: {text}");
    }
    let row = |name: &str| -> [u64; 6] {
        let start = format!("| {name} resilience");
        let row = text.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row {name} in {text}"));
        let cells = row.split('|').skip(2).take(6);
        let numbers: Vec<u64> = cells.map(|it| it.trim().parse().unwrap()).collect();
        numbers.try_into().unwrap()
    };
    let [customers, served, stale, fallback, failed, turned_away] = row("without");
    let answered = served + stale + fallback;
    assert_eq!((stale, fallback), (0, 0), "{text}");
    assert_eq!(answered + failed + turned_away, customers, "{text}");
    assert!(failed > 0 && turned_away > 0, "{text}");
    let [customers, served, stale, fallback, failed, turned_away] = row("with");
    assert_eq!(
        served + stale + fallback + failed + turned_away,
        customers,
        "{text}"
    );
    assert!(served + stale + fallback > answered, "{text}");
    assert_eq!(failed, 0, "the fallback stands in: {text}");
    let is_open = |line: &&str| line.split_whitespace().any(|word| word.ends_with("open"));
    assert!(lines("gone").iter().any(is_open), "{text}");
}

#[test]
fn more_customers_are_answered_with_resilience_in_memory() {
    check_resilience(&mut example("resilience"));
}

#[test]
fn more_customers_are_answered_with_resilience_over_rabbitmq() {
    check_resilience(example("resilience").env("AMQP_URL", own_amqp_url()));
}

#[test]
fn dead_letters_are_listed_shown_replayed_and_purged() {
    let service = Service::start();
    let dead = |arguments: &[&str]| {
        let mut command = example("dead_letters");
        command.env("AMQP_URL", &service.url).args(arguments);
        stdout(&command.output().unwrap())
    };
    let by_service = ["--service", service.name.as_str()];
    // user_service has no such action, so the command dies at once.
    stdout(
        &service
            .call(&["no_such_action", "7", "--send"])
            .output()
            .unwrap(),
    );
    let mut line = String::new();
    eventually("it is listed", || {
        let list = dead(&["list", "--limit", "100000"]);
        let found = list.lines().find(|line| line.contains(&service.name));
        line = found.unwrap_or_default().to_owned();
        found.is_some()
    });
    assert!(
        line.contains("no_such_action  no_handler after 1 attempt"),
        "{line}"
    );
    let id = line.split_whitespace().next().unwrap();
    let mut letter = String::new();
    eventually("it is shown", || {
        let mut show = example("dead_letters");
        show.env("AMQP_URL", &service.url).args(["show", id]);
        let output = show.output().unwrap();
        letter = String::from_utf8(output.stdout).unwrap();
        output.status.success()
    });
    for wanted in [
        "sent by      call",
        "Unknown action: no_such_action",
        "\"payload\":7",
    ] {
        assert!(letter.contains(wanted), "{wanted:?} is not in {letter}");
    }
    let replay = [&["replay", "--per-second", "100"], &by_service[..]].concat();
    eventually("it is replayed", || dead(&replay).contains("1 replayed"));
    let purge = [&["purge"], &by_service[..]].concat();
    eventually("it has died again, and is purged", || {
        dead(&purge).contains("1 purged")
    });
}
