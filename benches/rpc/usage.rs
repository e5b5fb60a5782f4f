//! Processor time, context switches and system calls while calls are measured: Linux only.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use crate::system_calls::SystemCalls;

/// The means of the machine that a measurement reads. Counting system calls slows them down, so
/// such a measurement has no other use.
#[derive(Clone, Copy)]
pub enum Watch {
    /// Processor time and context switches, also of the broker with this process id.
    Scheduler { broker: Option<u32> },
    /// System calls.
    SystemCalls,
}

/// Amounts per second; none where the machine does not show them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// The processor time of this process, client and server, in µs.
    pub own_us: Option<f64>,
    /// The processor time of the broker, in µs.
    pub broker_us: Option<f64>,
    /// The context switches of this process, voluntary or not.
    pub switches: Option<f64>,
    /// The system calls of this process.
    pub system_calls: Option<f64>,
}

/// A measurement that has begun.
pub enum Watched {
    Scheduler { broker: Option<u32>, from: Reading },
    SystemCalls(Option<SystemCalls>, Instant),
}

impl Watch {
    pub fn begin(self) -> Watched {
        match self {
            Self::Scheduler { broker } => Watched::Scheduler {
                broker,
                from: Reading::take(broker),
            },
            Self::SystemCalls => {
                let counter = SystemCalls::of_this_process();
                Watched::SystemCalls(counter, Instant::now())
            }
        }
    }
}

impl Watched {
    pub fn end(self) -> Usage {
        match self {
            Self::Scheduler { broker, from } => from.until(&Reading::take(broker)),
            Self::SystemCalls(counter, since) => {
                let seconds = since.elapsed().as_secs_f64();
                let count = counter.and_then(SystemCalls::finish);
                Usage {
                    system_calls: count.map(|count| count as f64 / seconds),
                    ..Usage::default()
                }
            }
        }
    }
}

/// The counters of every thread, by its id.
type Threads = HashMap<u32, Counters>;

struct Counters {
    processor_us: Option<f64>,
    switches: f64,
}

/// The counters of both processes at one time.
pub struct Reading {
    at: Instant,
    own: Threads,
    broker: Threads,
}

impl Reading {
    fn take(broker: Option<u32>) -> Self {
        let this = std::process::id();
        let mut own = threads(this);
        own.remove(&this); // the main thread, which only measures
        // The middle: with many threads the reading takes milliseconds.
        let at = Instant::now();
        let broker = broker.map(threads).unwrap_or_default();
        Self { at, own, broker }
    }

    /// Returns the growth per second of the threads that live at both ends.
    fn until(&self, end: &Self) -> Usage {
        let seconds = (end.at - self.at).as_secs_f64();
        let grown = |from: &Threads, to: &Threads, value: fn(&Counters) -> Option<f64>| {
            let both = to
                .iter()
                .filter_map(|(id, to)| Some(value(to)? - value(from.get(id)?)?));
            let all: Vec<f64> = both.collect();
            (!all.is_empty()).then(|| all.iter().sum::<f64>() / seconds)
        };
        let processor = |counters: &Counters| counters.processor_us;
        Usage {
            own_us: grown(&self.own, &end.own, processor),
            broker_us: grown(&self.broker, &end.broker, processor),
            switches: grown(&self.own, &end.own, |counters| Some(counters.switches)),
            system_calls: None,
        }
    }
}

/// Reads the counters of a process. A thread that ends meanwhile is left out.
fn threads(process: u32) -> Threads {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| {
            let id = task.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            // Exact, unlike the hundredths of a second in `stat`; not in every kernel.
            let schedule = fs::read_to_string(task.path().join("schedstat")).ok();
            let nanos = schedule.and_then(|it| it.split(' ').next()?.parse::<f64>().ok());
            let switches = status.lines().filter_map(|line| {
                line.split_once("ctxt_switches:")?
                    .1
                    .trim()
                    .parse::<f64>()
                    .ok()
            });
            let counters = Counters {
                processor_us: nanos.map(|nanos| nanos / 1e3),
                switches: switches.sum(),
            };
            Some((id, counters))
        })
        .collect()
}
