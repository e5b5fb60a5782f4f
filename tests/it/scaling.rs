//! `workers(2..=8)`: the number of workers, and with it the prefetch, follows the load.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use coney::balance::RoundRobin;
use coney::server::{Scaling, ServiceServerBuilder, WorkerCount};
use coney::{
    Broker, Context, ErrorKind, HandlerError, Instance, PendingReply, Registry, ServiceClient,
    ServiceServer,
};

use crate::support::gate::{Gate, OpenAtEnd, Run};
use crate::support::instance_echo::finder;
use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, client, eventually, on_both, own_amqp_url, steady, unique};

on_both!(
    workers_follow_the_calls_that_wait,
    workers_follow_the_calls_to_an_instance,
    workers_follow_the_commands_that_wait,
    a_fixed_number_of_workers_stays,
    handlers_that_call_their_own_service_all_end,
    an_instance_whose_handlers_call_their_own_service_ends_them_all,
    a_shutdown_while_workers_are_started_ends_in_time,
    a_paused_server_does_not_consume_while_its_workers_end,
    a_range_without_workers_is_refused,
);

const MS: Duration = Duration::from_millis(1);
const CALLS: u64 = 40;

fn scaled(
    broker: &Broker,
    service: &str,
    workers: impl Into<WorkerCount>,
    gate: &Gate,
) -> ServiceServerBuilder {
    let gate = gate.clone();
    ServiceServer::builder(broker, service)
        .workers(workers)
        .scaling(Scaling::new().idle(50 * MS))
        .respond_with_context("work", move |context: &Context<'_>, n: u64| {
            gate.enter(context, n)
        })
}

fn begin(client: &ServiceClient, service: &str) -> Vec<PendingReply<u64>> {
    let calls = (0..CALLS).map(|n| client.call_async::<u64>(service, "work", &n));
    calls.map(Result::unwrap).collect()
}

fn end(calls: Vec<PendingReply<u64>>) {
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.wait().unwrap(), n);
    }
}

fn all_once() -> Vec<Run> {
    (0..CALLS).map(Run::first).collect()
}

/// Checks that the workers grow from 2 to 8 while calls wait, and end when they are idle.
fn grow_and_shrink(server: &ServiceServer, client: &ServiceClient, gate: &Gate) {
    let _open = OpenAtEnd(gate);
    assert_eq!(server.load().workers, 2);
    let calls = begin(client, server.service());
    // As many run as the prefetch allows.
    gate.wait_for(8);
    assert_eq!(server.load().workers, 8);
    gate.open();
    end(calls);
    assert_eq!(gate.runs(), all_once());
    eventually("idle workers end", || server.load().workers == 2);
    let again: u64 = client.call(server.service(), "work", &99).unwrap();
    assert_eq!((again, gate.most_running()), (99, 8));
}

fn workers_follow_the_calls_that_wait(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = scaled(broker, &service, 2..=8, &gate).start().unwrap();
    let client = client(broker);
    grow_and_shrink(&server, &client, &gate);
    // And once more, with the prefetch that the first time has left.
    gate.close();
    let calls = begin(&client, &service);
    gate.wait_for(8);
    gate.open();
    end(calls);
}

fn workers_follow_the_calls_to_an_instance(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let registry = Registry::memory();
    let server = scaled(broker, &service, 2..=8, &gate)
        .registry(&registry)
        .instance(Instance::new().with_id("only"))
        .start()
        .unwrap();
    let client = finder(broker, &registry)
        .balancer(RoundRobin::new())
        .build()
        .unwrap();
    grow_and_shrink(&server, &client, &gate);
}

fn workers_follow_the_commands_that_wait(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = scaled(broker, &service, 2..=8, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(broker);
    for n in 0..CALLS {
        client.send(&service, "work", &n).unwrap();
    }
    gate.wait_for(8);
    gate.open();
    server.drain(PATIENCE).unwrap();
    assert_eq!(gate.runs(), all_once());
}

fn a_fixed_number_of_workers_stays(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = scaled(broker, &service, 3, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let calls = begin(&client(broker), &service);
    gate.wait_for(3);
    assert_eq!(server.load().workers, 3);
    gate.open();
    end(calls);
    assert_eq!((server.load().workers, gate.most_running()), (3, 3));
    // Idle workers end within 50 ms only if there may be fewer.
    thread::sleep(100 * MS);
    assert_eq!(server.load().workers, 3);
}

/// Returns the builder of a server whose action `outer` calls its action `inner`: when two run.
fn nested(broker: &Broker, service: &str) -> ServiceServerBuilder {
    let (name, both) = (service.to_owned(), Arc::new(Barrier::new(2)));
    ServiceServer::builder(broker, service)
        .workers(2..=6)
        .client(client(broker))
        .handler_with_context("outer", move |context: &Context<'_>, n: u64| {
            both.wait();
            let inner: u64 = context.client()?.call(&name, "inner", &n)?;
            Ok::<_, HandlerError>(inner)
        })
        .respond("inner", |n: u64| n)
}

fn handlers_that_call_their_own_service_all_end(broker: &Broker) {
    let service = unique("work");
    let _server = nested(broker, &service).start().unwrap();
    nest(&client(broker), &service);
}

fn an_instance_whose_handlers_call_their_own_service_ends_them_all(broker: &Broker) {
    let (service, registry) = (unique("work"), Registry::memory());
    let _server = nested(broker, &service)
        .registry(&registry)
        .start()
        .unwrap();
    nest(
        &finder(broker, &registry)
            .balancer(RoundRobin::new())
            .build()
            .unwrap(),
        &service,
    );
}

/// Calls with as many outer handlers as there are workers at first, and with more.
fn nest(client: &ServiceClient, service: &str) {
    for outer in [2, 2, 4, 4, 4] {
        let calls = (0..outer).map(|n| client.call_async::<u64>(service, "outer", &n));
        end(calls.map(Result::unwrap).collect());
    }
}

fn a_shutdown_while_workers_are_started_ends_in_time(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = scaled(broker, &service, 2..=32, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let calls = begin(&client(broker), &service);
    eventually("workers are started", || server.load().workers > 2);
    thread::scope(|scope| {
        let stopped = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("the server shuts down", || server.state().shut_down);
        gate.open();
        stopped.join().unwrap().unwrap();
    });
    let _next = scaled(broker, &service, 2..=32, &gate).start().unwrap();
    end(calls);
    assert_eq!(gate.runs(), all_once());
}

fn a_paused_server_does_not_consume_while_its_workers_end(broker: &Broker) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (service, gate) = (unique("work"), Gate::shut());
    let is_well = Arc::new(AtomicBool::new(true));
    let checked = Arc::clone(&is_well);
    let server = scaled(broker, &service, 2..=8, &gate)
        .health_interval(20 * MS)
        .health_failures(1)
        .health_successes(1)
        .health_check("disk", move || match checked.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err("full"),
        })
        .start()
        .unwrap();
    let _open = OpenAtEnd(&gate);
    let calls = begin(&client(broker), &service);
    gate.wait_for(8);
    is_well.store(false, Ordering::SeqCst);
    eventually("it is paused", || server.state().unhealthy.is_some());
    let queue = format!("service.{service}.request");
    eventually("it does not consume", || {
        broker.queue_depth(&queue).unwrap().consumers == 0
    });
    gate.open();
    eventually("idle workers end", || server.load().workers == 2);
    eventually("the others wait, and nothing is consumed", || {
        let depth = broker.queue_depth(&queue).unwrap();
        (depth.messages, depth.consumers) == (32, 0)
    });
    is_well.store(true, Ordering::SeqCst);
    end(calls);
    assert_eq!(gate.runs(), all_once());
}

fn a_range_without_workers_is_refused(broker: &Broker) {
    #[expect(
        clippy::reversed_empty_ranges,
        reason = "the server has to refuse such a range"
    )]
    for workers in [0..=8, 4..=3] {
        let server = scaled(broker, &unique("work"), workers, &Gate::shut()).start();
        assert_eq!(server.unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
}

/// The prefetch of the workers that there are holds on the next connection.
#[test]
fn a_lost_connection_keeps_the_workers_and_their_prefetch() {
    let url = own_amqp_url();
    let proxy = Proxy::start(&url);
    let (broker, direct) = (steady(&proxy.url), steady(&url));
    let (service, gate) = (unique("work"), Gate::shut());
    let server = scaled(&broker, &service, 2..=8, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(&direct);
    let calls = begin(&client, &service);
    gate.wait_for(8);
    proxy.cut();
    // One ends, and the next begins over the next connection.
    gate.pass();
    eventually("the next begins", || gate.runs().len() > 8);
    gate.wait_for(8);
    gate.open();
    end(calls);
    eventually("idle workers end", || server.load().workers == 2);
    proxy.cut();
    gate.close();
    let calls = begin(&client, &service);
    gate.wait_for(8);
    gate.open();
    end(calls);
    assert_eq!(gate.most_running(), 8);
}
