//! `HandlerError::busy`: a handler refuses a request that it has not begun with.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coney::deduplication::MemoryReplyStore;
use coney::{
    Broker, CallOptions, Context, ErrorKind, HandlerError, HandlerResult, SendOptions,
    ServiceServer, Subscription,
};
use crossbeam_channel::{Receiver, unbounded};

use crate::support::dead_letters::no_dead_letter;
use crate::support::events::{letters, publisher, recv_n, subscriber, unique_event};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    a_call_is_refused_as_busy,
    each_request_of_a_batch_is_refused_for_itself,
    a_busy_command_waits_and_uses_up_no_attempt,
    a_busy_command_waits_as_long_as_its_handler_asks,
    a_busy_request_is_new_when_it_comes_again,
    a_layer_can_be_busy,
    a_nested_busy_error_is_not_the_handlers_own,
    busy_events_wait_and_use_up_no_attempt,
);

const MS: Duration = Duration::from_millis(1);

/// More refusals than there are attempts.
const REFUSALS: u32 = 6;

/// Starts a service whose handler refuses the first `refusals` requests; the receiver gets the
/// attempts at the others.
fn serve(broker: &Broker, service: &str, refusals: u32) -> (ServiceServer, Receiver<u32>) {
    let (sent, attempts) = unbounded();
    let runs = AtomicU32::new(0);
    let server = ServiceServer::builder(broker, service)
        .handler_with_context("work", move |context: &Context<'_>, n: u64| {
            if runs.fetch_add(1, Ordering::SeqCst) < refusals {
                return Err(HandlerError::busy("all hands are full", 70 * MS));
            }
            sent.send(context.attempt()).unwrap();
            Ok(n * 2)
        })
        .retry_delays([20 * MS, 50 * MS])
        .deduplicate(MemoryReplyStore::new(100), PATIENCE)
        .start()
        .unwrap();
    (server, attempts)
}

fn a_call_is_refused_as_busy(broker: &Broker) {
    let service = unique("work");
    let (_server, attempts) = serve(broker, &service, 1);
    let client = client(broker);
    let error = client.call::<u64>(&service, "work", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.is_safe_to_retry());
    assert_eq!(error.remote_code(), Some("busy"));
    assert_eq!(error.retry_after(), Some(70 * MS));
    assert!(error.to_string().contains("all hands are full"), "{error}");
    assert!(attempts.is_empty());
    assert_eq!(client.call::<u64>(&service, "work", &1).unwrap(), 2);
}

fn each_request_of_a_batch_is_refused_for_itself(broker: &Broker) {
    let service = unique("work");
    let (_server, attempts) = serve(broker, &service, 2);
    let client = client(broker);
    let mut batch = client.batch(&service);
    for n in 0..5 {
        batch.add::<u64>("work", &n);
    }
    let results = batch.call().into_results::<u64>();
    let errors: Vec<_> = results.iter().filter_map(|it| it.as_ref().err()).collect();
    assert_eq!(errors.len(), 2);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(error.retry_after(), Some(70 * MS));
    }
    assert_eq!(attempts.len(), 3);
}

fn a_busy_command_waits_and_uses_up_no_attempt(broker: &Broker) {
    let service = unique("work");
    let (server, attempts) = serve(broker, &service, REFUSALS);
    client(broker).send(&service, "work", &1).unwrap();
    assert_eq!(attempts.recv_timeout(PATIENCE), Ok(1));
    server.drain(PATIENCE).unwrap();
    assert!(attempts.is_empty());
    no_dead_letter(broker, &service);
}

fn a_busy_command_waits_as_long_as_its_handler_asks(broker: &Broker) {
    let (service, (sent, runs)) = (unique("work"), unbounded());
    let (short, long) = (20 * MS, 200 * MS);
    let is_first = AtomicBool::new(true);
    let _server = ServiceServer::builder(broker, &service)
        .handler("work", move |_: u64| -> HandlerResult {
            sent.send(Instant::now()).unwrap();
            match is_first.swap(false, Ordering::SeqCst) {
                true => Err(HandlerError::busy("not now", 100 * MS)),
                false => Ok(()),
            }
        })
        .retry_delays([long, short])
        .start()
        .unwrap();
    client(broker).send(&service, "work", &1).unwrap();
    let [first, second] = [0; 2].map(|_| runs.recv_timeout(PATIENCE).unwrap());
    assert!(second - first >= long - MS, "{:?}", second - first);
}

fn a_busy_request_is_new_when_it_comes_again(broker: &Broker) {
    let service = unique("work");
    let (server, attempts) = serve(broker, &service, 2);
    let client = client(broker);
    let id = CallOptions::new().message_id("one");
    let call = || client.call_with::<u64>(&service, "work", &1, &id);
    assert_eq!(call().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(call().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(call().unwrap(), 2);
    assert_eq!(call().unwrap(), 2, "repeated");
    let id = SendOptions::new().message_id("two");
    client.send_with(&service, "work", &1, &id).unwrap();
    client.send_with(&service, "work", &1, &id).unwrap();
    server.drain(PATIENCE).unwrap();
    assert_eq!(attempts.try_iter().collect::<Vec<_>>(), [1, 1]);
}

fn a_layer_can_be_busy(broker: &Broker) {
    let service = unique("work");
    let _server = ServiceServer::builder(broker, &service)
        .respond("work", |n: u64| n)
        .layer(|_, _| Err(HandlerError::busy("closed", 2_000 * MS)))
        .start()
        .unwrap();
    let error = client(broker).call::<u64>(&service, "work", &1);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(error.retry_after(), Some(2_000 * MS));
}

fn a_nested_busy_error_is_not_the_handlers_own(broker: &Broker) {
    let [front, service] = ["front", "work"].map(unique);
    let (_server, _attempts) = serve(broker, &service, 1);
    let _front = ServiceServer::builder(broker, &front)
        .handler_with_context("via", move |context: &Context<'_>, n: u64| {
            context.client()?.call::<u64>(&service, "work", &n)
        })
        .start()
        .unwrap();
    let error = client(broker).call::<u64>(&front, "via", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert_eq!(error.remote_code(), Some("busy_downstream"));
    assert_eq!(error.retry_after(), None);
    assert!(!error.is_safe_to_retry());
}

fn busy_events_wait_and_use_up_no_attempt(broker: &Broker) {
    let (service, event) = (unique("s"), unique_event());
    let (sent, attempts) = unbounded();
    // Returns a handler that refuses the first event it gets more often than there are attempts.
    let handler = || {
        let (runs, sent) = (AtomicU32::new(0), sent.clone());
        move |context: &Context<'_>, n: u64| {
            if runs.fetch_add(1, Ordering::SeqCst) < REFUSALS {
                return Err(HandlerError::busy("all hands are full", MS));
            }
            sent.send((context.attempt(), n)).unwrap();
            Ok(())
        }
    };
    let subscription = |name: &str| Subscription::to_with_context(&event, handler()).named(name);
    let subscriber = subscriber(broker, &service)
        .subscribe(subscription("group"))
        .subscribe(subscription("ordered").ordered_by(|_: &u64| 0))
        .subscribe(subscription("broadcast").broadcast())
        .start()
        .unwrap();
    let publisher = publisher(broker);
    publisher.publish(&event, &1).unwrap();
    publisher.publish(&event, &2).unwrap();
    let mut handled: Vec<(u32, u64)> = recv_n(&attempts, 6);
    handled.sort_unstable();
    assert_eq!(handled, [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2)]);
    subscriber.shutdown(PATIENCE).unwrap();
    assert!(attempts.is_empty());
    for name in ["group", "ordered"] {
        let queue = format!("event.{service}.{name}");
        assert!(letters(broker, &queue).is_empty());
    }
}
