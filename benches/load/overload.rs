//! More calls than the workers can do: what is answered in time, without and with shedding.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::server::Shed;
use coney::{ErrorKind, ServiceClient, ServiceServer};

use crate::brokers::{self, Transport};
use crate::figure::{Bound, bounded, unbounded};
use crate::latencies::{lateness, quantile};
use crate::load::{self, Ended, Phase, Target};

const WORKERS: usize = 10;

/// The range of the time that a call takes, and its mean, in ms.
const SHORTEST: u64 = 20;
const LONGEST: u64 = 50;
const HANDLING: f64 = (SHORTEST + LONGEST) as f64 / 2.0;

const TIMEOUT: Duration = Duration::from_secs(1);

/// The wait in ms above which calls are refused: the default is a quarter of the timeout.
const BOUND: f64 = 250.0;

/// The part of the capacity that is offered after the surge.
const CALM: f64 = 0.5;

const TARGET: Target = Target {
    service: "bench-overload",
    action: "work",
    timeout: TIMEOUT,
};

/// Measures surges of such a length.
pub fn measure(surge: Duration) {
    for transport in brokers::all() {
        let capacity = measure_capacity(&transport, surge / 5);
        for times in [2.0, 10.0] {
            for sheds in [false, true] {
                let name = transport.name;
                let sheds_or_not = if sheds { "shedding" } else { "no shedding" };
                let case = format!("{times} times the capacity, {sheds_or_not}, {name}");
                let offered = times * capacity;
                let calls = overload(&transport, sheds, offered, CALM * capacity, surge);
                report(&case, sheds, &calls, capacity, surge);
            }
        }
    }
}

/// Returns the calls a second of twice as many callers as workers that wait for each answer.
fn measure_capacity(transport: &Transport, length: Duration) -> f64 {
    let _server = start(transport, false);
    let client = ServiceClient::new(&transport.broker, "bench").expect("a client");
    let (begin, calls) = (Instant::now(), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 * WORKERS {
            scope.spawn(|| {
                while begin.elapsed() < length {
                    let answer = client.call::<u64>(TARGET.service, TARGET.action, &1);
                    answer.expect("the call succeeds");
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let capacity = calls.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
    let what = format!("capacity of {WORKERS} workers, {}", transport.name);
    unbounded(&what, capacity, "1/s");
    capacity
}

fn start(transport: &Transport, sheds: bool) -> ServiceServer {
    let server = ServiceServer::builder(&transport.broker, TARGET.service)
        .workers(WORKERS)
        .prefetch(2 * WORKERS as u16)
        .respond(TARGET.action, |number: u64| {
            thread::sleep(Duration::from_millis(fastrand::u64(SHORTEST..=LONGEST)));
            number
        });
    let server = match sheds {
        true => server.shed(Shed::new()),
        false => server,
    };
    server.start().expect("the server starts")
}

/// Calls for the time of a surge, and for a calm time after it.
fn overload(
    transport: &Transport,
    sheds: bool,
    offered: f64,
    calm: f64,
    surge: Duration,
) -> Vec<Ended> {
    let _server = start(transport, sheds);
    let client = ServiceClient::new(&transport.broker, "bench").expect("a client");
    let phases = [
        Phase {
            lasts: surge,
            per_second: offered,
        },
        Phase {
            lasts: Duration::from_secs(8),
            per_second: calm,
        },
    ];
    let calls = load::start(&client, TARGET, load::due_times(&phases));
    calls.iter().collect()
}

fn report(case: &str, sheds: bool, calls: &[Ended], capacity: f64, surge: Duration) {
    let (during, after): (Vec<&Ended>, Vec<&Ended>) =
        calls.iter().partition(|call| call.due < surge);
    let served = during.iter().filter(|call| call.result.is_ok()).count();
    let refused = during.iter().filter(|call| is_busy(call)).count();
    // Calls that were neither refused nor served in time count too.
    let accepted = || during.iter().filter(|call| !is_busy(call)).copied();

    // Those that were served after the surge do not count.
    let in_surge = |call: &&&Ended| call.result.is_ok() && call.due + call.took < surge;
    let goodput = during.iter().filter(in_surge).count() as f64 / surge.as_secs_f64() / capacity;
    let what = format!("{case}: goodput");
    let p99 = quantile(accepted(), 0.99);
    let what_p99 = format!("{case}: p99 of accepted calls");
    if sheds {
        bounded(&what, goodput, "of the capacity", Bound::AtLeast(0.9));
        let wanted = Bound::AtMost(BOUND + 3.0 * HANDLING);
        bounded(&what_p99, p99, "ms", wanted);
        let quiet = surge + Duration::from_secs(5);
        let late = after.iter().filter(|call| call.due >= quiet);
        let late = late.filter(|call| is_busy(call)).count();
        let what = format!("{case}: refusals from 5 s after the surge on");
        bounded(&what, late as f64, "calls", Bound::AtMost(0.0));
    } else {
        unbounded(&what, goodput, "of the capacity");
        unbounded(&what_p99, p99, "ms");
    }
    let what = format!("{case}: the generator is late, p99");
    unbounded(&what, lateness(calls, 0.99), "ms");
    let last = after.iter().rfind(|call| call.result.is_err());
    let last = last.map(|call| call.due.saturating_sub(surge));
    eprintln!(
        "{case}: {} calls, {served} served, {refused} refused, {} failed; p50 of accepted calls \
         {:.0} ms; the last that was not served was due {:.1} s after the surge",
        during.len(),
        during.len() - served - refused,
        quantile(accepted(), 0.5),
        last.unwrap_or_default().as_secs_f64(),
    );
}

fn is_busy(call: &Ended) -> bool {
    let error = call.result.as_ref().err();
    error.is_some_and(|error| error.kind() == ErrorKind::Busy)
}
