//! Connections that are cut, silent or corrupted.

use std::thread;
use std::time::{Duration, Instant};

use coney::{
    Broker, CallOptions, ConnectionState, ErrorKind, Phase, Registry, SendOptions, ServiceServer,
};

use crate::support::events::recv_n;
use crate::support::outage::{wait_for, watched};
use crate::support::proxy::{Mode, Proxy};
use crate::support::sleepy_service::{GatedServer, sleepy_server};
use crate::support::timing::in_time;
use crate::support::{PATIENCE, amqp_url, client, eventually, quick, steady, unique};

#[test]
fn a_lost_connection_fails_what_was_sent_and_then_recovers() {
    let proxy = Proxy::start(&amqp_url());
    let (of_server, of_client) = (steady(&amqp_url()), steady(&proxy.url));
    let service = unique("nap");
    let mut server = GatedServer::start(&of_server, &service, 2);
    let client = client(&of_client);
    let pending = client.call_async::<u64>(&service, "wait", &300).unwrap();
    assert_eq!(server.starts.recv_timeout(PATIENCE), Ok(300));
    proxy.cut();
    let start = Instant::now();
    let error = pending.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert!(!error.is_safe_to_retry());
    assert!(start.elapsed() < PATIENCE / 2, "it is known at once");
    // The next call waits for the reconnect and succeeds, on a new reply queue.
    server.open();
    assert_eq!(client.call::<u64>(&service, "wait", &1).unwrap(), 1);
}

#[test]
fn a_servers_lost_connection_requeues_its_requests() {
    let proxy = Proxy::start(&amqp_url());
    let (of_server, of_client) = (steady(&proxy.url), steady(&amqp_url()));
    let service = unique("nap");
    let (server, starts) = sleepy_server(&of_server, &service);
    let client = client(&of_client);
    let pending = client.call_async::<u64>(&service, "nap", &200).unwrap();
    assert_eq!(starts.recv_timeout(PATIENCE), Ok(200));
    proxy.cut();
    // Delivered again after the reconnect, while its handler still runs: it does not run
    // twice, and its reply settles the second delivery.
    assert_eq!(pending.wait().unwrap(), 200);
    assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
    assert_eq!(starts.try_iter().collect::<Vec<_>>(), [1]);
    server.shutdown(PATIENCE).unwrap();
}

#[test]
fn deadlines_and_shutdown_hold_however_the_connection_hangs() {
    for (to_broker, from_broker) in [
        (Mode::Swallow, Mode::Swallow),
        (Mode::Stall, Mode::Stall),
        (Mode::Pass, Mode::Swallow), // half open, either way
        (Mode::Swallow, Mode::Pass),
        (Mode::Stall, Mode::Pass),
    ] {
        let proxy = Proxy::start(&amqp_url());
        let broker = quick(&proxy.url);
        let service = unique("nap");
        let (server, _starts) = sleepy_server(&broker, &service);
        let client = client(&broker);
        assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
        client.send(&service, "nap", &1).unwrap();
        proxy.forth(to_broker);
        proxy.back(from_broker);
        let what = format!("{to_broker:?}/{from_broker:?}");
        let timeout = Duration::from_millis(200);
        let options = CallOptions::new().timeout(timeout);
        let send_options = SendOptions::new().timeout(timeout);
        let large = "x".repeat(1 << 20);
        for _ in 0..6 {
            // More than the socket and amiquip together take without blocking.
            in_time(timeout, &what, || {
                client.call_with::<()>(&service, "nap", &large, &options)
            })
            .unwrap_err();
            in_time(timeout, &what, || {
                client.send_with(&service, "nap", &large, &send_options)
            })
            .unwrap_err();
        }
        let timeout = Duration::from_millis(300);
        let _ = in_time(timeout, &what, || server.shutdown(timeout));
        let _ = in_time(timeout, &what, || broker.close(timeout));
    }
}

#[test]
fn slow_and_sliced_connections_only_take_longer() {
    for mode in [Mode::Delay, Mode::Slice] {
        let proxy = Proxy::start(&amqp_url());
        proxy.both(mode);
        let broker = steady(&proxy.url);
        let service = unique("nap");
        let (_server, _starts) = sleepy_server(&broker, &service);
        let client = client(&broker);
        for n in 0..3 {
            assert_eq!(client.call::<u64>(&service, "nap", &n).unwrap(), n);
            client.send(&service, "nap", &n).unwrap();
        }
    }
}

#[test]
fn nonsense_costs_the_connection_and_nothing_else() {
    for to_broker in [true, false] {
        let proxy = Proxy::start(&amqp_url());
        let broker = quick(&proxy.url);
        let service = unique("nap");
        let (_server, _starts) = sleepy_server(&broker, &service);
        let client = client(&broker);
        let timeout = Duration::from_millis(100);
        let options = CallOptions::new().timeout(timeout);
        let send_options = SendOptions::new().timeout(timeout);
        match to_broker {
            true => proxy.forth(Mode::Garble),
            false => proxy.back(Mode::Garble),
        }
        for n in 0..20 {
            let _ = in_time(timeout, "a call into nonsense", || {
                client.call_with::<u64>(&service, "nap", &n, &options)
            });
            let _ = in_time(timeout, "a command into nonsense", || {
                client.send_with(&service, "nap", &n, &send_options)
            });
        }
        proxy.both(Mode::Pass);
        proxy.cut();
        let options = CallOptions::new().timeout(Duration::from_secs(2));
        eventually("calls work again", || {
            client
                .call_with::<u64>(&service, "nap", &1, &options)
                .is_ok()
        });
    }
}

#[test]
fn idempotent_calls_are_sent_again() {
    let proxy = Proxy::start(&amqp_url());
    let (of_server, of_client) = (steady(&amqp_url()), steady(&proxy.url));
    let service = unique("nap");
    let mut server = GatedServer::start(&of_server, &service, 4);
    let client = client(&of_client);
    let options = CallOptions::new().idempotent(true);
    let waited_for = client
        .call_async_with::<u64>(&service, "wait", &300, &options)
        .unwrap();
    let (sent, callback) = crossbeam_channel::bounded(1);
    client
        .call_async_with::<u64>(&service, "wait", &301, &options)
        .unwrap()
        .then(move |reply| sent.send(reply).unwrap())
        .unwrap();
    let mut first = recv_n(&server.starts, 2);
    first.sort_unstable();
    assert_eq!(first, [300, 301]);
    proxy.cut();
    // Both run a second time, and the second replies arrive.
    assert_eq!(recv_n(&server.starts, 2).iter().sum::<u64>(), 601);
    server.open();
    assert_eq!(waited_for.wait().unwrap(), 300);
    assert_eq!(callback.recv_timeout(PATIENCE).unwrap().unwrap(), 301);
}

#[test]
fn a_command_whose_confirmation_is_lost_is_unknown_or_sent_again() {
    let proxy = Proxy::start(&amqp_url());
    let (of_server, of_client) = (steady(&amqp_url()), steady(&proxy.url));
    let service = unique("nap");
    let (_server, starts) = sleepy_server(&of_server, &service);
    let client = client(&of_client);
    client.send(&service, "nap", &0).unwrap();
    assert_eq!(starts.recv_timeout(PATIENCE), Ok(0));
    // The commands arrive; their confirmations do not.
    proxy.back(Mode::Swallow);
    let mut once = client.send_async(&service, "nap", &1).unwrap();
    let options = SendOptions::new().idempotent(true);
    let again = client
        .send_async_with(&service, "nap", &2, &options)
        .unwrap();
    let mut first = recv_n(&starts, 2);
    first.sort_unstable();
    assert_eq!(first, [1, 2]);
    assert!(once.try_wait().is_none());
    proxy.cut();
    proxy.back(Mode::Pass);
    let error = once.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    again.wait().unwrap();
    assert_eq!(starts.recv_timeout(PATIENCE), Ok(2));
}

#[test]
fn a_full_send_queue_keeps_deadlines() {
    let proxy = Proxy::start(&amqp_url());
    let (broker, states) = watched(&proxy.url);
    let client = client(&broker);
    proxy.both(Mode::Swallow);
    proxy.cut();
    // Calls are still sent, and lost, until the I/O thread has noticed.
    wait_for(&states, |state| matches!(state, ConnectionState::Lost(_)));
    let timeout = Duration::from_millis(500);
    let options = CallOptions::new().timeout(timeout);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // The first calls fill the queue; the others wait for room.
                let mut pending = Vec::new();
                in_time(timeout * 2, "filling the queue", || {
                    for _ in 0..400 {
                        match client.call_async_with::<()>("any", "any", &(), &options) {
                            Ok(call) => pending.push(call),
                            Err(error) => {
                                assert_eq!(error.phase(), Some(Phase::Send), "{error}");
                                assert!(error.is_safe_to_retry());
                                break;
                            }
                        }
                    }
                });
                for call in pending {
                    let error =
                        in_time(timeout, "a call in the queue", || call.wait()).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                }
            });
        }
    });
    assert_eq!(client.in_flight(), 0);
}

/// Connects with a broker that is closed soon after the connection is lost.
fn hopeless(url: &str) -> Broker {
    Broker::builder(url)
        .reconnect_delays(Duration::from_millis(10), Duration::from_millis(20))
        .reconnect_limit(2)
        .connect()
        .unwrap()
}

#[test]
fn giving_up_closes_everything() {
    let proxy = Proxy::start(&amqp_url());
    let broker = hopeless(&proxy.url);
    let client = client(&broker);
    proxy.cut_for_good();
    eventually("the broker is closed", || {
        let options = CallOptions::new().timeout(Duration::from_millis(50));
        let result = client.call_with::<()>("s", "a", &(), &options);
        result.unwrap_err().kind() == ErrorKind::Closed
    });
}

/// A server without a broker cannot serve any request, and must not be picked.
#[test]
fn a_server_without_a_broker_is_unhealthy() {
    let proxy = Proxy::start(&amqp_url());
    let broker = hopeless(&proxy.url);
    let (registry, service) = (Registry::memory(), unique("lost"));
    let server = ServiceServer::builder(&broker, &service)
        .registry(&registry)
        .respond("work", |n: u64| n)
        .start()
        .unwrap();
    assert_eq!(registry.lookup(&service).unwrap().iter().count(), 1);
    assert!(server.state().is_healthy());
    proxy.cut_for_good();
    eventually("its state shows it", || {
        server.state().disconnected.is_some()
    });
    eventually("it is left out", || {
        registry.refresh(&service).unwrap().is_empty()
    });
}

/// Without an alarm, too, the room of expired messages is free again.
#[test]
fn expired_messages_leave_a_stalled_connection() {
    let proxy = Proxy::start(&amqp_url());
    let broker = Broker::builder(&proxy.url)
        .outgoing_bytes(4 << 20)
        .operation_timeout(PATIENCE)
        .heartbeat(PATIENCE)
        .connect()
        .unwrap();
    let (service, client) = (unique("nap"), client(&broker));
    let body = "x".repeat(500_000);
    let call = |timeout| {
        let options = CallOptions::new().timeout(timeout);
        client.call_async_with::<u64>(&service, "nap", &body, &options)
    };
    call(PATIENCE).unwrap().wait().unwrap_err(); // the link is open
    proxy.forth(Mode::Stall);
    let mut calls = Vec::new();
    loop {
        let start = Instant::now();
        calls.push(call(Duration::from_secs(1)));
        if start.elapsed() > Duration::from_millis(200) {
            break; // it waited for room
        }
    }
    calls.push(call(PATIENCE / 6));
    assert!(
        calls.pop().unwrap().is_ok(),
        "the expired calls are dropped"
    );
}
