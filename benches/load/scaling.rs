//! A number of workers that follows the load: a step of calls that wait, and calls that compute.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::{Context, ServiceClient, ServiceServer};

use crate::brokers::{self, Transport};
use crate::figure::{Bound, bounded, unbounded};
use crate::latencies::{lateness, quantile};
use crate::load::{self, Ended, Phase, Target};

const LEAST: usize = 2;
const MOST: usize = 32;

/// The calls a second before and after the step, and the time that each takes.
const BEFORE: f64 = 10.0;
const AFTER: f64 = 300.0;
const HANDLING: Duration = Duration::from_millis(50);

/// The time after the step from which on calls have to be as fast as before.
const SETTLED: Duration = Duration::from_secs(1);

/// The time for which it is waited until the idle workers have ended.
const PATIENCE: Duration = Duration::from_secs(30);

const TARGET: Target = Target {
    service: "bench-scaling",
    action: "work",
    timeout: Duration::from_secs(5),
};

/// Measures steps of such a length, and computing calls for half of it.
pub fn measure(step: Duration) {
    for transport in brokers::all() {
        let shorter = (step / 2).max(2 * SETTLED);
        let alone = run_step(&transport, MOST..=MOST, shorter);
        let name = transport.name;
        let what = format!("step of the load, {MOST} workers from the start, {name}: p99");
        unbounded(&what, settled_p99(&alone.calls, shorter), "ms");
        let stepped = run_step(&transport, LEAST..=MOST, step);
        stepped.report(&format!("step of the load, {name}"), step);
        compute(&transport, step / 2);
    }
}

/// The observations of a step.
struct Stepped {
    calls: Vec<Ended>,
    most_workers: usize,
    /// The time of quiet until there was the least number of workers, if there ever was.
    back_after: Option<Duration>,
    interrupted: u64,
    redelivered: u64,
}

/// The handlers that have begun and ended, and the redelivered calls among them.
#[derive(Default)]
struct Runs {
    begun: AtomicU64,
    ended: AtomicU64,
    redelivered: AtomicU64,
}

impl Runs {
    fn handle(&self, context: &Context<'_>) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let is_redelivered = u64::from(context.is_redelivered());
        self.redelivered
            .fetch_add(is_redelivered, Ordering::Relaxed);
        thread::sleep(HANDLING);
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the length of the time before a step.
fn before(step: Duration) -> Duration {
    step / 4
}

fn run_step(
    transport: &Transport,
    workers: std::ops::RangeInclusive<usize>,
    step: Duration,
) -> Stepped {
    let runs = Arc::new(Runs::default());
    let handler = Arc::clone(&runs);
    let scales = workers.start() < workers.end();
    let server = ServiceServer::builder(&transport.broker, TARGET.service)
        // With a fixed number of workers the prefetch would be 10.
        .prefetch(*workers.start() as u16)
        .workers(workers)
        .respond_with_context(TARGET.action, move |context, number: u64| {
            handler.handle(context);
            number
        })
        .start()
        .expect("the server starts");
    let client = ServiceClient::new(&transport.broker, "bench").expect("a client");
    let phases = [
        Phase {
            lasts: before(step),
            per_second: BEFORE,
        },
        Phase {
            lasts: step,
            per_second: AFTER,
        },
    ];
    let calls = load::start(&client, TARGET, load::due_times(&phases));
    let (calls, most_workers) = watch(&server, || calls.iter().collect::<Vec<_>>());
    let quiet = Instant::now();
    let back_after = scales.then(|| time_until_least(&server, quiet)).flatten();
    server.shutdown(PATIENCE).expect("the server ends");
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    Stepped {
        calls,
        most_workers,
        back_after,
        interrupted: count(&runs.begun) - count(&runs.ended),
        redelivered: count(&runs.redelivered),
    }
}

/// Returns the result of the function, and the largest number of workers meanwhile.
fn watch<R>(server: &ServiceServer, during: impl FnOnce() -> R) -> (R, usize) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(server.load().workers);
                thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let result = during();
        is_over.store(true, Ordering::Relaxed);
        (result, watcher.join().expect("the watcher does not panic"))
    })
}

fn time_until_least(server: &ServiceServer, quiet: Instant) -> Option<Duration> {
    while quiet.elapsed() < PATIENCE {
        if server.load().workers <= LEAST {
            return Some(quiet.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Returns the p99 in ms of the calls that were due a second after the step, or later.
fn settled_p99(calls: &[Ended], step: Duration) -> f64 {
    let from = before(step) + SETTLED;
    quantile(calls.iter().filter(|call| call.due >= from), 0.99)
}

impl Stepped {
    fn report(&self, case: &str, step: Duration) {
        let calls = &self.calls;
        let settled = settled_p99(calls, step);
        let what = format!("{case}: p99 from 1 s after it on");
        bounded(&what, settled, "ms", Bound::AtMost(150.0));
        let what = format!("{case}: workers at most");
        unbounded(&what, self.most_workers as f64, "workers");
        let back = self.back_after.map_or(f64::INFINITY, |it| it.as_secs_f64());
        let what = format!("{case}: time of quiet until {LEAST} workers are left");
        bounded(&what, back, "s", Bound::AtMost(13.0));
        let none = Bound::AtMost(0.0);
        let interrupted = self.interrupted as f64;
        bounded(
            &format!("{case}: handlers interrupted"),
            interrupted,
            "",
            none,
        );
        let redelivered = self.redelivered as f64;
        bounded(&format!("{case}: redelivered calls"), redelivered, "", none);
        let failed = calls.iter().filter(|call| call.result.is_err()).count();
        bounded(&format!("{case}: failed calls"), failed as f64, "", none);
        let what = format!("{case}: the generator is late, p99");
        unbounded(&what, lateness(calls, 0.99), "ms");
        let begin = before(step);
        let early = begin..begin + SETTLED;
        let early = || calls.iter().filter(|call| early.contains(&call.due));
        let slow = calls
            .iter()
            .rfind(|it| it.took > Duration::from_millis(150));
        eprintln!(
            "{case}: in the first second p50 {:.0} ms, p99 {:.0} ms; the last call over 150 ms was due \
             {:.2} s after the step",
            quantile(early(), 0.5),
            quantile(early(), 0.99),
            slow.map_or(0.0, |call| call.due.as_secs_f64() - begin.as_secs_f64()),
        );
    }
}

/// The callers of calls that compute, and the time that one of them takes alone.
const CALLERS: usize = 8;
const COMPUTING: Duration = Duration::from_millis(20);

/// Measures calls that compute: more workers than the processors can run do not help.
fn compute(transport: &Transport, length: Duration) {
    let rounds = rounds_within(COMPUTING);
    let name = transport.name;
    let case = format!("{CALLERS} callers of 20 ms of computing, {name}");
    let (fixed, _) = run_computing(transport, LEAST..=LEAST, rounds, length / 2);
    unbounded(&format!("{case}, {LEAST} workers"), fixed, "1/s");
    let (scaled, most) = run_computing(transport, LEAST..=MOST, rounds, length);
    unbounded(&format!("{case}, {LEAST} to {MOST} workers"), scaled, "1/s");
    let what = format!("{case}: workers at most");
    bounded(&what, most as f64, "workers", Bound::AtMost(4.0));
}

/// Returns the calls a second, and the largest number of workers.
fn run_computing(
    transport: &Transport,
    workers: std::ops::RangeInclusive<usize>,
    rounds: u64,
    length: Duration,
) -> (f64, usize) {
    let server = ServiceServer::builder(&transport.broker, "bench-computing")
        .workers(workers)
        .respond("compute", move |seed: u64| mix(seed, rounds))
        .start()
        .expect("the server starts");
    let client = ServiceClient::new(&transport.broker, "bench").expect("a client");
    let (begin, calls) = (Instant::now(), AtomicU64::new(0));
    let ((), most) = watch(&server, || {
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    while begin.elapsed() < length {
                        let answer = client.call::<u64>("bench-computing", "compute", &7);
                        answer.expect("the call succeeds");
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    let rate = calls.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
    (rate, most)
}

/// Returns the rounds of computing that take so long, when nothing else runs.
fn rounds_within(time: Duration) -> u64 {
    const ROUNDS: u64 = 1_000_000;
    let fastest = (0..20).map(|_| {
        let begin = Instant::now();
        mix(black_box(7), ROUNDS);
        begin.elapsed()
    });
    let fastest = fastest.min().unwrap_or(time);
    (ROUNDS as f64 * time.as_secs_f64() / fastest.as_secs_f64()) as u64
}

/// Computes something that is not shortened.
fn mix(seed: u64, rounds: u64) -> u64 {
    let mix = |value: u64, round: u64| {
        let value = black_box(value.rotate_left(5) ^ round);
        value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    (0..rounds).fold(seed, mix)
}
