//! The counters of a second, or of a run; the line that is printed for it, and the table at the end.

use std::time::Duration;

use coney::ErrorKind;
use coney::server::WorkerLoad;

use super::load::Ended;

/// The calls of a second, or of a run, and the state of the server after it.
#[derive(Clone, Default)]
pub struct Counts {
    /// The calls that were due.
    pub offered: u64,
    /// The calls that have ended, whenever they were due.
    pub served: u64,
    pub busy: u64,
    pub failed: u64,
    /// The largest time by which a call was sent too late.
    pub late: Duration,
    /// The latencies of the served calls.
    latencies: Vec<Duration>,
    /// The number of workers: at the end of a second, the largest of a run.
    pub workers: usize,
    /// The estimated wait, likewise, if the server knows it.
    pub wait: Option<Duration>,
}

impl Counts {
    /// Adds a call.
    pub fn add(&mut self, call: &Ended) {
        self.late = self.late.max(call.late);
        match &call.result {
            Ok(_) => {
                self.served += 1;
                self.latencies.push(call.took);
            }
            Err(error) if error.kind() == ErrorKind::Busy => self.busy += 1,
            Err(_) => self.failed += 1,
        }
    }

    /// Adds the state of the server, which counts the messages in its queue, or does not.
    pub fn see(&mut self, load: &WorkerLoad, counts_queue: bool) {
        self.workers = load.workers;
        self.wait = counts_queue.then_some(load.estimated_wait);
    }

    /// Adds the counts of a second to those of a run.
    pub fn merge(&mut self, second: &Self) {
        self.offered += second.offered;
        self.served += second.served;
        self.busy += second.busy;
        self.failed += second.failed;
        self.late = self.late.max(second.late);
        self.latencies.extend(&second.latencies);
        self.workers = self.workers.max(second.workers);
        self.wait = self.wait.max(second.wait);
    }

    /// Returns the latency that such a part of the served calls keep, if there are any.
    pub fn latency(&self, part: f64) -> Option<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() as f64 * part).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// Returns the heading of the lines.
    pub fn heading() -> String {
        format!(
            "{:>2}  {:>7}  {:>6}  {:>5}  {:>6}  {:>7}  {:>7}  {:>7}  {:>14}",
            "", "offered", "served", "busy", "failed", "p50", "p99", "workers", "estimated wait"
        )
    }

    /// Returns the line of a second.
    pub fn line(&self, number: usize) -> String {
        format!(
            "{number:>2}  {:>7}  {:>6}  {:>5}  {:>6}  {:>7}  {:>7}  {:>7}  {:>14}",
            self.offered,
            self.served,
            self.busy,
            self.failed,
            milliseconds(self.latency(0.5)),
            milliseconds(self.latency(0.99)),
            self.workers,
            milliseconds(self.wait),
        )
    }

    /// Returns the table of the runs, in Markdown.
    pub fn table(runs: &[(&str, Self)]) -> String {
        let mut table = String::from(
            "\
|                           | offered | served | busy | failed |     p50 |     p99 | most workers |
| ------------------------- | ------: | -----: | ---: | -----: | ------: | ------: | -----------: |",
        );
        for (name, counts) in runs {
            table += &format!(
                "\n| {name:25} | {:>7} | {:>6} | {:>4} | {:>6} | {:>7} | {:>7} | {:>12} |",
                counts.offered,
                counts.served,
                counts.busy,
                counts.failed,
                milliseconds(counts.latency(0.5)),
                milliseconds(counts.latency(0.99)),
                counts.workers,
            );
        }
        table
    }
}

fn milliseconds(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |time| format!("{} ms", time.as_millis()))
}
