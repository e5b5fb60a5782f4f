//! A private RabbitMQ or Redis, for tests that break theirs and for benchmarks.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A private server. Killed on drop, and, as it reads a pipe from this process, also when this
/// process dies.
pub struct Server {
    script: &'static str,
    process: Option<Child>,
    url: String,
    dir: PathBuf,
    settings: Vec<String>,
}

#[allow(dead_code, reason = "the benchmarks share this file and only start it")]
impl Server {
    pub fn rabbitmq() -> Self {
        Self::start("rabbitmq", &[])
    }

    /// Starts a RabbitMQ with lines of its configuration, `key = value`.
    pub fn rabbitmq_with(settings: &[&str]) -> Self {
        Self::start("rabbitmq", settings)
    }

    pub fn redis() -> Self {
        Self::start("redis", &[])
    }

    fn start(script: &'static str, settings: &[&str]) -> Self {
        let process = std::process::id();
        let unique = format!("coney-{script}-{process}-{}", fastrand::u32(..));
        let mut server = Self {
            script,
            process: None,
            url: String::new(),
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique),
            settings: settings.iter().map(|&it| it.to_owned()).collect(),
        };
        server.start_again();
        server
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts the same server, with its data if it keeps any, on the same port.
    pub fn start_again(&mut self) {
        let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers");
        let mut command = Command::new(format!("{scripts}/{}", self.script));
        command.arg("--dir").arg(&self.dir);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        if let Some((_, port)) = self.url.rsplit_once(':') {
            command.args(["--port", port]);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/servers runs");
        let mut url = String::new();
        let stdout = process.stdout.take().expect("stdout is piped");
        BufReader::new(stdout)
            .read_line(&mut url)
            .expect("the script prints the URL");
        self.process = Some(process);
        assert!(
            !url.is_empty(),
            "{} did not start: tests/run installs it",
            self.script
        );
        url.trim().clone_into(&mut self.url);
    }

    /// Runs `rabbitmqctl` or `redis-cli`, and returns its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(self.dir.join("ctl"))
            .args(arguments)
            .output()
            .expect("the script made it");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{} {arguments:?}: {text}",
            self.script
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Adds a user of RabbitMQ with all permissions, and returns the URL with its login.
    pub fn add_user(&self, name: &str) -> String {
        self.ctl(&["add_user", name, "pw"]);
        self.ctl(&["set_permissions", name, ".*", ".*", ".*"]);
        self.url().replace("guest:guest", &format!("{name}:pw"))
    }

    /// Runs `rabbitmqctl` or `redis-cli`; returns false if it fails.
    pub fn try_ctl(&self, arguments: &[&str]) -> bool {
        let output = Command::new(self.dir.join("ctl")).args(arguments).output();
        output.expect("the script made it").status.success()
    }

    /// Stops its processes with SIGSTOP: connections stay, without an answer. Blocks until all
    /// threads have stopped, as a busy machine may run some of them for a moment longer.
    pub fn pause(&self) {
        self.signal("-STOP");
        let end = Instant::now() + Duration::from_secs(60);
        while !self.is_paused() {
            assert!(Instant::now() < end, "{} did not stop", self.script);
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Returns true if every thread of the process group is stopped, or has ended.
    fn is_paused(&self) -> bool {
        let group = self.group();
        let processes = std::fs::read_dir("/proc").expect("the tests run on Linux");
        let tasks = processes
            .flatten()
            .filter(|process| process_group(&process.path()).as_ref() == Some(&group))
            .flat_map(|process| std::fs::read_dir(process.path().join("task")))
            .flat_map(|tasks| tasks.flatten());
        // A thread that ends meanwhile has no state.
        let mut states = tasks.filter_map(|task| Some(stat(&task.path())?.swap_remove(0)));
        states.all(|state| matches!(&*state, "T" | "Z" | "X"))
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, "--", &format!("-{}", self.group())])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Returns the id of its process group.
    fn group(&self) -> String {
        let group = std::fs::read_to_string(self.dir.join("group")).expect("the script wrote it");
        group.trim().to_owned()
    }

    /// Undoes the outages that a failed test may have left.
    pub fn heal(&mut self) {
        if self.process.is_none() {
            return self.start_again();
        }
        self.resume();
        if self.script == "rabbitmq" {
            self.ctl(&["start_app"]);
            self.ctl(&["set_vm_memory_high_watermark", "0.4"]);
        }
    }

    /// Kills the server, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Returns the fields of a process or thread from its state on: state, parent, process group.
fn stat(process: &Path) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name before it is in brackets, and may hold any character.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn process_group(process: &Path) -> Option<String> {
    stat(process)?.into_iter().nth(2)
}
