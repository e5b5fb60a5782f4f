//! Worker processes that die, from a signal or from a message.

use coney::Broker;

use crate::support::dead_letters::{dead_letter, no_dead_letter};
use crate::support::process::Process;
use crate::support::{client, eventually, own_amqp_url, unique};

/// Starts a process with a server.
fn worker(url: &str, service: &str) -> Process {
    Process::start(&["serve", url, service])
}

#[test]
fn a_worker_killed_in_mid_handler_loses_nothing() {
    let (url, service) = (own_amqp_url(), unique("work"));
    let first = worker(&url, &service);
    let broker = Broker::connect(&url).unwrap();
    client(&broker).send(&service, "sleep", &()).unwrap();
    first.wait_for("sleep false");
    let second = worker(&url, &service);
    drop(first);
    second.wait_for("sleep true");
    no_dead_letter(&broker, &service);
}

#[test]
fn poison_does_not_kill_every_worker() {
    let (url, service) = (own_amqp_url(), unique("work"));
    let mut workers: Vec<Process> = (0..3).map(|_| worker(&url, &service)).collect();
    let broker = Broker::connect(&url).unwrap();
    let client = client(&broker);
    client.send(&service, "abort", &()).unwrap();
    let letter = dead_letter(&broker, &service);
    assert_eq!(letter.reason(), "delivery_limit");
    assert_eq!(letter.action(), Some("abort"));
    eventually("two have died", || {
        workers.retain_mut(Process::is_alive);
        workers.len() == 1
    });
    for n in 0..30 {
        client.send(&service, "work", &n).unwrap();
    }
    let reply: u64 = client.call(&service, "work", &99).unwrap();
    assert_eq!(reply, 99, "the third serves");
    workers[0].wait_for("work 99");
}
