//! A private RabbitMQ or Redis, for tests that break theirs and for benchmarks.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A server of our own. Killed on drop, and, as it watches a pipe from this
/// process, also when this process dies.
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

    /// With lines of its configuration, `key = value`.
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

    /// Does what `rabbitmqctl` or `redis-cli` can do, and returns what it says.
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

    /// Does what `rabbitmqctl` or `redis-cli` can do, where that may fail.
    pub fn try_ctl(&self, arguments: &[&str]) -> bool {
        let output = Command::new(self.dir.join("ctl")).args(arguments).output();
        output.expect("the script made it").status.success()
    }

    /// Stops its processes in their tracks: connections stay, without an answer.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let group = std::fs::read_to_string(self.dir.join("group")).expect("the script wrote it");
        let status = Command::new("kill")
            .args([signal, "--", &format!("-{}", group.trim())])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Undoes what a test that failed may have left.
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

    /// Kills it, as a power cut would.
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
