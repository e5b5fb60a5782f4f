//! Processes that the tests can kill. Their program is `tests/processes/service.rs`, which is
//! built as an example.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, unbounded};
use parking_lot::Mutex;

use super::PATIENCE;

/// Returns the path at which Cargo builds an example.
pub fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop(); // deps
    path.set_file_name("examples");
    path.join(name)
}

/// A running process. Killed on drop.
pub struct Process {
    process: Child,
    lines: Receiver<String>,
    /// The last lines that it wrote to stderr, for the panic of a test.
    errors: Arc<Mutex<VecDeque<String>>>,
}

/// The number of lines of stderr that are kept.
const MOST_ERRORS: usize = 40;

fn collect_errors(stderr: impl Read + Send + 'static) -> Arc<Mutex<VecDeque<String>>> {
    let errors = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&errors);
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut kept = kept.lock();
            if kept.len() == MOST_ERRORS {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    });
    errors
}

impl Process {
    /// Starts a process, and blocks until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(Command::new(example("test_service")).args(arguments))
    }

    /// Starts a process with a wall clock that is off by `offset`, as `+3600s`.
    pub fn start_at(offset: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(example("test_service"));
        // The program `faketime` would start it as a child, which outlives a kill.
        command
            .env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1")
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Self::spawn(command.args(arguments))
    }

    /// Starts another program, and blocks until it prints `ready`.
    pub fn run(program: &str, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(program).args(arguments))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo test builds it with the examples, tests/run installs the rest");
        let out = BufReader::new(process.stdout.take().unwrap());
        let (line, lines) = unbounded();
        thread::spawn(move || {
            let mut read = out.lines().map_while(Result::ok);
            read.all(|text| line.send(text).is_ok())
        });
        let errors = collect_errors(process.stderr.take().unwrap());
        let process = Self {
            process,
            lines,
            errors,
        };
        process.wait_for("ready");
        process
    }

    /// Reads lines until one contains `wanted`.
    pub fn wait_for(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_deadline(end) {
                Ok(line) if line.contains(wanted) => return,
                Ok(_) => {}
                Err(error) => panic!(
                    "the process did not print {wanted:?}: {error:?}; its stderr: {:#?}",
                    self.errors.lock()
                ),
            }
        }
    }

    /// Returns true if the output, and so the process, has ended.
    pub fn has_ended(&self) -> bool {
        let mut lines = self.lines.try_iter();
        while lines.next().is_some() {}
        matches!(
            self.lines.try_recv(),
            Err(crossbeam_channel::TryRecvError::Disconnected)
        )
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.process.kill(); // SIGKILL
        let _ = self.process.wait();
    }
}
