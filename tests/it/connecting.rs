//! Connections that cannot be made: a clear error, in time, without secrets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use coney::{Broker, ConnectionState, ErrorKind};
use crossbeam_channel::unbounded;

use crate::support::proxy::{Mode, Proxy};
use crate::support::timing::in_time;
use crate::support::{PATIENCE, amqp_url, rabbitmq};

/// Connects with a timeout of a second, and asserts that this fails in time.
fn refused(url: &str, kind: ErrorKind, wanted: &[&str]) {
    let timeout = Duration::from_secs(1);
    let error = in_time(timeout, "a connection", || {
        Broker::builder(url).connect_timeout(timeout).connect()
    });
    let error = error.unwrap_err();
    let text = format!("{error} {error:?}");
    assert_eq!(error.kind(), kind, "{text}");
    for part in wanted {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("hunter2"), "the password is in {text}");
}

/// Starts a listener whose first connection is handled by `serve`, and keeps open what that
/// returns.
fn listener<T>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let _kept = serve(listener.accept().unwrap().0);
        loop {
            thread::park();
        }
    });
    format!("amqp://guest:hunter2@{address}")
}

#[test]
fn urls_that_cannot_be_used() {
    refused("", ErrorKind::InvalidConfig, &["amqp://user:password@host"]);
    refused("http://u:hunter2@h", ErrorKind::InvalidConfig, &["http"]);
    refused(
        "amqp://u:hunter2@h:port",
        ErrorKind::InvalidConfig,
        &["port"],
    );
}

#[test]
fn a_wrong_password() {
    let url = amqp_url().replace("guest:guest", "guest:hunter2");
    refused(
        &url,
        ErrorKind::Connect,
        &["127.0.0.1", "\"guest\"", "ACCESS_REFUSED"],
    );
}

#[test]
fn a_wrong_virtual_host() {
    let url = format!("{}/no%2fsuch", amqp_url());
    refused(&url, ErrorKind::Connect, &["virtual host", "no/such"]);
}

#[test]
fn a_closed_port() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let url = format!("amqp://u:hunter2@127.0.0.1:{port}");
    refused(&url, ErrorKind::Connect, &["127.0.0.1", "refused"]);
}

#[test]
fn a_port_that_speaks_http() {
    let url = listener(|mut socket| {
        let _ = socket.read(&mut [0; 8]);
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        socket
    });
    refused(
        &url,
        ErrorKind::Connect,
        &["127.0.0.1", "HTTP/1.1 400", "AMQP"],
    );
}

#[test]
fn a_port_that_never_answers() {
    let url = listener(|socket| socket);
    refused(&url, ErrorKind::Connect, &["127.0.0.1", "no answer", "1s"]);
}

#[test]
fn a_port_that_announces_gigabytes() {
    let url = listener(|mut socket| {
        let _ = socket.write_all(&[1, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
        socket
    });
    refused(&url, ErrorKind::Connect, &["frame"]);
}

#[test]
fn a_port_that_hangs_up() {
    let url = listener(drop);
    refused(&url, ErrorKind::Connect, &["127.0.0.1"]);
}

#[test]
fn a_host_that_does_not_resolve() {
    refused(
        "amqp://u:hunter2@no-such-host.invalid",
        ErrorKind::Connect,
        &["no-such-host.invalid", "resolve"],
    );
}

#[test]
fn the_address_has_no_password() {
    let broker = rabbitmq();
    assert!(
        broker.address().starts_with("127.0.0.1:"),
        "{}",
        broker.address()
    );
    assert!(!format!("{broker:?}").contains("guest"));
    assert_eq!(Broker::memory().address(), "memory");
}

#[test]
fn the_first_connect_is_tried_again_when_asked_for() {
    let proxy = Proxy::start(&amqp_url());
    proxy.both(Mode::Swallow);
    let (sent, states) = crossbeam_channel::unbounded();
    let builder = |for_at_most, connect_timeout| {
        let sent = sent.clone();
        Broker::builder(&proxy.url)
            .connect_timeout(connect_timeout)
            .reconnect_delays(Duration::from_millis(20), Duration::from_millis(40))
            .initial_connect_timeout(for_at_most)
            .on_state_change(move |state| sent.send(state.clone()).unwrap())
    };
    let start = Instant::now();
    let short = Duration::from_millis(100);
    let error = builder(4 * short, short).connect().unwrap_err();
    assert!(
        start.elapsed() >= Duration::from_millis(400),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains("attempts"), "{error}");
    let heard: Vec<_> = states.try_iter().collect();
    assert_eq!(heard.first(), Some(&ConnectionState::Connecting));
    assert!(
        matches!(heard.get(1), Some(ConnectionState::Lost(_))),
        "{heard:?}"
    );
    assert!(
        matches!(heard.last(), Some(ConnectionState::Closed(_))),
        "{heard:?}"
    );

    thread::scope(|scope| {
        scope.spawn(|| {
            let lost = |state: &ConnectionState| matches!(state, ConnectionState::Lost(_));
            while !lost(&states.recv_timeout(PATIENCE).unwrap()) {}
            proxy.both(Mode::Pass);
        });
        let broker = builder(Duration::MAX, Duration::from_secs(1));
        broker.connect().unwrap().close(PATIENCE).unwrap();
    });
    let heard: Vec<_> = states.try_iter().collect();
    assert!(heard.contains(&ConnectionState::Connected), "{heard:?}");

    proxy.both(Mode::Swallow);
    let error = builder(Duration::MAX, short)
        .reconnect_limit(2)
        .connect()
        .unwrap_err();
    assert!(error.to_string().contains("2 attempts"), "{error}");
}

#[test]
fn a_listener_that_blocks_or_panics_holds_nothing_up() {
    let (entered, inside) = crossbeam_channel::bounded(1);
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let broker = Broker::builder(&amqp_url())
        .on_state_change(move |state| {
            assert_ne!(*state, ConnectionState::Connecting, "on purpose");
            let _ = entered.try_send(());
            let _ = gate.recv();
        })
        .connect()
        .unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    let start = Instant::now();
    let error = broker.close(Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() < PATIENCE / 2);
    drop(release);
}

/// Both close: neither waits for the lock of the other.
#[test]
fn a_state_listener_may_close_the_connection_too() {
    let own: Arc<OnceLock<Broker>> = Arc::default();
    let (sent, closed) = unbounded();
    let broker = Broker::builder(&amqp_url())
        .on_state_change({
            let own = Arc::clone(&own);
            move |state| {
                if let (ConnectionState::Closed(_), Some(broker)) = (state, own.get()) {
                    sent.send(broker.close(PATIENCE)).unwrap();
                }
            }
        })
        .connect()
        .unwrap();
    own.set(broker.clone()).unwrap();
    broker.close(PATIENCE).unwrap();
    closed.recv_timeout(PATIENCE).unwrap().unwrap();
}
