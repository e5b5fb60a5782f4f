//! A broker that dies and comes back, and one that stops answering.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::{Broker, CallOptions, ErrorKind, HandlerError, Phase, ServiceServer};

use crate::support::rabbitmq::RabbitMq;
use crate::support::{PATIENCE, amqp_url, client, eventually, unique};

/// A TCP proxy in front of the shared RabbitMQ, so that a test can break its
/// own connection and nobody else's.
struct Proxy {
    url: String,
    /// While set, bytes are accepted and go nowhere.
    hole: Arc<AtomicBool>,
    cut: Arc<parking_lot::Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://guest:guest@{}", listener.local_addr().unwrap());
        let target = amqp_url().rsplit_once('@').unwrap().1.to_owned();
        let hole = Arc::new(AtomicBool::new(false));
        let cut: Arc<parking_lot::Mutex<Vec<TcpStream>>> = Arc::default();
        let proxy = Self {
            url,
            hole: Arc::clone(&hole),
            cut: Arc::clone(&cut),
        };
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                for socket in [&client, &server] {
                    socket.set_nodelay(true).unwrap();
                    cut.lock().push(socket.try_clone().unwrap());
                }
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (from, to) in [(client, server), back] {
                    let hole = Arc::clone(&hole);
                    thread::spawn(move || pass_on(from, to, &hole));
                }
            }
        });
        proxy
    }

    fn cut_connections(&self) {
        for socket in self.cut.lock().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, hole: &AtomicBool) {
    let mut bytes = [0; 8 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !hole.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn quick(url: &str) -> Broker {
    Broker::builder(url)
        .reconnect_delays(Duration::from_millis(20), Duration::from_millis(200))
        .operation_timeout(Duration::from_millis(500))
        .connect()
        .unwrap()
}

fn nap_server(broker: &Broker, service: &str) -> (ServiceServer, crossbeam_channel::Receiver<u64>) {
    let (started, starts) = crossbeam_channel::unbounded();
    let server = ServiceServer::builder(broker, service)
        .handler("nap", move |ms: u64| {
            started.send(ms).unwrap();
            thread::sleep(Duration::from_millis(ms));
            Ok::<_, HandlerError>(ms)
        })
        .start()
        .unwrap();
    (server, starts)
}

#[test]
fn a_lost_connection_fails_what_was_sent_and_then_recovers() {
    let proxy = Proxy::start();
    let (of_server, of_client) = (quick(&amqp_url()), quick(&proxy.url));
    let service = unique("nap");
    let (_server, starts) = nap_server(&of_server, &service);
    let client = client(&of_client);
    let pending = client.call_async::<_, u64>(&service, "nap", &300).unwrap();
    assert_eq!(starts.recv_timeout(PATIENCE), Ok(300));
    proxy.cut_connections();
    let start = Instant::now();
    let error = pending.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert!(!error.is_safe_to_retry());
    assert!(start.elapsed() < PATIENCE / 2, "it is known at once");
    // The next call waits for the reconnect and succeeds, on a new reply queue.
    assert_eq!(client.call::<_, u64>(&service, "nap", &1).unwrap(), 1);
}

#[test]
fn a_servers_lost_connection_gives_its_requests_back() {
    let proxy = Proxy::start();
    let (of_server, of_client) = (quick(&proxy.url), quick(&amqp_url()));
    let service = unique("nap");
    let (server, starts) = nap_server(&of_server, &service);
    let client = client(&of_client);
    let pending = client.call_async::<_, u64>(&service, "nap", &200).unwrap();
    assert_eq!(starts.recv_timeout(PATIENCE), Ok(200));
    proxy.cut_connections();
    // Delivered again after the reconnect: the reply comes from the second run,
    // and acknowledging the first one's delivery has harmed nothing.
    assert_eq!(pending.wait().unwrap(), 200);
    assert_eq!(starts.recv_timeout(PATIENCE), Ok(200));
    assert_eq!(client.call::<_, u64>(&service, "nap", &1).unwrap(), 1);
    server.shutdown(PATIENCE).unwrap();
}

#[test]
fn killed_and_restarted_broker() {
    let mut rabbit = RabbitMq::start();
    let broker = quick(rabbit.url());
    let service = unique("nap");
    let (server, _starts) = nap_server(&broker, &service);
    let client = client(&broker);
    assert_eq!(client.call::<_, u64>(&service, "nap", &1).unwrap(), 1);
    rabbit.kill();
    let timeout = Duration::from_millis(300);
    let hurry = CallOptions::new().timeout(timeout);
    // The first may have been sent before the loss was noticed.
    let _ = client.call_with::<_, u64>(&service, "nap", &1, &hurry);
    let start = Instant::now();
    let error = client
        .call_with::<_, u64>(&service, "nap", &1, &hurry)
        .unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Send), "{error}");
    assert!(error.is_safe_to_retry());
    assert!(start.elapsed() < timeout + Duration::from_millis(400));
    rabbit.start_again();
    eventually("calls work again", || {
        client
            .call_with::<_, u64>(&service, "nap", &1, &hurry)
            .is_ok()
    });
    server.shutdown(PATIENCE).unwrap();
    broker.close(PATIENCE).unwrap();
}

#[test]
fn a_call_waits_for_the_reconnect_until_its_deadline() {
    let mut rabbit = RabbitMq::start();
    let broker = quick(rabbit.url());
    let service = unique("nap");
    let (_server, _starts) = nap_server(&broker, &service);
    let client = client(&broker);
    rabbit.kill();
    let unsent = CallOptions::new().timeout(Duration::from_millis(200));
    eventually("the loss is noticed", || {
        let error = client.call_with::<_, u64>(&service, "nap", &1, &unsent);
        error.unwrap_err().phase() == Some(Phase::Send)
    });
    let waiting = CallOptions::new().timeout(PATIENCE * 2);
    let pending = client
        .call_async_with::<_, u64>(&service, "nap", &7, &waiting)
        .unwrap();
    rabbit.start_again();
    assert_eq!(pending.wait().unwrap(), 7);
}

#[test]
fn deadlines_and_shutdown_hold_behind_a_black_hole() {
    let proxy = Proxy::start();
    let broker = quick(&proxy.url);
    let service = unique("nap");
    let (server, _starts) = nap_server(&broker, &service);
    let client = client(&broker);
    assert_eq!(client.call::<_, u64>(&service, "nap", &1).unwrap(), 1);
    proxy.hole.store(true, Ordering::SeqCst);
    let options = CallOptions::new().timeout(Duration::from_millis(200));
    let start = Instant::now();
    let large = "x".repeat(1 << 20);
    for _ in 0..8 {
        // More than the socket and amiquip together take without blocking.
        let _ = client.call_with::<_, ()>(&service, "nap", &large, &options);
    }
    assert!(
        start.elapsed() < Duration::from_millis(8 * 300),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    let _ = server.shutdown(Duration::from_millis(300));
    let _ = broker.close(Duration::from_millis(300));
    assert!(
        start.elapsed() < Duration::from_millis(800),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn giving_up_closes_everything() {
    let proxy = Proxy::start();
    let broker = Broker::builder(&proxy.url)
        .reconnect_delays(Duration::from_millis(10), Duration::from_millis(20))
        .connect_timeout(Duration::from_millis(100))
        .reconnect_limit(2)
        .connect()
        .unwrap();
    let client = client(&broker);
    proxy.hole.store(true, Ordering::SeqCst);
    proxy.cut_connections();
    eventually("the broker is closed", || {
        let options = CallOptions::new().timeout(Duration::from_millis(50));
        let result = client.call_with::<_, ()>("s", "a", &(), &options);
        result.unwrap_err().kind() == ErrorKind::Closed
    });
}
