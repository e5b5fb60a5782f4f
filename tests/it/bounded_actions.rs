//! `at_most`: a bounded number of requests of one action, and free workers for the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use coney::server::ServiceServerBuilder;
use coney::{Broker, Context, ErrorKind, ServiceServer};

use crate::support::dead_letters::no_dead_letter;
use crate::support::gate::{Gate, OpenAtEnd, Run};
use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, client, eventually, on_both, own_amqp_url, steady, unique};

on_both!(
    no_more_commands_run_than_may_and_all_do_once,
    calls_over_the_bound_are_busy,
    calls_are_busy_while_commands_wait,
    a_low_prefetch_leaves_room_for_other_actions,
    items_of_a_batch_wait_for_their_places,
    a_shutdown_loses_no_command,
    a_shutdown_ends_a_batch_whose_items_wait,
    requests_that_are_put_aside_survive_a_pause,
    a_bound_needs_a_number_and_an_action,
);

const COMMANDS: u64 = 30;

/// Returns the builder of a server of whose action `report` two run at a time.
fn bounded(broker: &Broker, service: &str, gate: &Gate) -> ServiceServerBuilder {
    let gate = gate.clone();
    ServiceServer::builder(broker, service)
        .workers(6)
        .respond_with_context("report", move |context: &Context<'_>, n: u64| {
            gate.enter(context, n)
        })
        .respond("quick", |n: u64| n)
        .at_most("report", 2)
}

/// Sends commands until two run, some are put aside and the others moved.
fn flood(broker: &Broker, service: &str, gate: &Gate) {
    let client = client(broker);
    for n in 0..COMMANDS {
        client.send(service, "report", &n).unwrap();
    }
    gate.wait_for(2);
    let moved = format!("service.{service}.class.report");
    eventually("most commands are moved", || {
        broker.queue_depth(&moved).unwrap().messages >= 10
    });
}

fn all_once() -> Vec<Run> {
    (0..COMMANDS).map(Run::first).collect()
}

fn no_more_commands_run_than_may_and_all_do_once(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    flood(broker, &service, &gate);
    let client = client(broker);
    for n in 0..20u64 {
        assert_eq!(client.call::<u64>(&service, "quick", &n).unwrap(), n);
    }
    // A quick one counts until its worker is done with it, a moment after its reply.
    eventually("two run", || {
        (gate.running(), server.load().running) == (2, 2)
    });
    gate.open();
    // It waits for the moved ones too.
    server.drain(2 * PATIENCE).unwrap();
    assert_eq!(gate.runs(), all_once());
    assert_eq!(gate.most_running(), 2);
    no_dead_letter(broker, &service);
}

fn calls_over_the_bound_are_busy(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let _server = bounded(broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(broker);
    let calls = (0..40u64).map(|n| client.call_async::<u64>(&service, "report", &n));
    let mut calls: Vec<_> = calls.map(Result::unwrap).collect();
    gate.wait_for(2);
    assert_eq!(client.call::<u64>(&service, "quick", &7).unwrap(), 7);
    let mut busy = 0;
    eventually("most are refused", || {
        calls.retain_mut(|call| match call.try_wait() {
            Some(reply) => {
                let error = reply.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                assert!(error.to_string().contains("at_most"), "{error}");
                assert!(error.retry_after().is_some(), "{error:?}");
                busy += 1;
                false
            }
            None => true,
        });
        busy >= 20
    });
    gate.open();
    let answered = calls.into_iter().map(|call| call.wait());
    let answered = answered.filter(|reply| match reply {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            false
        }
    });
    assert!(answered.count() > 2, "some were put aside");
    assert_eq!(gate.most_running(), 2);
}

fn calls_are_busy_while_commands_wait(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    flood(broker, &service, &gate);
    let client = client(broker);
    for n in 100..110u64 {
        let error = client.call::<u64>(&service, "report", &n).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    gate.open();
    server.drain(2 * PATIENCE).unwrap();
    assert_eq!(gate.runs(), all_once());
}

/// Checks that of a prefetch of two, one request runs and none is put aside.
fn a_low_prefetch_leaves_room_for_other_actions(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(broker, &service, &gate)
        .workers(2)
        .prefetch(2)
        .at_most("report", 1)
        .start()
        .unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(broker);
    for n in 0..COMMANDS {
        client.send(&service, "report", &n).unwrap();
    }
    gate.wait_for(1);
    for n in 0..20u64 {
        assert_eq!(client.call::<u64>(&service, "quick", &n).unwrap(), n);
    }
    gate.open();
    server.drain(2 * PATIENCE).unwrap();
    assert_eq!(gate.runs(), all_once());
    assert_eq!(gate.most_running(), 1);
}

fn items_of_a_batch_wait_for_their_places(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(broker);
    let mut batch = client.batch(&service);
    for n in 0..20u64 {
        batch.add::<u64>("report", &n);
        batch.add::<u64>("quick", &n);
    }
    let pending = batch.call_async();
    gate.wait_for(2);
    assert_eq!(client.call::<u64>(&service, "quick", &7).unwrap(), 7);
    eventually("the other items wait", || {
        server.load().waiting == 18 && server.load().running == 2
    });
    gate.open();
    let replies = pending.wait().into_results::<u64>();
    let replies: Vec<u64> = replies.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies, (0..40).map(|n| n / 2).collect::<Vec<_>>());
    assert_eq!(gate.most_running(), 2);
    server.drain(PATIENCE).unwrap();
}

fn a_shutdown_loses_no_command(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    flood(broker, &service, &gate);
    thread::scope(|scope| {
        let stopped = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("what waits has been given back", || {
            server.state().shut_down && server.load().waiting == 0
        });
        gate.pass();
        gate.pass();
        stopped.join().unwrap().unwrap();
    });
    assert_eq!(gate.runs().len(), 2, "no other has begun");
    gate.open();
    let next = bounded(broker, &service, &gate).start().unwrap();
    next.drain(2 * PATIENCE).unwrap();
    assert_eq!(gate.runs(), all_once());
    assert_eq!(gate.most_running(), 2);
    no_dead_letter(broker, &service);
}

fn a_shutdown_ends_a_batch_whose_items_wait(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let mut batch = client(broker).batch(&service);
    for n in 0..20u64 {
        batch.add::<u64>("report", &n);
    }
    let pending = batch.call_async();
    gate.wait_for(2);
    thread::scope(|scope| {
        let stopped = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("the server shuts down", || server.state().shut_down);
        gate.open();
        stopped.join().unwrap().unwrap();
    });
    let replies = pending.wait().into_results::<u64>();
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    assert_eq!(gate.most_running(), 2);
}

/// An unhealthy server gives the requests back that it has not begun, and takes them again.
fn requests_that_are_put_aside_survive_a_pause(broker: &Broker) {
    let (service, gate) = (unique("shop"), Gate::shut());
    let is_well = Arc::new(AtomicBool::new(true));
    let checked = Arc::clone(&is_well);
    let server = bounded(broker, &service, &gate)
        .health_interval(Duration::from_millis(20))
        .health_failures(1)
        .health_successes(1)
        .health_check("disk", move || match checked.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err("full"),
        })
        .start()
        .unwrap();
    let _open = OpenAtEnd(&gate);
    flood(broker, &service, &gate);
    for _ in 0..5 {
        is_well.store(false, Ordering::SeqCst);
        eventually("it is paused", || server.state().unhealthy.is_some());
        is_well.store(true, Ordering::SeqCst);
        eventually("it is resumed", || server.state().unhealthy.is_none());
    }
    gate.open();
    server.drain(2 * PATIENCE).unwrap();
    assert_eq!(gate.runs(), all_once());
    assert_eq!(gate.most_running(), 2);
    no_dead_letter(broker, &service);
}

fn a_bound_needs_a_number_and_an_action(broker: &Broker) {
    let start = |action: &str, limit: usize| {
        bounded(broker, &unique("shop"), &Gate::shut())
            .at_most(action, limit)
            .start()
    };
    for (action, limit) in [("report", 0), ("unknown", 2)] {
        let error = start(action, limit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains(action), "{error}");
    }
    // The last bound of an action counts.
    drop(start("report", 3).unwrap());
}

/// Checks that running requests go on, and that waiting ones come again and keep to the bound.
#[test]
fn a_lost_connection_loses_no_command() {
    let url = own_amqp_url();
    let proxy = Proxy::start(&url);
    let (broker, direct) = (steady(&proxy.url), steady(&url));
    let (service, gate) = (unique("shop"), Gate::shut());
    let server = bounded(&broker, &service, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    flood(&direct, &service, &gate);
    for cut in 0..4 {
        proxy.cut();
        let client = client(&direct);
        assert_eq!(client.call::<u64>(&service, "quick", &cut).unwrap(), cut);
        gate.pass();
        eventually("the next runs", || gate.runs().len() as u64 >= 3 + cut);
        gate.wait_for(2);
    }
    gate.open();
    server.drain(4 * PATIENCE).unwrap();
    let mut runs: Vec<u64> = gate.runs().into_iter().map(|run| run.n).collect();
    runs.dedup();
    assert_eq!(runs, (0..COMMANDS).collect::<Vec<_>>());
    assert_eq!(gate.most_running(), 2);
    assert!(gate.runs().iter().all(|run| run.attempt == 1));
    no_dead_letter(&direct, &service);
}
