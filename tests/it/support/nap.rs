//! A service that takes its time.

use std::thread;
use std::time::Duration;

use coney::{Broker, HandlerError, ServiceServer};
use crossbeam_channel::{Receiver, unbounded};

/// Its action `nap` sleeps for so many milliseconds; the receiver tells when it
/// falls asleep.
pub fn nap_server(broker: &Broker, service: &str) -> (ServiceServer, Receiver<u64>) {
    let (started, starts) = unbounded();
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
