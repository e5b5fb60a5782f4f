//! A process for the tests to kill (`tests/it/support/process.rs`):
//!
//!     test_service serve AMQP_URL SERVICE
//!     test_service register REDIS_URL ID
//!
//! and for tests of things that a process has one of, such as its logger or its memory:
//!
//!     test_service trace AMQP_URL SERVICE
//!     test_service log AMQP_URL|memory SERVICE
//!     test_service panic SERVICE
//!     test_service flood AMQP_URL SERVICE
//!     test_service fork AMQP_URL SERVICE
//!     test_service overdue SERVICE

mod overdue;
mod panicking_logger;
mod sent;
mod unbatched;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use coney::batch::BatchLimits;
use coney::{
    Broker, CallOptions, ConnectionState, Context, DeadLetters, ErrorKind, EventPublisher,
    EventSubscriber, HandlerError, PublishOptions, SendOptions, ServiceClient, ServiceServer,
};
use parking_lot::Mutex;

fn main() -> coney::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", url, service] => until_it_is_killed(&serve(url, service)?),
        #[cfg(feature = "redis")]
        ["register", url, id] => until_it_is_killed(&register(url, id)?),
        ["trace", url, service] => trace(url, service),
        ["log", url, service] => log(url, service),
        ["panic", service] => {
            println!("ready");
            panicking_logger::outlive(&Broker::memory(), service)?;
            println!("outlived");
            until_it_is_killed(&())
        }
        ["flood", url, service] => flood(url, service),
        ["fork", url, service] => forked(url, service),
        ["overdue", service] => overdue_handler(service),
        _ => panic!("unknown arguments {arguments:?}; the top of this file lists them"),
    }
}

fn until_it_is_killed<T>(_keep: &T) -> ! {
    println!("ready");
    loop {
        thread::sleep(Duration::from_secs(3_600));
    }
}

fn serve(url: &str, service: &str) -> coney::Result<ServiceServer> {
    ServiceServer::builder(&Broker::connect(url)?, service)
        .workers(2)
        .redelivery_limit(1)
        .respond_with_context("work", |context: &Context<'_>, n: u64| {
            println!("work {n} {}", context.is_redelivered());
            n
        })
        .respond_with_context("sleep", |context: &Context<'_>, (): ()| {
            println!("sleep {}", context.is_redelivered());
            if !context.is_redelivered() {
                thread::sleep(Duration::from_secs(3_600));
            }
        })
        .handler("abort", |(): ()| -> Result<(), HandlerError> {
            println!("abort");
            std::process::abort()
        })
        .start()
}

/// Registers with the timing of `tests/it/support/registry.rs`, and counts as dead
/// after two seconds.
#[cfg(feature = "redis")]
fn register(url: &str, id: &str) -> coney::Result<coney::registry::Registration> {
    let redis = coney::redis::Redis::builder(url)
        .timeout(Duration::from_secs(1))
        .build()?;
    let store = redis
        .registry_store()
        .with_heartbeat_ttl(Duration::from_secs(2));
    let registry = coney::Registry::builder(store)
        .heartbeat_interval(Duration::from_millis(100))
        .build()?;
    registry.register("web", coney::Instance::new().with_id(id))
}

/// A logger that keeps every line.
struct Recorder(Mutex<Vec<(String, String)>>);

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = (record.target().to_owned(), record.args().to_string());
        self.0.lock().push(line);
    }

    fn flush(&self) {}
}

static RECORDER: Recorder = Recorder(Mutex::new(Vec::new()));

/// Uses secrets in every way, and then asserts that no log line contains them.
fn trace(url: &str, service: &str) -> coney::Result<()> {
    const SECRETS: [&str; 2] = ["payload-secret", "header-secret"];
    log::set_logger(&RECORDER).expect("there is no other");
    log::set_max_level(log::LevelFilter::Trace);
    println!("ready");
    let broker = Broker::connect(url)?;
    let server = ServiceServer::builder(&broker, service)
        .retry_delays([Duration::from_millis(10)])
        .respond("echo", |text: String| text)
        .handler("fail", |_: String| Err::<(), _>("it fails"))
        .handler("panic", |_: String| -> Result<(), HandlerError> {
            panic!("it panics")
        })
        .start()?;
    let client = ServiceClient::new(&broker, "trace")?;
    let options = CallOptions::new().header("token", SECRETS[1]);
    println!("{options:?}");
    assert!(!format!("{options:?}").contains(SECRETS[1]));
    let _: String = client.call_with(service, "echo", SECRETS[0], &options)?;
    for action in ["fail", "panic", "unknown"] {
        let error = client.call_with::<()>(service, action, SECRETS[0], &options);
        let error = error.expect_err("it does");
        assert!(!format!("{error} {error:?}").contains(SECRETS[0]));
        let options = SendOptions::new().header("token", SECRETS[1]);
        client.send_with(service, action, SECRETS[0], &options)?;
    }
    client
        .call_with::<u64>(service, "echo", SECRETS[0], &options)
        .expect_err("no number");
    let options = PublishOptions::new().header("token", SECRETS[1]);
    EventPublisher::new(&broker, "trace")?.publish_with("trace.test", SECRETS[0], &options)?;
    server.drain(Duration::from_secs(60))?;
    for letter in DeadLetters::open(&broker)?.list(10)? {
        assert!(!format!("{letter:?} {:?}", letter.properties()).contains(SECRETS[1]));
    }
    broker.close(Duration::from_secs(5))?;
    let lines = RECORDER.0.lock();
    assert!(
        lines
            .iter()
            .any(|(target, _)| target.starts_with("amiquip"))
    );
    for (target, line) in lines.iter() {
        assert!(
            !line.contains("hunter2-secret"),
            "{target}: the password: {line}"
        );
        let is_ours = target.starts_with("coney");
        assert!(
            !is_ours || !SECRETS.iter().any(|it| line.contains(it)),
            "{target}: {line}"
        );
    }
    println!("no secret in {} lines", lines.len());
    until_it_is_killed(&())
}

/// A logger that makes a call for each line, and ends the process if coney calls it on an I/O
/// thread.
struct Publisher;

static CLIENT: OnceLock<(ServiceClient, String)> = OnceLock::new();

thread_local! {
    static IS_LOGGING: Cell<bool> = const { Cell::new(false) };
}

impl log::Log for Publisher {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let current = thread::current();
        let is_io = current.name().is_some_and(|it| it.starts_with("coney-io-"));
        if is_io && record.target().starts_with("coney") {
            println!("an I/O thread logs: {}", record.args());
            std::process::exit(1);
        }
        let Some((client, service)) = CLIENT.get() else {
            return;
        };
        // Lines that the call itself logs are not logged again.
        if IS_LOGGING.replace(true) {
            return;
        }
        let options = CallOptions::new().timeout(Duration::from_secs(15));
        let begin = Instant::now();
        let line = record.args().to_string();
        let result = client.call_with::<usize>(service, "log", &line, &options);
        IS_LOGGING.set(false);
        match result {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Misuse => {}
            Err(error) => panic!("{}: {error}", record.target()),
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    fn flush(&self) {}
}

fn log(url: &str, service: &str) -> coney::Result<()> {
    let connect = || match url {
        "memory" => Ok(Broker::memory()),
        url => Broker::connect(url),
    };
    let broker = connect()?;
    println!("ready");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let server = ServiceServer::builder(&broker, service)
        .respond("log", move |line: String| {
            counted.fetch_add(1, Ordering::SeqCst);
            line.len()
        })
        .start()?;
    let client = ServiceClient::builder(&broker, "log")
        .coalesce(BatchLimits::new())
        .timeout(Duration::from_secs(60))
        .build()?;
    let _ = CLIENT.set((client.clone(), service.to_owned()));
    log::set_logger(&Publisher).expect("there is no other");
    // At `trace` amiquip logs each frame, on its own thread: there a call fails at once.
    log::set_max_level(log::LevelFilter::Trace);
    for n in 0..20 {
        let options = CallOptions::new().timeout(Duration::from_secs(60));
        let length: usize = client.call_with(service, "log", &format!("call {n}"), &options)?;
        assert_eq!(length, format!("call {n}").len());
        // A reply that is not waited for any more is logged where it arrives.
        drop(client.call_async::<usize>(service, "log", "late")?);
    }
    let coalesced = unbatched::call_services(&broker, &client, service)?;
    assert!(coalesced > 0 || url == "memory", "nothing was coalesced");
    let another = connect()?;
    let subscriber = EventSubscriber::builder(&another, service)
        .listen("log.test", |(): ()| ())
        .start()?;
    another.close(Duration::from_secs(10))?;
    drop(subscriber);
    // The drained server answers no call, and none of the logger.
    log::set_max_level(log::LevelFilter::Off);
    server.drain(Duration::from_secs(60))?;
    println!("logged {}", count.load(Ordering::SeqCst));
    until_it_is_killed(&())
}

/// Asserts that a handler that takes too long is logged once.
fn overdue_handler(service: &str) -> coney::Result<()> {
    log::set_logger(&RECORDER).expect("there is no other");
    log::set_max_level(log::LevelFilter::Warn);
    println!("ready");
    overdue::is_logged_once(service, || {
        let lines = RECORDER.0.lock();
        lines.iter().map(|(_, line)| line.clone()).collect()
    })?;
    println!("logged once");
    until_it_is_killed(&())
}

/// A request that one thread at a time encodes. A thousand that encode at once hold as many bodies,
/// before any of them asks for room in the send queue.
struct EncodedInTurn(String);

impl serde::Serialize for EncodedInTurn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock();
        serializer.serialize_str(&self.0)
    }
}

/// Calls from a thousand threads with large requests, and measures the memory.
fn flood(url: &str, service: &str) -> coney::Result<()> {
    const CALLERS: usize = 1_000;
    let (sent, losses) = crossbeam_channel::unbounded();
    let broker = Broker::builder(url)
        .on_state_change(move |state| {
            if matches!(state, ConnectionState::Lost(_)) {
                let _ = sent.send(());
            }
        })
        .connect()?;
    let client = ServiceClient::new(&broker, "flood")?;
    let body = EncodedInTurn("x".repeat(200 << 10));
    let before = resident_mib();
    println!("ready");
    let loss = losses.recv_timeout(Duration::from_secs(60));
    loss.expect("the test cuts the connection");
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            let (client, body) = (client.clone(), &body);
            let call = move || {
                let options = CallOptions::new().timeout(Duration::from_secs(8));
                let error = client.call_with::<()>(service, "x", body, &options);
                let error = error.expect_err("nothing listens");
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            };
            let builder = thread::Builder::new().stack_size(256 << 10);
            builder.spawn_scoped(scope, call).expect("a thread");
        }
    });
    // The peak contains the budget of 32 MiB and the memory of a thousand threads.
    let peak = peak_mib() - before;
    assert!(peak <= 160, "{peak} MiB");
    println!("bounded: {peak} MiB");
    until_it_is_killed(&())
}

/// Forks, and asserts that the parent's connection fails at once in the child, and is not
/// affected when the child drops it.
fn forked(url: &str, service: &str) -> coney::Result<()> {
    let losses = Arc::new(AtomicUsize::new(0));
    let lost = Arc::clone(&losses);
    let broker = match url {
        "memory" => Ok(Broker::memory()),
        url => Broker::builder(url)
            .on_state_change(move |state| {
                let is_loss = matches!(state, ConnectionState::Lost(_));
                lost.fetch_add(usize::from(is_loss), Ordering::SeqCst);
            })
            .connect(),
    }?;
    let server = ServiceServer::builder(&broker, service)
        .respond("work", |n: u64| n)
        .start()?;
    let client = ServiceClient::new(&broker, "fork")?;
    println!("ready");
    for _ in 0..100 {
        // Their replies arrive while the process forks: some thread holds a lock then.
        let before = (0..20u64).map(|n| client.call_async::<u64>(service, "work", &n));
        let before = before.collect::<coney::Result<Vec<_>>>()?;
        let sent = sent::Sent::start(&client, service)?;
        let child = match fork::fork().expect("a child") {
            fork::Fork::Parent(child) => child,
            fork::Fork::Child => {
                let begin = Instant::now();
                let error = client.call::<u64>(service, "work", &1);
                let error = error.expect_err("it has no threads");
                assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
                let errors = before.into_iter().map(|it| it.wait().expect_err("is lost"));
                for error in errors.chain(sent.errors_in_child()) {
                    assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
                    assert!(!error.is_safe_to_retry(), "the parent has sent it");
                }
                drop((client, server, broker));
                assert!(begin.elapsed() < Duration::from_secs(20));
                std::process::exit(0)
            }
        };
        let status = fork::waitpid(child).expect("it ends");
        assert!(fork::WIFEXITED(status) && fork::WEXITSTATUS(status) == 0);
        for (n, pending) in (0..).zip(before) {
            assert_eq!(pending.wait()?, n);
        }
        sent.wait()?;
    }
    for n in 0..10 {
        assert_eq!(client.call::<u64>(service, "work", &n)?, n);
    }
    assert_eq!(losses.load(Ordering::SeqCst), 0);
    drop(server);
    println!("apart");
    until_it_is_killed(&())
}

fn resident_mib() -> u64 {
    status_mib("VmRSS:")
}

fn peak_mib() -> u64 {
    status_mib("VmHWM:")
}

fn status_mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}
