//! `wait_any`: the first of several results.

use std::time::{Duration, Instant};

use coney::client::{Pending, wait_any};
use coney::{Broker, CallOptions, ErrorKind};

use crate::support::sleepy_service::GatedServer;
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    the_first_of_several_is_found,
    results_of_all_types_are_waited_for_together,
    a_passed_deadline_is_ready,
);

const SOON: Duration = Duration::from_millis(20);

fn the_first_of_several_is_found(broker: &Broker) {
    let service = unique("gate");
    let mut server = GatedServer::start(broker, &service, 2);
    let client = client(broker);
    let start = |n: u64| client.call_async::<u64>(&service, "wait", &n).unwrap();
    let mut calls: Vec<_> = (0..20).map(start).collect();
    assert_eq!(wait_any(&mut calls, SOON), None);
    server.open();
    let mut sum = 0;
    while let Some(first) = wait_any(&mut calls, PATIENCE) {
        let reply = calls[first].try_wait().expect("it is ready");
        sum += reply.unwrap();
        drop(calls.swap_remove(first));
    }
    assert_eq!(sum, (0..20).sum::<u64>());
    assert_eq!(wait_any(&mut calls, PATIENCE), None); // at once: there are none
}

fn results_of_all_types_are_waited_for_together(broker: &Broker) {
    let service = unique("gate");
    let mut server = GatedServer::start(broker, &service, 4);
    let client = client(broker);
    let mut reply = client.call_async::<u64>(&service, "wait", &1).unwrap();
    let mut batch = client.batch(&service);
    batch.add::<u64>("wait", &2);
    let mut batch = batch.call_async();
    let mut confirm = client.send_async(&service, "wait", &3).unwrap();
    // Only the broker has to confirm: the handlers still wait.
    let mut all: [&mut dyn Pending; 3] = [&mut reply, &mut batch, &mut confirm];
    assert_eq!(wait_any(&mut all, PATIENCE), Some(2));
    confirm.wait().unwrap();
    server.open();
    let mut left: Vec<&mut dyn Pending> = vec![&mut reply, &mut batch];
    while let Some(first) = wait_any(&mut left, PATIENCE) {
        left.swap_remove(first);
    }
    assert!(left.is_empty());
    assert_eq!(reply.try_wait().unwrap().unwrap(), 1);
    let replies = batch.try_wait().expect("it is ready");
    assert_eq!(replies.into_results::<u64>()[0].as_ref().unwrap(), &2);
}

fn a_passed_deadline_is_ready(broker: &Broker) {
    let service = unique("gate");
    let _server = GatedServer::start(broker, &service, 1);
    let client = client(broker);
    let options = CallOptions::new().timeout(SOON);
    let late = client.call_async_with::<u64>(&service, "wait", &1, &options);
    let mut calls = [late.unwrap()];
    let begin = Instant::now();
    assert_eq!(wait_any(&mut calls, PATIENCE), Some(0));
    assert!(begin.elapsed() < PATIENCE);
    let error = calls[0].try_wait().expect("it is ready").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}
