//! Single callers in processes of their own, with and without spinning: what one caller gains must
//! not be lost where processors are few.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use coney::{Broker, ServiceClient, ServiceServer};
use serde::{Deserialize, Serialize};

use crate::Options;
use crate::bounds::{Bound, bounded, median};
use crate::measure::{Call, measure};
use crate::target::Target;
use crate::usage::Watch;

const SERVICE: &str = "bench-processes";

/// The rate with spinning, as a part of that without, down to which they count as the same: single
/// rounds differ by more.
const SAME: f64 = 0.95;

/// A process that this benchmark starts of itself.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Role {
    Server,
    Caller,
}

/// The figures of one caller.
#[derive(Serialize, Deserialize)]
struct Outcome {
    calls_per_s: f64,
    p50_us: f64,
    errors: u64,
}

/// Measures so many callers with and without spinning, in turn, and prints both.
pub fn compare(options: &Options, target: &Target, callers: usize) {
    let server = Process::start(Role::Server, options, target, true);
    let slice = Duration::from_secs_f64(options.seconds) / options.pairs;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..options.pairs {
        for turn in 0..2 {
            let spins = (round + turn) % 2 == 0;
            let outcome = run(options, target, callers, spins);
            match spins {
                true => with.push(outcome),
                false => without.push(outcome),
            }
        }
    }
    drop(server);
    let seconds = slice.as_secs_f64() * f64::from(options.pairs);
    for (spins, outcomes) in [(true, &with), (false, &without)] {
        let line = serde_json::json!({
            "scenario": "processes",
            "callers": callers,
            "spin": spins,
            "slices": options.pairs,
            "seconds": seconds,
            "calls_per_s": median(outcomes.iter().map(|it| it.calls_per_s).collect()).round(),
            "p50_us": median(outcomes.iter().map(|it| it.p50_us).collect()).round(),
            "errors": outcomes.iter().map(|it| it.errors).sum::<u64>(),
        });
        println!("{line}");
    }
    let pairs = with.iter().zip(&without);
    let ratio = median(pairs.map(|(a, b)| a.calls_per_s / b.calls_per_s).collect());
    let what = format!("rate of {callers} processes with a caller each, with spinning");
    bounded(&what, ratio, "of without", Bound::AtLeast(SAME));
}

/// Measures all callers at the same time. Returns the sum of their rates, and the median of their
/// median latencies.
fn run(options: &Options, target: &Target, callers: usize, spins: bool) -> Outcome {
    let start = |_| Process::start(Role::Caller, options, target, spins);
    let mut processes: Vec<Process> = (0..callers).map(start).collect();
    for process in &mut processes {
        process.go();
    }
    let outcomes: Vec<Outcome> = processes.into_iter().map(Process::outcome).collect();
    Outcome {
        calls_per_s: outcomes.iter().map(|it| it.calls_per_s).sum(),
        p50_us: median(outcomes.iter().map(|it| it.p50_us).collect()),
        errors: outcomes.iter().map(|it| it.errors).sum(),
    }
}

/// A running process, which ends with its stdin.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a process, and waits until it is ready.
    fn start(role: Role, options: &Options, target: &Target, spins: bool) -> Self {
        let seconds = options.seconds / f64::from(options.pairs);
        let mut command = Command::new(std::env::current_exe().expect("Linux"));
        command
            .env("AMQP_URL", &target.url)
            .args(["--process", &format!("{role:?}").to_lowercase()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--payload", &options.payload.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if !spins {
            command.arg("--no-spin");
        }
        let mut child = command.spawn().expect("the benchmark runs");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        process.line();
        process
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line);
        assert!(read.is_ok_and(|bytes| bytes > 0), "the process has failed");
        line
    }

    fn go(&mut self) {
        let stdin = self.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "go").expect("the process waits for it");
    }

    fn outcome(mut self) -> Outcome {
        serde_json::from_str(&self.line()).expect("an outcome")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// Runs as one of the processes.
pub fn run_as(role: Role, options: &Options) {
    let url = std::env::var("AMQP_URL").expect("the starting process has set it");
    let broker = Broker::connect(&url).expect("the broker is there");
    match role {
        Role::Server => {
            let _server = ServiceServer::builder(&broker, SERVICE)
                .respond("echo", |text: String| text)
                .start()
                .expect("the server starts");
            println!("ready");
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
        }
        Role::Caller => {
            let client = ServiceClient::builder(&broker, "bench").spin(!options.no_spin);
            let client = client.build().expect("the client starts");
            let payload = "x".repeat(options.payload);
            let call: Call = Box::new(move || {
                let reply: coney::Result<String> = client.call(SERVICE, "echo", &payload);
                reply.is_ok_and(|text| text == payload)
            });
            println!("ready");
            let _ = std::io::stdin().read_line(&mut String::new());
            let length = Duration::from_secs_f64(options.seconds);
            let slice = measure(vec![call], length, Watch::Scheduler { broker: None });
            let outcome = Outcome {
                calls_per_s: slice.latencies.len() as f64 / slice.seconds,
                p50_us: slice.latencies.value_at_quantile(0.5) as f64 / 1e3,
                errors: slice.errors,
            };
            println!(
                "{}",
                serde_json::to_string(&outcome).expect("plain numbers")
            );
        }
    }
}
