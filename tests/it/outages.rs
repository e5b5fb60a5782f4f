//! Outages of a whole broker, a private one that these tests use one at a time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::transport::{Link, LinkSpec, QueueOptions, Topology};
use coney::{CallOptions, ConnectionState, ErrorKind, Phase, ServiceServer};
use crossbeam_channel::unbounded;

use crate::support::events::recv_n;
use crate::support::outage::{create_last_queue, rabbit, sent_within, wait_for, watched, within};
use crate::support::proxy::{Mode, Proxy};
use crate::support::sleepy_service::{GatedServer, sleepy_server};
use crate::support::timing::{SLACK, in_time, stall_since};
use crate::support::{PATIENCE, client, eventually, quick, steady, unique};

const MS: Duration = Duration::from_millis(1);

#[test]
fn killed_and_restarted() {
    let mut rabbit = rabbit();
    let rabbit = rabbit.as_mut().unwrap();
    let broker = quick(rabbit.url());
    let service = unique("nap");
    let (server, _starts) = sleepy_server(&broker, &service);
    let client = client(&broker);
    assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
    create_last_queue(&broker);
    rabbit.kill();
    let timeout = 300 * MS;
    // The first may have been sent before the loss was noticed.
    let _ = client.call_with::<u64>(&service, "nap", &1, &within(timeout));
    let error = in_time(timeout, "a call without a broker", || {
        client.call_with::<u64>(&service, "nap", &1, &within(timeout))
    });
    let error = error.unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Send), "{error}");
    assert!(error.is_safe_to_retry());
    let error = in_time(timeout, "a command without a broker", || {
        client.send_with(&service, "nap", &1, &sent_within(timeout))
    });
    assert!(error.unwrap_err().is_safe_to_retry());
    let waiting = client
        .call_async_with::<u64>(&service, "nap", &7, &within(PATIENCE * 2))
        .unwrap();
    rabbit.start_again();
    assert_eq!(waiting.wait().unwrap(), 7, "it waited for the reconnect");
    server.shutdown(PATIENCE).unwrap();
    broker.close(PATIENCE).unwrap();
}

#[test]
fn confirmed_commands_survive_a_killed_broker() {
    let mut rabbit = rabbit();
    let rabbit = rabbit.as_mut().unwrap();
    let broker = quick(rabbit.url());
    let service = unique("collect");
    let (ran, arrivals) = unbounded();
    let collect = || {
        let ran = ran.clone();
        ServiceServer::builder(&broker, &service)
            .handler("collect", move |n: u64| ran.send(n).map_err(|_| "gone"))
            .start()
            .unwrap()
    };
    drop(collect());
    create_last_queue(&broker);
    let client = client(&broker);
    let mut sends: Vec<_> = (0..2_000u64)
        .map(|n| (n, client.send_async(&service, "collect", &n).unwrap()))
        .collect();
    // Some are confirmed now, and the rest may be.
    sends[100].1.wait_timeout(PATIENCE).unwrap().unwrap();
    rabbit.kill();
    let confirmed =
        sends
            .into_iter()
            .filter_map(|(n, mut send)| match send.wait_timeout(PATIENCE) {
                Some(Ok(())) => Some(n),
                _ => None,
            });
    let mut missing: HashSet<u64> = confirmed.collect();
    assert!(!missing.is_empty());
    rabbit.start_again();
    let _server = collect();
    while !missing.is_empty() {
        let arrival = arrivals.recv_timeout(PATIENCE);
        missing.remove(&arrival.unwrap_or_else(|_| panic!("lost: {missing:?}")));
    }
}

#[test]
fn stopped_and_started() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (broker, states) = watched(rabbit.url());
    let service = unique("nap");
    let (_server, _starts) = sleepy_server(&broker, &service);
    let client = client(&broker);
    assert_eq!(
        states.recv_timeout(PATIENCE),
        Ok(ConnectionState::Connecting)
    );
    assert_eq!(
        states.recv_timeout(PATIENCE),
        Ok(ConnectionState::Connected)
    );
    assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
    rabbit.ctl(&["stop_app"]);
    match states.recv_timeout(PATIENCE) {
        Ok(ConnectionState::Lost(cause)) => {
            let known = cause.contains("shutdown") || cause.contains("cancelled");
            assert!(known, "{cause}");
        }
        other => panic!("{other:?}"),
    }
    wait_for(&states, |state| *state == ConnectionState::Connecting);
    rabbit.ctl(&["start_app"]);
    assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
    wait_for(&states, |state| *state == ConnectionState::Connected);
    broker.close(PATIENCE).unwrap();
    wait_for(&states, |state| matches!(state, ConnectionState::Closed(_)));
    assert!(states.iter().next().is_none(), "and the listener is gone");
}

#[test]
fn connections_closed_by_the_operator() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (of_server, of_client) = (steady(rabbit.url()), steady(rabbit.url()));
    let service = unique("nap");
    let mut server = GatedServer::start(&of_server, &service, 4);
    let client = client(&of_client);
    let once = client.call_async::<u64>(&service, "wait", &1).unwrap();
    let options = CallOptions::new().idempotent(true);
    let again = client
        .call_async_with::<u64>(&service, "wait", &2, &options)
        .unwrap();
    assert_eq!(recv_n(&server.starts, 2).iter().sum::<u64>(), 3);
    rabbit.ctl(&["close_all_connections", "for the tests"]);
    let error = once.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert!(error.to_string().contains("for the tests"), "{error}");
    server.open();
    assert_eq!(again.wait().unwrap(), 2);
    assert_eq!(client.call::<u64>(&service, "echo", &1).unwrap(), 1);
}

#[test]
fn frozen_for_longer_than_two_heartbeats() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let (broker, states) = watched(rabbit.url());
    let service = unique("nap");
    let (server, _starts) = sleepy_server(&broker, &service);
    let client = client(&broker);
    client.send(&service, "nap", &1).unwrap();
    let other = quick(rabbit.url());
    let (other_server, _other_starts) = sleepy_server(&other, &unique("nap"));
    rabbit.pause();
    let start = Instant::now();
    let timeout = 200 * MS;
    while start.elapsed() < Duration::from_secs(4) {
        let call = in_time(timeout, "a call to a frozen broker", || {
            client.call_with::<u64>(&service, "nap", &1, &within(timeout))
        });
        let kind = call.unwrap_err().kind();
        let noticed = kind == ErrorKind::ConnectionLost;
        assert!(noticed || kind == ErrorKind::TimedOut, "{kind:?}");
        let send = in_time(timeout, "a command to a frozen broker", || {
            client.send_with(&service, "nap", &1, &sent_within(timeout))
        });
        send.unwrap_err();
    }
    // The missing heartbeats, or the unanswered operations, have been noticed.
    wait_for(&states, |state| matches!(state, ConnectionState::Lost(_)));
    let _ = in_time(timeout, "shutdown of a server", || {
        other_server.shutdown(timeout)
    });
    let _ = in_time(timeout, "closing", || other.close(timeout));
    rabbit.resume();
    eventually("calls work again", || {
        client
            .call_with::<u64>(&service, "nap", &1, &within(10 * timeout))
            .is_ok()
    });
    server.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_queue_deleted_under_its_consumer() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let broker = steady(rabbit.url());
    let service = unique("nap");
    let (_server, _starts) = sleepy_server(&broker, &service);
    let client = client(&broker);
    assert_eq!(client.call::<u64>(&service, "nap", &1).unwrap(), 1);
    rabbit.ctl(&["delete_queue", &format!("service.{service}.request")]);
    eventually("it is there again, and served", || {
        client
            .call_with::<u64>(&service, "nap", &1, &within(2_000 * MS))
            .is_ok()
    });
}

#[test]
fn a_thousand_callers_while_it_restarts() {
    let mut rabbit = rabbit();
    let rabbit = rabbit.as_mut().unwrap();
    let broker = quick(rabbit.url());
    let service = unique("nap");
    let (_server, starts) = sleepy_server(&broker, &service);
    let client = client(&broker);
    create_last_queue(&broker);
    let (timeout, start) = (Duration::from_secs(3), Instant::now());
    let is_back = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        let callers: Vec<_> = (0..1_000u64)
            .map(|n| {
                let (client, service, is_back) = (client.clone(), &service, &is_back);
                let body = move || {
                    let mut slowest = Duration::ZERO;
                    // Until it has been answered after the restart.
                    loop {
                        let was_back = is_back.load(Ordering::SeqCst);
                        let begin = Instant::now();
                        let options = within(timeout).idempotent(n % 2 == 0);
                        let reply = client.call_with::<u64>(service, "nap", &0, &options);
                        slowest = slowest.max(begin.elapsed());
                        match reply {
                            Ok(_) if was_back => return slowest,
                            Ok(_) => {}
                            Err(error) => {
                                let late = start.elapsed() > 5 * PATIENCE;
                                assert!(!late, "calls never worked again: {error}");
                                thread::sleep(10 * MS);
                            }
                        }
                    }
                };
                let builder = thread::Builder::new().stack_size(256 << 10);
                builder.spawn_scoped(scope, body).unwrap()
            })
            .collect();
        recv_n(&starts, 1_000);
        rabbit.kill();
        rabbit.start_again();
        is_back.store(true, Ordering::SeqCst);
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .max()
    });
    // A thousand threads whose deadlines end at once take turns on a few cores.
    let allowed = timeout + 2 * SLACK + stall_since(start);
    assert!(slowest.unwrap() <= allowed, "{slowest:?}");
    assert_eq!(client.in_flight(), 0);
    drop(starts);
}

#[test]
fn a_declaration_refused_after_a_reconnect_is_tried_again() {
    let rabbit = rabbit();
    let rabbit = rabbit.as_ref().unwrap();
    let proxy = Proxy::start(rabbit.url());
    let (of_server, of_client) = (steady(&proxy.url), steady(rabbit.url()));
    let service = unique("nap");
    let queue = format!("service.{service}.request");
    let (_server, _starts) = sleepy_server(&of_server, &service);
    // Another client on the server's connection, which must not suffer.
    let neighbour = client(&of_server);
    let other_service = unique("nap");
    let (_other_server, _other_starts) = sleepy_server(&of_client, &other_service);
    proxy.both(Mode::Swallow);
    proxy.cut();
    rabbit.ctl(&["delete_queue", &queue]);
    let squatter = Topology::new().queue_with(&queue, QueueOptions::new().message_ttl(PATIENCE));
    drop(Link::open(&of_client, LinkSpec::new(squatter)).unwrap());
    proxy.both(Mode::Pass);
    proxy.cut();
    assert_eq!(neighbour.call::<u64>(&other_service, "nap", &1).unwrap(), 1);
    // Its exchange has no binding to the queue any more, so no call reaches the service.
    let client = client(&of_client);
    let error = client.call::<u64>(&service, "nap", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    rabbit.ctl(&["delete_queue", &queue]);
    eventually("it is declared and served again", || {
        client
            .call_with::<u64>(&service, "nap", &1, &within(2_000 * MS))
            .is_ok()
    });
}
