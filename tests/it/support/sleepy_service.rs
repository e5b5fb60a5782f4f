//! A service that takes its time, or as much as a test gives it.

use std::thread;
use std::time::Duration;

use coney::{Broker, ServiceServer};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Its action `nap` sleeps for so many milliseconds; the receiver gets them when it
/// falls asleep.
pub fn sleepy_server(broker: &Broker, service: &str) -> (ServiceServer, Receiver<u64>) {
    let (started, starts) = unbounded();
    let server = ServiceServer::builder(broker, service)
        .respond("nap", move |ms: u64| {
            started.send(ms).unwrap();
            thread::sleep(Duration::from_millis(ms));
            ms
        })
        .start()
        .unwrap();
    (server, starts)
}

/// A service whose handlers end when a test lets them.
pub struct GatedServer {
    _server: ServiceServer,
    /// The payload of each call of `wait` that begins.
    pub starts: Receiver<u64>,
    gate: Option<Sender<()>>,
}

impl GatedServer {
    /// The action `wait` returns its payload when the gate is open, `echo` at once.
    pub fn start(broker: &Broker, service: &str, workers: usize) -> Self {
        let (started, starts) = unbounded();
        let (gate, opened) = bounded::<()>(0);
        let server = ServiceServer::builder(broker, service)
            .workers(workers)
            .respond("wait", move |n: u64| {
                started.send(n).unwrap();
                let _ = opened.recv();
                n
            })
            .respond("echo", |n: u64| n)
            .start()
            .unwrap();
        Self {
            _server: server,
            starts,
            gate: Some(gate),
        }
    }

    /// Ends the handlers that run, and every later one at once.
    pub fn open(&mut self) {
        self.gate = None;
    }
}

impl Drop for GatedServer {
    fn drop(&mut self) {
        self.open(); // or dropping the server would wait for its handlers
    }
}
