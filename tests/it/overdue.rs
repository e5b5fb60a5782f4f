//! `handler_timeout`: a handler that takes too long is reported, and its worker replaced.

use coney::server::ServiceServerBuilder;
use coney::{Broker, Context, ErrorKind, ServiceServer};

use std::time::Duration;

use crate::support::gate::{Gate, OpenAtEnd};
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, client, eventually, on_both, own_amqp_url, steady, unique};

on_both!(
    a_stuck_worker_is_replaced_until_its_handler_returns,
    a_stuck_worker_is_replaced_with_a_prefetch_of_one,
    as_many_workers_are_replaced_as_there_may_be,
    a_timeout_of_zero_is_refused,
);

const MS: Duration = Duration::from_millis(1);

fn watched(broker: &Broker, service: &str, workers: usize, gate: &Gate) -> ServiceServerBuilder {
    let gate = gate.clone();
    ServiceServer::builder(broker, service)
        .workers(workers)
        .handler_timeout(50 * MS)
        .respond_with_context("stuck", move |context: &Context<'_>, n: u64| {
            gate.enter(context, n)
        })
        .respond("quick", |n: u64| n)
}

/// Returns the numbers of workers, of overdue handlers, and of those that ever were.
fn counts(server: &ServiceServer) -> (usize, usize, u64) {
    let load = server.load();
    assert_eq!(load.overdue, server.state().overdue_handlers);
    (load.workers, load.overdue, load.overdue_total)
}

fn is_replaced(broker: &Broker, server: &ServiceServer, gate: &Gate) {
    let _open = OpenAtEnd(gate);
    let client = client(broker);
    for n in 0..3u64 {
        let stuck = client
            .call_async::<u64>(server.service(), "stuck", &n)
            .unwrap();
        eventually("its worker is replaced", || counts(server) == (2, 1, n + 1));
        assert!(!server.state().is_healthy());
        assert_eq!(
            client.call::<u64>(server.service(), "quick", &7).unwrap(),
            7
        );
        gate.pass();
        assert_eq!(stuck.wait().unwrap(), n);
        eventually("one worker is left", || counts(server) == (1, 0, n + 1));
        assert!(server.state().is_healthy());
        assert_eq!(
            client.call::<u64>(server.service(), "quick", &8).unwrap(),
            8
        );
    }
}

fn a_stuck_worker_is_replaced_until_its_handler_returns(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = watched(broker, &service, 1, &gate).start().unwrap();
    is_replaced(broker, &server, &gate);
}

fn a_stuck_worker_is_replaced_with_a_prefetch_of_one(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = watched(broker, &service, 1, &gate)
        .prefetch(1)
        .start()
        .unwrap();
    is_replaced(broker, &server, &gate);
}

fn as_many_workers_are_replaced_as_there_may_be(broker: &Broker) {
    let (service, gate) = (unique("work"), Gate::shut());
    let server = watched(broker, &service, 2, &gate).start().unwrap();
    let _open = OpenAtEnd(&gate);
    let client = client(broker);
    let stuck = (0..6u64).map(|n| client.call_async::<u64>(&service, "stuck", &n));
    let stuck: Vec<_> = stuck.map(Result::unwrap).collect();
    eventually("two workers are replaced", || counts(&server) == (4, 4, 4));
    assert_eq!(gate.running(), 4);
    gate.open();
    for (n, call) in (0..).zip(stuck) {
        assert_eq!(call.wait().unwrap(), n);
    }
    eventually("two workers are left", || {
        let load = server.load();
        (load.workers, load.overdue) == (2, 0)
    });
    assert_eq!(gate.most_running(), 4);
    server.shutdown(PATIENCE).unwrap();
}

fn a_timeout_of_zero_is_refused(broker: &Broker) {
    let server = watched(broker, &unique("work"), 1, &Gate::shut())
        .handler_timeout(Duration::ZERO)
        .start();
    assert_eq!(server.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

/// A redelivered request runs on a thread of its own, which is none of the workers.
#[test]
fn a_stuck_redelivered_request_leaves_the_number_of_workers() {
    let url = own_amqp_url();
    let proxy = Proxy::start(&url);
    let (broker, direct) = (steady(&proxy.url), steady(&url));
    let (service, gate, late) = (unique("work"), Gate::shut(), Gate::shut());
    let gates = (gate.clone(), late.clone());
    let server = watched(&broker, &service, 1, &gate)
        .respond_with_context("twice", move |context: &Context<'_>, n: u64| match context
            .is_redelivered()
        {
            true => gates.1.enter(context, n),
            false => gates.0.enter(context, n),
        })
        .start()
        .unwrap();
    let _open = (OpenAtEnd(&gate), OpenAtEnd(&late));
    let client = client(&direct);
    let calls = (0..4u64).map(|n| client.call_async::<u64>(&service, "twice", &n));
    let calls: Vec<_> = calls.map(Result::unwrap).collect();
    eventually("a worker and the one in its place are stuck", || {
        counts(&server) == (2, 2, 2) && server.load().waiting == 2
    });
    proxy.cut();
    // Those that run too.
    eventually("all are redelivered", || server.load().waiting == 4);
    gate.open();
    eventually("only a redelivered request is stuck", || {
        let (_, overdue, ever) = counts(&server);
        (late.running(), overdue, ever) == (1, 1, 3)
    });
    late.open();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.wait().unwrap(), n);
    }
    // A worker too many ends after its next job.
    assert_eq!(client.call::<u64>(&service, "quick", &7).unwrap(), 7);
    eventually("one worker is left", || counts(&server).0 == 1);
    assert_eq!(late.most_running(), 1);
}

#[test]
fn an_overdue_handler_is_logged_once_with_its_thread() {
    let process = Process::start(&["overdue", &unique("work")]);
    process.wait_for("logged once");
}
