//! Brokers, clients and waiting for events, shared by the tests.

pub mod coalescing_client;
pub mod dead_letters;
pub mod events;
pub mod gate;
pub mod instance_echo;
pub mod math;
pub mod outage;
pub mod peer;
pub mod process;
pub mod proxy;
pub mod raw_amqp;
#[cfg(feature = "redis")]
pub mod registry;
pub mod retrying;
pub mod scripted_service;
pub mod server;
pub mod sleepy_service;
pub mod timing;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coney::{Broker, ServiceClient};

/// A timeout that is long enough for a busy machine. A test that passes does not wait for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Defines each test twice: `memory::name`, and `rabbitmq::name` in a virtual host of its own.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[test] fn $name() { super::$name(&coney::Broker::memory()); })+
        }
        mod rabbitmq {
            $(#[test] fn $name() { super::$name(&crate::support::own_rabbitmq()); })+
        }
    };
}
pub(crate) use on_both;

/// Returns the URL of the RabbitMQ that `tests/run` has started for this run, with its virtual
/// host `/`: for tests that do not read dead letters. Without it tests fail; they never use
/// another server that happens to run.
pub fn amqp_url() -> String {
    std::env::var("CONEY_TEST_AMQP_URL")
        .expect("CONEY_TEST_AMQP_URL is not set: run the tests with tests/run")
}

pub fn rabbitmq() -> Broker {
    patient(&amqp_url()).expect("the test's RabbitMQ takes connections")
}

/// Returns the URL of the shared RabbitMQ with a virtual host that no other test has: it has
/// its own dead letters.
pub fn own_amqp_url() -> String {
    own_virtual_host().0
}

/// Connects to a virtual host that no other test has.
pub fn own_rabbitmq() -> Broker {
    own_virtual_host().1
}

fn own_virtual_host() -> (String, Broker) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let url = format!("{}/test-{number}", amqp_url());
    let broker = patient(&url).unwrap_or_else(|error| {
        panic!(
            "the test's RabbitMQ takes no connection to the virtual host test-{number}; if it \
             has too few, raise --vhosts of tests/servers/rabbitmq in tests/run: {error}"
        )
    });
    (url, broker)
}

fn patient(url: &str) -> coney::Result<Broker> {
    Broker::builder(url).connect_timeout(PATIENCE).connect()
}

/// Returns the URL of the shared Redis of this run.
#[cfg(feature = "redis")]
pub fn redis_url() -> String {
    std::env::var("CONEY_TEST_REDIS_URL")
        .expect("CONEY_TEST_REDIS_URL is not set: run the tests with tests/run")
}

/// Connects with fast reconnects. A broker that is silent for two seconds is given up, as it
/// may be on a busy machine: for tests in which connections may be lost at any time.
pub fn quick(url: &str) -> Broker {
    Broker::builder(url)
        .reconnect_delays(Duration::from_millis(20), Duration::from_millis(200))
        .operation_timeout(Duration::from_secs(2))
        .connect_timeout(Duration::from_secs(10))
        .heartbeat(Duration::from_secs(1))
        .connect()
        .expect("the test's RabbitMQ takes connections")
}

/// Connects with fast reconnects, and keeps a connection to a broker that is silent because the
/// machine is busy: for tests that lose a connection on purpose, and no other.
pub fn steady(url: &str) -> Broker {
    Broker::builder(url)
        .reconnect_delays(Duration::from_millis(20), Duration::from_millis(200))
        .operation_timeout(PATIENCE)
        .connect_timeout(PATIENCE)
        .heartbeat(PATIENCE)
        .connect()
        .expect("the test's RabbitMQ takes connections")
}

/// Returns a name that no other test uses: RabbitMQ's queues outlive a test.
pub fn unique(name: &str) -> String {
    format!("{name}-{:016x}", fastrand::u64(..))
}

pub fn client(broker: &Broker) -> ServiceClient {
    ServiceClient::builder(broker, "order-service")
        .timeout(PATIENCE)
        .build()
        .expect("a client")
}

/// Blocks until a condition is true; fails the test if it stays false.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
