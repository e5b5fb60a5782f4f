//! A run: one server, and the load that steps up and down.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use coney::{Broker, ServiceClient};

use super::counts::Counts;
use super::load::{self, Ended, Phase, Target};
use super::servers::{ACTION, Kind, SERVICE};

/// The time for which each caller waits.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The calls a second, and the part of a run for which they last.
const SCHEDULE: [(f64, f64); 3] = [(10.0, 1.0 / 6.0), (300.0, 1.0 / 3.0), (10.0, 0.5)];

/// Runs the schedule against a server of its own, and calls `after` with the counts of each
/// interval. Returns the counts of each, the last of which includes the calls that ended later.
pub fn run(
    broker: &Broker,
    kind: Kind,
    length: Duration,
    interval: Duration,
    mut after: impl FnMut(usize, &Counts),
) -> coney::Result<Vec<Counts>> {
    let server = kind.start(broker)?;
    let client = ServiceClient::new(broker, "surge")?;
    let phases = SCHEDULE.map(|(per_second, part)| Phase {
        lasts: length.mul_f64(part),
        per_second,
    });
    let due = load::due_times(&phases);
    let target = Target {
        service: SERVICE,
        action: ACTION,
        timeout: TIMEOUT,
    };
    let begin = Instant::now();
    let calls = load::start(&client, target, due.clone());
    let due_before = |time: Duration| due.partition_point(|due| *due < time) as u64;

    let mut intervals = Vec::new();
    let mut end = Duration::ZERO;
    while end + interval <= length {
        end += interval;
        let mut counts = Counts::default();
        collect(&calls, begin + end, &mut counts);
        counts.offered = due_before(end) - due_before(end - interval);
        counts.see(&server.load(), kind.counts_queue());
        after(intervals.len() + 1, &counts);
        intervals.push(counts);
    }
    let mut rest = Counts::default();
    collect(&calls, Instant::now() + TIMEOUT * 10, &mut rest);
    rest.offered = due.len() as u64 - due_before(end);
    if let Some(last) = intervals.last_mut() {
        last.merge(&rest);
    }
    Ok(intervals)
}

/// Counts the calls that end until then, or until the last has ended.
fn collect(calls: &Receiver<Ended>, until: Instant, counts: &mut Counts) {
    let left = || until.saturating_duration_since(Instant::now());
    while let Ok(call) = calls.recv_timeout(left()) {
        counts.add(&call);
    }
}
