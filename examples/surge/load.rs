//! An open-loop load: calls that begin at fixed times, whether or not those before have ended.
//!
//! Callers that wait for each answer call less often when the service is slow, and hide that it is.
//! Users do not: so each call has a time at which it is due, and its latency counts from then.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use coney::{CallOptions, ServiceClient};

/// A part of a load: so many calls a second, at equal distances.
#[derive(Clone, Copy)]
pub struct Phase {
    pub lasts: Duration,
    pub per_second: f64,
}

/// The action that is called.
#[derive(Clone, Copy)]
pub struct Target {
    pub service: &'static str,
    pub action: &'static str,
    pub timeout: Duration,
}

/// A call that has ended.
pub struct Ended {
    /// The time at which it was due, since the begin of the load.
    #[allow(
        dead_code,
        reason = "the benchmark `load` shares this file and reads it"
    )]
    pub due: Duration,
    /// The time by which it was sent too late: the machine or the client held up the generator.
    pub late: Duration,
    /// The time from the one at which it was due until it had ended.
    pub took: Duration,
    pub result: coney::Result<u64>,
}

/// Returns the times at which calls are due.
pub fn due_times(phases: &[Phase]) -> Vec<Duration> {
    let mut begin = Duration::ZERO;
    let mut due = Vec::new();
    for phase in phases {
        let calls = (phase.lasts.as_secs_f64() * phase.per_second).round() as u32;
        due.extend((0..calls).map(|number| begin + phase.lasts * number / calls));
        begin += phase.lasts;
    }
    due
}

/// Starts a thread that makes the calls. The receiver gets each of them once, and ends with the
/// last.
pub fn start(client: &ServiceClient, target: Target, due: Vec<Duration>) -> Receiver<Ended> {
    let (ended, calls) = channel();
    let (client, begin) = (client.clone(), Instant::now());
    thread::spawn(move || {
        let options = CallOptions::new().timeout(target.timeout);
        for (number, due) in (0..).zip(due) {
            thread::sleep((begin + due).saturating_duration_since(Instant::now()));
            let call = Call {
                due,
                due_at: begin + due,
                sent: Instant::now(),
                ended: ended.clone(),
            };
            call.send(&client, target, number, &options);
        }
    });
    calls
}

/// A call that is on its way.
#[derive(Clone)]
struct Call {
    due: Duration,
    due_at: Instant,
    sent: Instant,
    ended: Sender<Ended>,
}

impl Call {
    fn send(self, client: &ServiceClient, to: Target, number: u64, options: &CallOptions) {
        let answered = self.clone();
        let sent = client
            .call_async_with(to.service, to.action, &number, options)
            // The callback runs on a thread of the client.
            .and_then(|reply| reply.then(move |result| answered.end(result)));
        if let Err(error) = sent {
            self.end(Err(error));
        }
    }

    fn end(self, result: coney::Result<u64>) {
        // The receiver has gone if the program ends early.
        let _ = self.ended.send(Ended {
            due: self.due,
            late: self.sent.duration_since(self.due_at),
            took: self.due_at.elapsed(),
            result,
        });
    }
}
