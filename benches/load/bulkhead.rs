//! An action that gets ten times as many calls as it may run, and what that does to another one.

use std::thread;
use std::time::Duration;

use coney::{ErrorKind, ServiceClient, ServiceServer};

use crate::brokers::{self, Transport};
use crate::figure::{Bound, bounded, unbounded};
use crate::latencies::{lateness, offer, quantile_since_sent};
use crate::load::{Ended, Target};

const SERVICE: &str = "bench-bulkhead";
const WORKERS: usize = 10;

/// The number of reports that may run at a time, and the time that each takes.
const REPORTS: usize = 2;
const REPORTING: Duration = Duration::from_millis(50);

/// The time that the other action takes: long enough that a fifth of it is not what a thread waits
/// for a processor.
const GETTING: Duration = Duration::from_millis(20);

/// The calls a second of the other action: two workers' worth.
const GETS: f64 = 100.0;

/// Slices, alone and flooded in turn.
const SLICES: u32 = 10;

const GET: Target = Target {
    service: SERVICE,
    action: "get",
    timeout: Duration::from_secs(5),
};

const REPORT: Target = Target {
    service: SERVICE,
    action: "report",
    timeout: Duration::from_secs(1),
};

/// Measures for so long with a bulkhead, and for half of it without one.
pub fn measure(length: Duration) {
    for transport in brokers::all() {
        run(&transport, true, length);
        run(&transport, false, length / 2);
    }
}

fn run(transport: &Transport, has_bulkhead: bool, length: Duration) {
    let server = ServiceServer::builder(&transport.broker, SERVICE)
        .workers(WORKERS)
        .respond("report", |number: u64| {
            thread::sleep(REPORTING);
            number
        })
        .respond("get", |number: u64| {
            thread::sleep(GETTING);
            number
        });
    let server = match has_bulkhead {
        true => server.at_most("report", REPORTS),
        false => server,
    };
    let _server = server.start().expect("the server starts");
    let client = ServiceClient::new(&transport.broker, "bench").expect("a client");
    let (mut alone, mut flooded, mut reports) = (vec![], vec![], vec![]);
    let flood = 10.0 * REPORTS as f64 / REPORTING.as_secs_f64();
    for _ in 0..SLICES / 2 {
        alone.extend(offer(&client, GET, GETS, length / SLICES));
        let others = offer(&client, REPORT, flood, length / SLICES);
        flooded.extend(offer(&client, GET, GETS, length / SLICES));
        reports.extend(others);
    }

    let case = match has_bulkhead {
        true => format!("at_most, one action flooded, {}", transport.name),
        false => format!("no at_most, one action flooded, {}", transport.name),
    };
    let p99 = [&alone, &flooded].map(|calls| quantile_since_sent(calls, 0.99));
    unbounded(&format!("{case}: p99 of the others alone"), p99[0], "ms");
    let what = format!("{case}: p99 of the others");
    match has_bulkhead {
        true => bounded(&what, p99[1] / p99[0], "of alone", Bound::AtMost(1.2)),
        false => unbounded(&what, p99[1] / p99[0], "of alone"),
    }
    let late = lateness(alone.iter().chain(&flooded), 0.99);
    unbounded(&format!("{case}: the generator is late, p99"), late, "ms");
    let failed =
        [&alone, &flooded].map(|calls| calls.iter().filter(|it| it.result.is_err()).count());
    eprintln!(
        "{case}: p50 of the others alone {:.1} ms, flooded {:.1} ms; {} and {} of them failed; of {} \
         reports {} were served, {} refused as busy",
        quantile_since_sent(&alone, 0.5),
        quantile_since_sent(&flooded, 0.5),
        failed[0],
        failed[1],
        reports.len(),
        reports.iter().filter(|it| it.result.is_ok()).count(),
        reports.iter().filter(|it| is_busy(it)).count(),
    );
}

fn is_busy(call: &Ended) -> bool {
    let error = call.result.as_ref().err();
    error.is_some_and(|error| error.kind() == ErrorKind::Busy)
}
