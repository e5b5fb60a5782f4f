//! Lone callers, which may spin for their replies.

use std::thread;
use std::time::{Duration, Instant};

use coney::{Broker, CallOptions, ErrorKind, ServiceClient, ServiceServer};

use crate::support::sleepy_service::GatedServer;
use crate::support::{PATIENCE, on_both, unique};

on_both!(
    replies_arrive_with_and_without_spinning,
    lone_callers_and_several_take_turns,
    spins_in_vain_keep_the_deadlines_of_calls,
    a_spinning_call_ends_when_its_client_is_closed,
);

fn client(broker: &Broker, spin: bool) -> ServiceClient {
    let builder = ServiceClient::builder(broker, "order-service").timeout(PATIENCE);
    builder.spin(spin).build().unwrap()
}

fn doubling_server(broker: &Broker, service: &str) -> ServiceServer {
    let builder = ServiceServer::builder(broker, service);
    builder.respond("double", |n: u64| n * 2).start().unwrap()
}

fn replies_arrive_with_and_without_spinning(broker: &Broker) {
    let service = unique("math");
    let _server = doubling_server(broker, &service);
    for spin in [true, false] {
        let client = client(broker, spin);
        for n in 0..200u64 {
            assert_eq!(client.call::<u64>(&service, "double", &n).unwrap(), n * 2);
            assert_eq!(client.in_flight(), 0);
        }
        assert_eq!(client.unclaimed_replies(), 0);
    }
}

fn lone_callers_and_several_take_turns(broker: &Broker) {
    let service = unique("math");
    let _server = doubling_server(broker, &service);
    let client = client(broker, true);
    for round in 0..20u64 {
        let call = |n: u64| client.call::<u64>(&service, "double", &n).unwrap();
        assert_eq!(call(round), round * 2);
        thread::scope(|scope| {
            for n in 0..3 {
                scope.spawn(move || assert_eq!(call(n), n * 2));
            }
        });
        // One in flight that does not wait: the caller beside it is not alone.
        let pending = client.call_async::<u64>(&service, "double", &7).unwrap();
        assert_eq!(call(round), round * 2);
        assert_eq!(pending.wait().unwrap(), 14);
    }
    assert_eq!((client.in_flight(), client.unclaimed_replies()), (0, 0));
}

fn spins_in_vain_keep_the_deadlines_of_calls(broker: &Broker) {
    let service = unique("slow");
    let calls = 6;
    let mut server = GatedServer::start(broker, &service, calls);
    let client = client(broker, true);
    let timeout = Duration::from_millis(300);
    let options = CallOptions::new().timeout(timeout);
    for n in 0..calls {
        let begun = Instant::now();
        let result = client.call_with::<usize>(&service, "wait", &n, &options);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= timeout);
        assert_eq!(client.in_flight(), 0);
    }
    server.open();
    assert_eq!(client.call::<u64>(&service, "echo", &3).unwrap(), 3);
}

fn a_spinning_call_ends_when_its_client_is_closed(broker: &Broker) {
    let service = unique("slow");
    let server = GatedServer::start(broker, &service, 1);
    let client = client(broker, true);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call::<u64>(&service, "wait", &1));
        server.starts.recv_timeout(PATIENCE).unwrap();
        client.close();
        assert_eq!(call.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    });
}
