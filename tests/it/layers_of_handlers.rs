//! `layer`: code around the handlers of servers and subscribers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coney::server::{HandlerLayer, HandlerReply, NextHandler, ServiceServerBuilder};
use coney::{Broker, CallOptions, Context, ErrorKind, HandlerError, HandlerResult, ServiceServer};
use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::support::dead_letters::dead_letter;
use crate::support::events::{publisher, recv_n, subscriber, unique_event};
use crate::support::{PATIENCE, client, on_both, unique};

on_both!(
    the_first_layer_is_the_outermost,
    a_layer_refuses_without_running_the_handler,
    a_panic_in_a_layer_is_that_of_a_handler,
    each_request_of_a_batch_passes_the_layers,
    requests_that_reach_no_handler_pass_no_layer,
    a_type_can_be_a_layer,
    the_layers_of_a_subscriber_see_every_attempt,
);

const MS: Duration = Duration::from_millis(1);

/// Returns a layer that sends its name before and after what it wraps.
fn noting(name: &'static str, notes: &Sender<String>) -> impl HandlerLayer + use<> {
    let notes = notes.clone();
    move |_: &Context<'_>, next: NextHandler<'_>| {
        notes.send(format!("{name} before")).unwrap();
        let result = next.run();
        notes.send(format!("{name} after")).unwrap();
        result
    }
}

/// Returns the builder of a service that doubles and notes it.
fn doubling(broker: &Broker, service: &str, notes: &Sender<String>) -> ServiceServerBuilder {
    let notes = notes.clone();
    ServiceServer::builder(broker, service)
        .respond("double", move |n: u64| {
            notes.send(format!("double {n}")).unwrap();
            n * 2
        })
        .retry_delays([20 * MS, 40 * MS])
}

fn all(notes: &Receiver<String>) -> Vec<String> {
    notes.try_iter().collect()
}

fn the_first_layer_is_the_outermost(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let server = doubling(broker, &service, &noted)
        .layer_impl(noting("outer", &noted))
        .layer_impl(noting("inner", &noted))
        .start()
        .unwrap();
    let client = client(broker);
    assert_eq!(client.call::<u64>(&service, "double", &4).unwrap(), 8);
    let wanted = [
        "outer before",
        "inner before",
        "double 4",
        "inner after",
        "outer after",
    ];
    assert_eq!(all(&notes), wanted);
    client.send(&service, "double", &4).unwrap();
    server.drain(PATIENCE).unwrap();
    assert_eq!(all(&notes), wanted);
}

fn a_layer_refuses_without_running_the_handler(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let _server = doubling(broker, &service, &noted)
        .layer(|context, next| match next.payload() {
            "13" => {
                let error = HandlerError::new(format!("{} is unlucky", context.action()));
                Err(error.with_code("unlucky").do_not_retry())
            }
            _ => next.run(),
        })
        .start()
        .unwrap();
    let client = client(broker);
    let error = client.call::<u64>(&service, "double", &13).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_eq!(error.remote_message(), Some("double is unlucky"));
    assert_eq!(error.remote_code(), Some("unlucky"));
    client.send(&service, "double", &13).unwrap();
    let letter = dead_letter(broker, &service);
    assert_eq!((letter.reason(), letter.attempts()), ("rejected", 1));
    assert_eq!(all(&notes), [""; 0]);
    assert_eq!(client.call::<u64>(&service, "double", &14).unwrap(), 28);
}

fn a_panic_in_a_layer_is_that_of_a_handler(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let _server = doubling(broker, &service, &noted)
        .layer(|_, next| {
            assert_ne!(next.payload(), "13", "a panic that the test wants");
            next.run()
        })
        .start()
        .unwrap();
    let client = client(broker);
    let error = client.call::<u64>(&service, "double", &13).unwrap_err();
    assert_eq!(error.remote_code(), Some("panic"), "{error}");
    client.send(&service, "double", &13).unwrap();
    let letter = dead_letter(broker, &service);
    assert_eq!(letter.reason(), "retries_exhausted");
    assert_eq!(letter.attempts(), 3);
    assert!(notes.is_empty());
    assert_eq!(client.call::<u64>(&service, "double", &14).unwrap(), 28);
}

fn each_request_of_a_batch_passes_the_layers(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let (sent, payloads) = unbounded();
    let _server = doubling(broker, &service, &noted)
        .layer(move |context, next| {
            assert_eq!(context.source_service(), "order-service");
            sent.send(next.payload().to_owned()).unwrap();
            match next.payload() {
                "2" => Err(HandlerError::new("not two").with_code("two")),
                _ => next.run(),
            }
        })
        .start()
        .unwrap();
    let client = client(broker);
    let mut batch = client.batch(&service);
    for n in 1..=3 {
        batch.add::<u64>("double", &n);
    }
    batch.add::<u64>("no_such_action", &4);
    let results = batch.call().into_results::<u64>();
    let codes: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map_err(|error| error.remote_code()))
        .collect();
    let unknown = Err(Some("unknown_action"));
    assert_eq!(codes, [Ok(&2), Err(Some("two")), Ok(&6), unknown]);
    let mut payloads: Vec<String> = payloads.try_iter().collect();
    payloads.sort_unstable();
    assert_eq!(payloads, ["1", "2", "3"]);
    assert_eq!(notes.len(), 2);
}

fn requests_that_reach_no_handler_pass_no_layer(broker: &Broker) {
    let (service, (noted, notes)) = (unique("math"), unbounded());
    let (sent, codes) = unbounded();
    let server = doubling(broker, &service, &noted)
        .layer(move |_, next| {
            let result = next.run();
            let code = result.as_ref().err().and_then(HandlerError::code);
            sent.send(code.map(str::to_owned)).unwrap();
            result
        })
        .deduplicate(coney::deduplication::MemoryReplyStore::new(100), PATIENCE)
        .start()
        .unwrap();
    let client = client(broker);
    let error = client.call::<u64>(&service, "halve", &1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAction);
    assert!(codes.is_empty());
    // A payload is decoded by the handler.
    client.call::<u64>(&service, "double", "text").unwrap_err();
    let code = codes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(code.as_deref(), Some("bad_request"));
    let once = CallOptions::new().message_id("one");
    for _ in 0..2 {
        let double: u64 = client.call_with(&service, "double", &4, &once).unwrap();
        assert_eq!(double, 8);
    }
    server.drain(PATIENCE).unwrap();
    assert_eq!(codes.try_iter().collect::<Vec<_>>(), [None]);
    assert_eq!(all(&notes), ["double 4"]);
}

#[derive(Clone, Default)]
struct Counter(Arc<AtomicU32>);

impl HandlerLayer for Counter {
    fn handle(&self, _: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply> {
        self.0.fetch_add(1, Ordering::SeqCst);
        next.run()
    }
}

fn a_type_can_be_a_layer(broker: &Broker) {
    let (service, (noted, _notes)) = (unique("math"), unbounded());
    let counter = Counter::default();
    let _server = doubling(broker, &service, &noted)
        .layer_impl(counter.clone())
        .start()
        .unwrap();
    let double: u64 = client(broker).call(&service, "double", &4).unwrap();
    assert_eq!((double, counter.0.load(Ordering::SeqCst)), (8, 1));
}

fn the_layers_of_a_subscriber_see_every_attempt(broker: &Broker) {
    let (service, event) = (unique("s"), unique_event());
    let ((noted, notes), (sent, events)) = (unbounded(), unbounded());
    let subscriber = subscriber(broker, &service)
        .listen(&event, move |n: u64| sent.send(n).unwrap())
        .layer_impl(noting("outer", &noted))
        .layer(move |context, next| {
            let note = format!("attempt {} at {}", context.attempt(), context.action());
            noted.send(note).unwrap();
            match context.attempt() {
                1 => Err(HandlerError::new("not yet")),
                _ => next.run(),
            }
        })
        .start()
        .unwrap();
    publisher(broker).publish(&event, &5).unwrap();
    assert_eq!(recv_n(&events, 1), [5]);
    subscriber.shutdown(PATIENCE).unwrap();
    let attempts = [1, 2].map(|attempt| format!("attempt {attempt} at {event}"));
    let wanted = attempts
        .iter()
        .flat_map(|attempt| ["outer before", attempt, "outer after"]);
    assert_eq!(all(&notes), wanted.collect::<Vec<_>>());
}
