//! Rate limits: the cost of a check, and one limit that eight processes share in Redis.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coney::redis::Redis;
use coney::resilience::RateLimit;
use coney::{Broker, ServiceClient, ServiceServer};
use parking_lot::Mutex;

use crate::figure::{Bound, bounded, unbounded};
use crate::server::Server;

/// The shared rate, in calls a second.
const RATE: u32 = 2_000;
const PROCESSES: usize = 8;

/// The threads of each process that call without a pause longer than a millisecond: together they
/// want several times the share of the process.
const CALLERS: usize = 2;

/// The time until the processes have counted each other.
const WARM_UP: Duration = Duration::from_secs(7);

/// The interval at which a process prints what it has admitted.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Measures for so long each time.
pub fn run(length: Duration) {
    measure_check();
    measure_requests(length);
    measure_processes(length);
}

#[cfg(feature = "_bench")]
fn measure_check() {
    use coney::internals::ActionLimit;

    // A block is shorter than a turn of the scheduler: one that the machine has disturbed does not
    // move the median.
    const CHECKS: u32 = 2_000;
    const BLOCKS: u32 = 2_001;
    let rate = RateLimit::per_second(1_000_000_000);
    let whole = ActionLimit::new(&rate, false);
    let time = |check: &dyn Fn(Instant) -> bool| {
        let mut now = Instant::now();
        let blocks = (0..BLOCKS).map(|_| {
            let (begin, mut admitted) = (Instant::now(), 0);
            for _ in 0..CHECKS {
                // A nanosecond each, so that every check is admitted.
                now += Duration::from_nanos(1);
                admitted += u32::from(check(now));
            }
            assert_eq!(admitted, CHECKS);
            begin.elapsed().as_nanos() as f64 / f64::from(CHECKS)
        });
        crate::figure::median(blocks.collect())
    };
    let alone = time(&|now| whole.admits(None, now));
    bounded("check of a local limit", alone, "ns", Bound::AtMost(40.0));
    let by_key = ActionLimit::new(&rate, true);
    let of_key = time(&|now| by_key.admits(Some("a-tenant"), now));
    unbounded("check of a local limit by key", of_key, "ns");
}

#[cfg(not(feature = "_bench"))]
fn measure_check() {
    eprintln!("the check of a local limit is measured with --features _bench");
}

/// Measures the requests to Redis of one process that makes 10,000 calls a second below its limit.
fn measure_requests(length: Duration) {
    let redis = Server::redis();
    let limit = RateLimit::per_second(20_000).shared(&connect(redis.url()), "busy");
    let broker = Broker::memory();
    let _server = ServiceServer::builder(&broker, "work")
        .respond("work", |n: u64| n)
        .limit("work", limit.shared_by(1))
        .start()
        .expect("the server starts");
    let client = ServiceClient::new(&broker, "bench").expect("a client");
    let (begin, mut calls, mut refused) = (Instant::now(), 0u32, 0u32);
    let evals_before = evals(&redis);
    while begin.elapsed() < length {
        // Ten at a time, each millisecond.
        for _ in 0..10 {
            calls += 1;
            refused += u32::from(client.call::<u64>("work", "work", &1).is_err());
        }
        let due = begin + Duration::from_micros(100) * calls;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let asked = (evals(&redis) - evals_before) as f64 / seconds;
    let pace = f64::from(calls) / seconds;
    unbounded("calls of one process below its shared limit", pace, "1/s");
    bounded(
        "requests to Redis meanwhile",
        asked,
        "1/s",
        Bound::AtMost(25.0),
    );
    let refused = f64::from(refused) / f64::from(calls);
    bounded("refused of them", refused, "of 1", Bound::AtMost(0.01));
}

/// Measures eight processes that all want more than their share.
fn measure_processes(length: Duration) {
    let mut redis = Server::redis();
    let processes: Vec<Process> = (0..PROCESSES)
        .map(|_| Process::start(redis.url()))
        .collect();
    thread::sleep(WARM_UP);

    let evals_before = evals(&redis);
    let begin = Instant::now();
    let admitted = measure(&processes, length);
    let asked = (evals(&redis) - evals_before) as f64 / begin.elapsed().as_secs_f64();
    let of_rate = admitted.iter().sum::<f64>() / f64::from(RATE);
    bounded(
        "eight processes share 2,000/s",
        of_rate,
        "of the rate",
        Bound::Within(0.95, 1.02),
    );
    let share = f64::from(RATE) / PROCESSES as f64;
    let least = admitted.iter().copied().fold(f64::MAX, f64::min) / share;
    let most = admitted.iter().copied().fold(0.0, f64::max) / share;
    unbounded("the process that got least", least, "of its share");
    unbounded("the process that got most", most, "of its share");
    let asked = asked / PROCESSES as f64;
    // The registry's heartbeats are scripts too, one in ten seconds.
    bounded(
        "requests to Redis of each process",
        asked,
        "1/s",
        Bound::AtMost(25.0),
    );
    let gap = processes
        .iter()
        .map(|it| it.longest_gap.load(Ordering::Relaxed))
        .max();
    let gap = gap.unwrap_or_default() as f64;
    bounded(
        "longest time without an admitted call",
        gap,
        "ms",
        Bound::AtMost(1_000.0),
    );

    redis.kill();
    thread::sleep(Duration::from_secs(1));
    let killed = measure(&processes, length).iter().sum::<f64>() / f64::from(RATE);
    bounded(
        "Redis is killed",
        killed,
        "of the rate",
        Bound::Within(0.5, 1.1),
    );

    redis.start_again();
    thread::sleep(Duration::from_secs(2));
    let back = measure(&processes, length).iter().sum::<f64>() / f64::from(RATE);
    bounded(
        "Redis is back",
        back,
        "of the rate",
        Bound::Within(0.95, 1.02),
    );
}

/// Returns the calls a second that each process has admitted.
fn measure(processes: &[Process], length: Duration) -> Vec<f64> {
    let read = || {
        processes
            .iter()
            .map(|it| *it.last.lock())
            .collect::<Vec<_>>()
    };
    let before = read();
    thread::sleep(length);
    let rates = read().into_iter().zip(before).map(|(after, before)| {
        let time = after.0.saturating_sub(before.0).max(1) as f64 / 1_000.0;
        (after.1 - before.1) as f64 / time
    });
    rates.collect()
}

/// Returns the number of scripts that Redis has run.
fn evals(redis: &Server) -> u64 {
    let stats = redis.ctl(&["INFO", "commandstats"]);
    let calls = stats.split("cmdstat_eval:calls=").nth(1);
    let calls = calls.and_then(|rest| rest.split(',').next());
    calls
        .and_then(|calls| calls.parse().ok())
        .unwrap_or_default()
}

fn connect(url: &str) -> Redis {
    Redis::builder(url)
        .timeout(Duration::from_millis(500))
        .build()
        .expect("a valid URL")
}

/// A process with a server and callers of its own. Ends when its input is closed.
struct Process {
    child: Child,
    /// The last report: the time in ms by the process's own clock, and the calls admitted by then.
    last: Arc<Mutex<(u64, u64)>>,
    /// The longest time in ms without an admitted call, once all processes run.
    longest_gap: Arc<AtomicU64>,
}

impl Process {
    fn start(url: &str) -> Self {
        let executable = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new(executable)
            .args(["--process", "limit", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the process starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = lines.next();
        assert!(
            ready.is_some_and(|line| line.is_ok()),
            "the process is not ready"
        );
        let process = Self {
            child,
            last: Arc::default(),
            longest_gap: Arc::default(),
        };
        let (last, longest_gap) = (Arc::clone(&process.last), Arc::clone(&process.longest_gap));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let numbers = line.split(' ').map_while(|number| number.parse().ok());
                if let [time, admitted, gap] = *numbers.collect::<Vec<u64>>() {
                    *last.lock() = (time, admitted);
                    if u128::from(time) > WARM_UP.as_millis() {
                        longest_gap.fetch_max(gap, Ordering::Relaxed);
                    }
                }
            }
        });
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs as one of the processes: `limit URL`.
pub fn run_process(arguments: &[String]) {
    let [_, url] = arguments else {
        panic!("--process limit URL");
    };
    let (broker, redis) = (Broker::memory(), connect(url));
    let limit = RateLimit::per_second(RATE).shared(&redis, "eight");
    let _server = ServiceServer::builder(&broker, "eight")
        .respond("work", |n: u64| n)
        .limit("work", limit)
        .registry(&redis.registry())
        .start()
        .expect("the server starts");
    let client = ServiceClient::new(&broker, "bench").expect("a client");
    let begin = Instant::now();
    let (admitted, last) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for _ in 0..CALLERS {
        let (client, admitted, last) = (client.clone(), Arc::clone(&admitted), Arc::clone(&last));
        thread::spawn(move || {
            loop {
                match client.call::<u64>("eight", "work", &1) {
                    Ok(_) => {
                        admitted.fetch_add(1, Ordering::Relaxed);
                        let now = begin.elapsed().as_millis() as u64;
                        last.store(now, Ordering::Relaxed);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    println!("ready");
    let mut gap = 0;
    loop {
        thread::sleep(REPORT_INTERVAL);
        let now = begin.elapsed().as_millis() as u64;
        gap = match u128::from(now) > WARM_UP.as_millis() {
            true => gap.max(now - last.load(Ordering::Relaxed).min(now)),
            false => 0,
        };
        println!("{now} {} {gap}", admitted.load(Ordering::Relaxed));
    }
}
