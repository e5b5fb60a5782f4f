//! A private RabbitMQ, for tests that break theirs and for benchmarks.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A broker of our own. Killed on drop, and, as it watches a pipe from this
/// process, also when this process dies.
pub struct RabbitMq {
    process: Option<Child>,
    url: String,
    dir: PathBuf,
}

#[allow(dead_code, reason = "the benchmarks share this file and only start it")]
impl RabbitMq {
    pub fn start() -> Self {
        let unique = format!(
            "coney-rabbitmq-{}-{}",
            std::process::id(),
            fastrand::u32(..)
        );
        let mut broker = Self {
            process: None,
            url: String::new(),
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique),
        };
        broker.start_again();
        broker
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts the same broker, with its data, on the same port.
    pub fn start_again(&mut self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/rabbitmq");
        let mut command = Command::new(script);
        command.arg("--dir").arg(&self.dir);
        if let Some((_, port)) = self.url.rsplit_once(':') {
            command.args(["--port", port]);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/servers/rabbitmq runs");
        let mut url = String::new();
        let stdout = process.stdout.take().expect("stdout is piped");
        BufReader::new(stdout)
            .read_line(&mut url)
            .expect("the script prints the URL");
        self.process = Some(process);
        assert!(
            !url.is_empty(),
            "RabbitMQ did not start: tests/run installs it"
        );
        url.trim().clone_into(&mut self.url);
    }

    /// Does what `rabbitmqctl` can do.
    pub fn ctl(&self, arguments: &[&str]) {
        let output = Command::new(self.dir.join("ctl"))
            .args(arguments)
            .output()
            .expect("the script made it");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {text}");
    }

    /// Stops its processes in their tracks: connections stay, nobody answers.
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
        self.ctl(&["start_app"]);
        self.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
