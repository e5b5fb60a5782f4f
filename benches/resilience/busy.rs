//! A service that refuses calls as busy, and callers that call again at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::resilience::{Resilience, Retry};
use coney::{Broker, HandlerError, ServiceClient, ServiceServer};

use crate::figure::{Bound, bounded, unbounded};

const CALLERS: u64 = 64;

/// The retries per second that a budget pays for without any call, and the seconds whose share may
/// be spent at once.
const RESERVE: f64 = 1.0;
const RESERVED_SECONDS: f64 = 10.0;

/// The counts of all callers.
#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    succeeded: AtomicU64,
    /// The requests that have reached the handler.
    requests: Arc<AtomicU64>,
}

/// Measures the attempts per call at a service that refuses all of them.
pub fn measure_all_busy(length: Duration) {
    let policies = [
        ("Retry::new()", Resilience::none().retry(Retry::new())),
        ("Resilience::new()", Resilience::new()),
    ];
    for (name, policies) in policies {
        let counts = run(policies, 1.0, length);
        let [calls, _, requests] = counts.totals();
        let reserve = RESERVE * (RESERVED_SECONDS + length.as_secs_f64());
        let wanted = Bound::AtMost(1.2 + reserve / calls);
        let what = format!("all calls busy, attempts per call, {name}");
        bounded(&what, requests / calls, "attempts", wanted);
        eprintln!("{what}: {calls} calls, {requests} requests at the server");
    }
}

/// Measures the share of successful calls at a service that refuses one in ten.
pub fn measure_some_busy(length: Duration) {
    let without = run(Resilience::none(), 0.1, length / 4).share();
    let what = "one call in ten busy, successful calls, without policies";
    unbounded(what, without, "%");
    let policies = [
        ("Retry::new()", Resilience::none().retry(Retry::new())),
        ("Resilience::new()", Resilience::new()),
    ];
    for (name, policies) in policies {
        let counts = run(policies, 0.1, length);
        let what = format!("one call in ten busy, successful calls, {name}");
        bounded(&what, counts.share(), "%", Bound::AtLeast(99.8));
        let [calls, _, requests] = counts.totals();
        eprintln!("{what}: {calls} calls, {requests} requests at the server");
    }
}

impl Counts {
    fn totals(&self) -> [f64; 3] {
        [&self.calls, &self.succeeded, &self.requests].map(|it| it.load(Ordering::Relaxed) as f64)
    }

    /// Returns the share of successful calls in per cent.
    fn share(&self) -> f64 {
        let [calls, succeeded, _] = self.totals();
        100.0 * succeeded / calls
    }
}

/// Calls with all callers for a while; the service refuses this share of the requests.
fn run(policies: Resilience, busy: f64, length: Duration) -> Counts {
    let counts = Counts::default();
    let broker = Broker::memory();
    let requests = Arc::clone(&counts.requests);
    let _server = ServiceServer::builder(&broker, "printer")
        .handler("print", move |page: u64| {
            requests.fetch_add(1, Ordering::Relaxed);
            match fastrand::f64() < busy {
                true => Err(HandlerError::busy("no paper", Duration::from_millis(1))),
                false => Ok(page),
            }
        })
        .start()
        .expect("the server starts");
    let client = ServiceClient::builder(&broker, "bench")
        .resilience(policies)
        .build()
        .expect("the client starts");
    let end = Instant::now() + length;
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let (mut calls, mut succeeded) = (0, 0);
                while Instant::now() < end {
                    calls += 1;
                    succeeded += u64::from(client.call::<u64>("printer", "print", &7).is_ok());
                }
                counts.calls.fetch_add(calls, Ordering::Relaxed);
                counts.succeeded.fetch_add(succeeded, Ordering::Relaxed);
            });
        }
    });
    counts
}
