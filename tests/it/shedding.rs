//! `shed`: a server under load refuses calls and no command, and calls that would be late anyhow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coney::balance::RoundRobin;
use coney::server::{ServiceServerBuilder, Shed};
use coney::{
    Broker, CallOptions, Context, ErrorKind, Instance, Registry, ServiceClient, ServiceServer,
};

use crate::support::dead_letters::no_dead_letter;
use crate::support::gate::{Gate, OpenAtEnd, Run};
use crate::support::instance_echo::finder;
use crate::support::{PATIENCE, client, eventually, on_both, unique};

on_both!(
    calls_are_refused_while_many_wait_and_commands_are_not,
    calls_to_an_instance_are_refused_while_many_wait,
    a_call_with_too_little_time_left_is_expired,
    a_bound_of_zero_is_refused,
);

const MS: Duration = Duration::from_millis(1);
const COMMANDS: u64 = 10;

/// Returns the builder of a server that refuses calls, with two workers and the action `work`.
fn shedding(broker: &Broker, service: &str, gate: &Gate) -> ServiceServerBuilder {
    let gate = gate.clone();
    ServiceServer::builder(broker, service)
        .workers(2)
        .shed(Shed::new().above(50 * MS))
        .respond_with_context("work", move |context: &Context<'_>, n: u64| {
            gate.enter(context, n)
        })
}

fn calls_are_refused_while_many_wait_and_commands_are_not(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = shedding(broker, &service, &gate).start().unwrap();
    overload(&server, &client(broker), &gate);
    server.drain(PATIENCE).unwrap();
    no_dead_letter(broker, &service);
}

fn calls_to_an_instance_are_refused_while_many_wait(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let registry = Registry::memory();
    let server = shedding(broker, &service, &gate)
        .registry(&registry)
        .instance(Instance::new().with_id("only"))
        .start()
        .unwrap();
    let client = finder(broker, &registry)
        .balancer(RoundRobin::new())
        .build()
        .unwrap();
    overload(&server, &client, &gate);
    server.drain(PATIENCE).unwrap();
    no_dead_letter(broker, &service);
}

/// Sends calls and commands until the server sheds, lets them end, and checks their ends.
fn overload(server: &ServiceServer, client: &ServiceClient, gate: &Gate) {
    let _open = OpenAtEnd(gate);
    let service = server.service();
    let calls = (100..160u64).map(|n| client.call_async::<u64>(service, "work", &n));
    let calls: Vec<_> = calls.map(Result::unwrap).collect();
    gate.wait_for(2);
    for n in 0..COMMANDS {
        client.send(service, "work", &n).unwrap();
    }
    eventually("the server is overloaded", || {
        let load = server.load();
        load.is_saturated && load.estimated_wait > 100 * MS
    });
    gate.open();
    let (mut answered, mut refused) = (0, 0);
    for (n, call) in (100..).zip(calls) {
        match call.wait() {
            Ok(reply) => {
                assert_eq!(reply, n);
                answered += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                assert!(error.retry_after() >= Some(10 * MS), "{error:?}");
                assert!(error.is_safe_to_retry());
                refused += 1;
            }
        }
    }
    assert!(answered >= 2 && refused >= 1, "{answered} and {refused}");
    let commands = || gate.runs().into_iter().filter(|run| run.n < COMMANDS);
    eventually("all commands run", || commands().count() as u64 == COMMANDS);
    let expected: Vec<_> = (0..COMMANDS).map(Run::first).collect();
    assert_eq!(commands().collect::<Vec<_>>(), expected);
    eventually("the load is over", || {
        let load = server.load();
        !load.is_saturated && load.estimated_wait.is_zero()
    });
    for n in 200..230u64 {
        assert_eq!(client.call::<u64>(service, "work", &n).unwrap(), n);
    }
}

fn a_call_with_too_little_time_left_is_expired(broker: &Broker) {
    let service = unique("work");
    let (nap, runs) = (Arc::new(AtomicU64::new(400)), Arc::default());
    let handler = {
        let (nap, runs): (_, Arc<AtomicUsize>) = (Arc::clone(&nap), Arc::clone(&runs));
        move |_: u64| {
            runs.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(nap.load(Ordering::SeqCst)));
        }
    };
    let _server = ServiceServer::builder(broker, &service)
        .respond("nap", handler)
        .respond("quick", |n: u64| n)
        .shed(Shed::new())
        .start()
        .unwrap();
    let client = client(broker);
    let calls = (0..16u64).map(|n| client.call_async::<()>(&service, "nap", &n));
    let calls: Vec<_> = calls.map(Result::unwrap).collect();
    for call in calls {
        call.wait().unwrap();
    }
    let short = CallOptions::new().timeout(200 * MS);
    let call = || client.call_with::<()>(&service, "nap", &0, &short);
    let mut expired = 0;
    eventually("calls are answered without being run", || {
        let before = runs.load(Ordering::SeqCst);
        let code = call().unwrap_err().remote_code() == Some("expired");
        expired += usize::from(code && runs.load(Ordering::SeqCst) == before);
        expired >= 5
    });
    // One in a while runs nonetheless: it finds out whether the action still takes so long.
    let before = runs.load(Ordering::SeqCst);
    eventually("one runs", || {
        let _ = call();
        runs.load(Ordering::SeqCst) > before
    });
    let other = client.call_with::<u64>(&service, "quick", &7, &CallOptions::new());
    assert_eq!(other.unwrap(), 7);
    nap.store(0, Ordering::SeqCst);
    let mut in_a_row = 0;
    eventually("all run again", || {
        in_a_row = if call().is_ok() { in_a_row + 1 } else { 0 };
        in_a_row == 10
    });
}

fn a_bound_of_zero_is_refused(broker: &Broker) {
    let server = ServiceServer::builder(broker, &unique("work"))
        .shed(Shed::new().above(Duration::ZERO))
        .start();
    assert_eq!(server.unwrap_err().kind(), ErrorKind::InvalidConfig);
}
