//! Services whose handlers run for a given time, or until a test lets them end.

use std::thread;
use std::time::Duration;

use coney::{Broker, ServiceServer};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Starts a server whose action `nap` sleeps for a number of milliseconds; the receiver gets the
/// number when the handler starts.
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
    /// A receiver of the payload of each call of `wait` that begins.
    pub starts: Receiver<u64>,
    gate: Option<Sender<()>>,
}

impl GatedServer {
    /// Starts a server whose action `wait` returns its payload when the gate is open, and `echo` at
    /// once.
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

    /// Opens the gate: running handlers end, and later ones end at once.
    pub fn open(&mut self) {
        self.gate = None;
    }
}

impl Drop for GatedServer {
    fn drop(&mut self) {
        self.open(); // or dropping the server would wait for its handlers
    }
}
