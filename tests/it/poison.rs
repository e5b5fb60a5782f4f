//! Worker processes that die, by a signal or by what they are asked to do. Each
//! is this test program, started again for `worker_process` alone.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use coney::{Broker, Context, HandlerError, ServiceServer};

use crate::support::dead::{dead_letter, no_dead_letter};
use crate::support::{PATIENCE, client, eventually, rabbitmq, unique};

const SERVICE: &str = "CONEY_TEST_WORKER_OF";

/// Not a test, but what the tests start: it has no point without its variable.
#[test]
#[ignore = "runs as a process of the tests below"]
fn worker_process() {
    let service = std::env::var(SERVICE).expect("the tests below set it");
    let _server = ServiceServer::builder(&rabbitmq(), &service)
        .workers(2)
        .redelivery_limit(1)
        .handler_with("work", |context: &Context<'_>, n: u64| {
            println!("work {n} {}", context.is_redelivered());
            Ok::<_, HandlerError>(n)
        })
        .handler_with("sleep", |context: &Context<'_>, (): ()| {
            println!("sleep {}", context.is_redelivered());
            if !context.is_redelivered() {
                thread::sleep(Duration::from_secs(3_600));
            }
            Ok::<_, HandlerError>(())
        })
        .handler("abort", |(): ()| -> Result<(), HandlerError> {
            println!("abort");
            std::process::abort()
        })
        .start()
        .unwrap();
    println!("ready");
    loop {
        thread::sleep(Duration::from_secs(3_600)); // until it is killed
    }
}

struct Worker {
    process: Child,
    lines: Receiver<String>,
}

impl Worker {
    fn start(service: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "poison::worker_process",
                "--ignored",
                "--nocapture",
            ])
            .env(SERVICE, service)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (line, lines) = unbounded();
        thread::spawn(move || {
            let mut read = out.lines().map_while(Result::ok);
            read.all(|text| line.send(text).is_ok())
        });
        let worker = Self { process, lines };
        worker.wait_for("ready");
        worker
    }

    /// Reads until a line that says so.
    fn wait_for(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_deadline(end) {
            if line.contains(wanted) {
                return;
            }
        }
        panic!("the worker did not say {wanted:?}");
    }

    fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_worker_killed_in_mid_handler_loses_nothing() {
    let service = unique("work");
    let first = Worker::start(&service);
    let broker = rabbitmq();
    client(&broker).send(&service, "sleep", &()).unwrap();
    first.wait_for("sleep false");
    let second = Worker::start(&service);
    drop(first);
    second.wait_for("sleep true");
    no_dead_letter(&broker, &service);
}

#[test]
fn poison_does_not_kill_every_worker() {
    let service = unique("work");
    let mut workers: Vec<Worker> = (0..3).map(|_| Worker::start(&service)).collect();
    let broker: Broker = rabbitmq();
    let client = client(&broker);
    client.send(&service, "abort", &()).unwrap();
    let letter = dead_letter(&broker, &service);
    assert_eq!(letter.reason(), "delivery_limit");
    assert_eq!(letter.action(), Some("abort"));
    eventually("two have died", || {
        workers.retain_mut(Worker::is_alive);
        workers.len() == 1
    });
    for n in 0..30 {
        client.send(&service, "work", &n).unwrap();
    }
    let reply: u64 = client.call(&service, "work", &99).unwrap();
    assert_eq!(reply, 99, "the third serves");
    workers[0].wait_for("work 99");
}
