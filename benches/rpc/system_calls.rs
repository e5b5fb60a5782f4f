//! System calls of this process, counted by `perf stat`, where that is installed and allowed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

const EVENT: &str = "raw_syscalls:sys_enter";

/// A running count.
pub struct SystemCalls {
    perf: Child,
    answers: BufReader<ChildStdout>,
}

impl SystemCalls {
    /// Starts to count the system calls of all threads, and returns once it does; none if `perf`
    /// cannot.
    pub fn of_this_process() -> Option<Self> {
        let process = std::process::id().to_string();
        let mut perf = Command::new("perf")
            .args(["stat", "-x", ",", "-e", EVENT, "-p", &process])
            // Off at first, then ruled by commands on stdin, with answers on stdout.
            .args(["--delay=-1", "--control", "fd:0,1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let answers = BufReader::new(perf.stdout.take()?);
        let mut counter = Self { perf, answers };
        match counter.command("enable") {
            Some(()) => Some(counter),
            None => {
                let _ = counter.perf.kill();
                let _ = counter.perf.wait();
                None
            }
        }
    }

    /// Stops the count and returns it.
    pub fn finish(mut self) -> Option<u64> {
        let is_stopped = self.command("disable").is_some();
        let perf = self.perf.id().to_string();
        let ended = Command::new("kill").args(["-INT", &perf]).status();
        if !ended.is_ok_and(|status| status.success()) {
            let _ = self.perf.kill();
        }
        let output = self.perf.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find(|line| line.contains(EVENT))?;
        let count = line.split(',').next()?.parse().ok()?;
        is_stopped.then_some(count)
    }

    /// Sends a command, and waits for its answer, or for the end of `perf`.
    fn command(&mut self, command: &str) -> Option<()> {
        let stdin = self.perf.stdin.as_mut()?;
        writeln!(stdin, "{command}").ok()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).ok()?;
        answer.contains("ack").then_some(())
    }
}
