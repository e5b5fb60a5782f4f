//! Heartbeats on a connection whose traffic amiquip does not see: deliveries and their settlements.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coney::{Broker, ConnectionState, ServiceClient, ServiceServer};

use crate::support::{amqp_url, unique};

/// The broker sends a heartbeat only where it has sent nothing else for half of the interval, and
/// amiquip ends a connection on which it has read nothing for two intervals.
#[test]
fn a_connection_that_only_calls_is_not_taken_for_dead() {
    let losses = Arc::new(AtomicUsize::new(0));
    let connect = || {
        let losses = Arc::clone(&losses);
        Broker::builder(&amqp_url())
            .heartbeat(Duration::from_secs(1))
            .on_state_change(move |state| {
                let is_lost = matches!(state, ConnectionState::Lost(_));
                losses.fetch_add(usize::from(is_lost), Ordering::SeqCst);
            })
            .connect()
            .unwrap()
    };
    let (of_server, of_client) = (connect(), connect());
    let service = unique("double");
    let _server = ServiceServer::builder(&of_server, &service)
        .respond("double", |n: u64| 2 * n)
        .start()
        .unwrap();
    let client = ServiceClient::new(&of_client, "heartbeats").unwrap();
    let end = Instant::now() + Duration::from_secs(6); // of traffic without a pause
    let mut calls = 0u64;
    while Instant::now() < end {
        calls += 1;
        let doubled: u64 = client.call(&service, "double", &calls).unwrap();
        assert_eq!(doubled, 2 * calls);
    }
    assert_eq!(losses.load(Ordering::SeqCst), 0, "in {calls} calls");
}
