//! The latencies of an open-loop load.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use coney::ServiceClient;

use crate::load::{self, Ended, Phase, Target};

/// Starts so many calls a second for a while.
pub fn offer(
    client: &ServiceClient,
    target: Target,
    per_second: f64,
    lasts: Duration,
) -> Receiver<Ended> {
    let phase = Phase { lasts, per_second };
    load::start(client, target, load::due_times(&[phase]))
}

/// Returns the time in ms that such a part of the calls took at most, from when they were due.
pub fn quantile<'a>(calls: impl IntoIterator<Item = &'a Ended>, part: f64) -> f64 {
    part_of(calls.into_iter().map(|call| call.took), part)
}

/// Returns the time in ms that such a part of the calls took at most, from when they were sent: for
/// comparisons in which the generator is not to be measured.
pub fn quantile_since_sent<'a>(calls: impl IntoIterator<Item = &'a Ended>, part: f64) -> f64 {
    let times = calls
        .into_iter()
        .map(|call| call.took.saturating_sub(call.late));
    part_of(times, part)
}

/// Returns the time in ms by which such a part of the calls was sent too late at most.
pub fn lateness<'a>(calls: impl IntoIterator<Item = &'a Ended>, part: f64) -> f64 {
    part_of(calls.into_iter().map(|call| call.late), part)
}

fn part_of(times: impl Iterator<Item = Duration>, part: f64) -> f64 {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let rank = (times.len() as f64 * part).ceil() as usize;
    let time = times.get(rank.saturating_sub(1));
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
