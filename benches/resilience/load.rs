//! Callers that call at fixed times, however long their calls take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coney::{CallOptions, ErrorKind, ServiceClient};

/// A rate of calls, and the threads that make them in turn. A call that is over within
/// `callers / per_second` delays none.
#[derive(Clone, Copy)]
pub struct Rate {
    pub per_second: u32,
    pub callers: u32,
}

/// A call that has ended.
pub struct Sample {
    /// Its payload.
    pub number: u64,
    pub begun: Instant,
    /// The time by which it began too late: the machine, or the caller's last call, held it up.
    pub late: Duration,
    pub took: Duration,
    pub result: Result<u64, Failure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A policy refused it.
    Refused,
    TimedOut,
    Other,
}

/// A load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Vec<Sample>>>,
}

impl Load {
    /// Starts calling an action named `call`, with the numbers of the calls.
    pub fn start(
        client: &ServiceClient,
        service: &'static str,
        rate: Rate,
        timeout: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let callers = (0..rate.callers).map(|first| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let options = CallOptions::new().timeout(timeout);
                let numbers = (u64::from(first)..).step_by(rate.callers as usize);
                let mut samples = Vec::new();
                for number in numbers {
                    let due = start + Duration::from_secs(number) / rate.per_second;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    let result = client.call_with(service, "call", &number, &options);
                    samples.push(Sample {
                        number,
                        begun,
                        late: begun.duration_since(due),
                        took: begun.elapsed(),
                        result: result.map_err(|error: coney::Error| match error.kind() {
                            ErrorKind::Rejected => Failure::Refused,
                            ErrorKind::TimedOut => Failure::TimedOut,
                            _ => Failure::Other,
                        }),
                    });
                }
                samples
            })
        });
        Self {
            callers: callers.collect(),
            stop,
        }
    }

    /// Stops calling, and returns the calls in the order in which they began.
    pub fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.callers.into_iter().map(JoinHandle::join);
        let samples = joined.flat_map(|samples| samples.expect("callers do not panic"));
        let mut samples: Vec<Sample> = samples.collect();
        samples.sort_by_key(|sample| sample.begun);
        samples
    }
}
